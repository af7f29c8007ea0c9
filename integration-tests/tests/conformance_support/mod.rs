//! What the conformance harnesses of the real brokers share.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

use std::path::Path;
use std::sync::Arc;

use cqrs_testkit::FaultProxy;
use cqrs_testkit::conformance::Fault;
use integration_tests::servers;
use tokio::process::Command;
use tokio::sync::{Mutex, OwnedRwLockReadGuard, RwLock};

static SERVER: std::sync::LazyLock<Arc<RwLock<()>>> = std::sync::LazyLock::new(Arc::default);

/// The server, shared by the cases that leave it running, and the proxy of a case with faults.
pub(crate) struct Server {
    name: &'static str,
    shared: Mutex<Option<OwnedRwLockReadGuard<()>>>,
    proxy: Mutex<Option<FaultProxy>>,
}

/// Whether cases may restart the server: not in the quick run.
pub(crate) fn may_restart() -> bool {
    servers::variable("CQRS_FULL", "") == "1"
}

/// Looking for a server, or starting one, blocks.
pub(crate) async fn blocking<T: Send + 'static>(look: fn() -> T) -> T {
    let found = tokio::task::spawn_blocking(look).await;
    found.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

impl Server {
    pub(crate) async fn share(name: &'static str) -> Self {
        let shared = Mutex::new(Some(Arc::clone(&SERVER).read_owned().await));
        Self { name, shared, proxy: Mutex::default() }
    }

    /// Puts `proxy` in the place of the last one, which resets its connections.
    pub(crate) async fn set_proxy(&self, proxy: Option<FaultProxy>) {
        *self.proxy.lock().await = proxy;
    }

    pub(crate) async fn inject(&self, fault: Fault<'_>) {
        let proxy = self.proxy.lock().await;
        let proxy = proxy.as_ref().expect("a case with faults");
        match fault {
            Fault::Stall { .. } => proxy.stall(true),
            Fault::Resume { .. } => proxy.stall(false),
            Fault::Cut => proxy.cut(),
            Fault::Restart => self.restart().await,
            undeclared => panic!("{undeclared:?} is not declared"),
        }
    }

    /// Alone: the other cases of this process are done, or have not begun.
    async fn restart(&self) {
        let mut shared = self.shared.lock().await;
        drop(shared.take());
        let alone = SERVER.write().await;
        for command in ["stop", "start"] {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/brokers");
            let done = Command::new(script).args([command, self.name]).output().await.unwrap();
            let said = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "scripts/brokers {command} {}: {said}", self.name);
        }
        drop(alone);
        *shared = Some(Arc::clone(&SERVER).read_owned().await);
    }
}
