//! [`WallClockTimeout`]: the limit of a tester's wait, independent of tokio's clock.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

/// A timeout by the wall clock.
///
/// A deadline on tokio's paused clock would pass before a retry in five minutes that the test waits for. A
/// blocking thread of tokio keeps a paused clock from advancing by itself. So this is a thread of its own.
#[derive(Debug)]
pub(super) struct WallClockTimeout {
    expired: oneshot::Receiver<()>,
    /// Dropping it ends the thread.
    _end: mpsc::Sender<()>,
}

impl WallClockTimeout {
    pub(super) fn new(timeout: Duration) -> Self {
        let (expire, expired) = oneshot::channel();
        let (end, ended) = mpsc::channel::<()>();
        thread::spawn(move || {
            if let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(timeout) {
                let _not_awaited = expire.send(());
            }
        });
        Self { expired, _end: end }
    }

    /// Waits until the time is over. Cancel safe.
    pub(super) async fn expired(&mut self) {
        let _sender_is_kept = (&mut self.expired).await;
    }
}
