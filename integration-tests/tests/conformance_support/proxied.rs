//! What the harnesses of the consuming half share: the proxy of a case with faults.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

use cqrs_testkit::FaultProxy;
use cqrs_testkit::conformance::ConsumingFault;
use tokio::sync::Mutex;

/// The proxy of a case with faults.
#[derive(Default)]
pub(crate) struct Proxied(Mutex<Option<FaultProxy>>);

/// Looking for a server, or starting one, blocks.
pub(crate) async fn blocking<T: Send + 'static>(look: fn() -> T) -> T {
    let found = tokio::task::spawn_blocking(look).await;
    found.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

impl Proxied {
    /// Puts `proxy` in the place of the last one, which resets its connections.
    pub(crate) async fn set(&self, proxy: FaultProxy) {
        *self.0.lock().await = Some(proxy);
    }

    pub(crate) async fn inject(&self, fault: ConsumingFault) {
        let proxy = self.0.lock().await;
        let proxy = proxy.as_ref().expect("a case with faults");
        match fault {
            ConsumingFault::Cut => proxy.cut(),
            ConsumingFault::Away => {
                proxy.refuse(true);
                proxy.cut();
            }
            ConsumingFault::Back => proxy.refuse(false),
            ConsumingFault::Mute => proxy.stall(true),
            ConsumingFault::Unmute => proxy.stall(false),
            undeclared => panic!("{undeclared:?} is not declared"),
        }
    }
}
