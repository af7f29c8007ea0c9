use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

/// Resolves after a time of the wall clock, at the latest.
///
/// tokio's clock will not do: while it is paused, a deadline on it would come before the retry in five
/// minutes that the test waits for. Nor will tokio's blocking threads, which keep a paused clock from
/// going on by itself.
#[derive(Debug)]
pub(super) struct Patience {
    over: oneshot::Receiver<()>,
    /// Dropped, it ends the thread.
    _end: mpsc::Sender<()>,
}

impl Patience {
    pub(super) fn new(patience: Duration) -> Self {
        let (tell, over) = oneshot::channel();
        let (end, ended) = mpsc::channel::<()>();
        thread::spawn(move || {
            if let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(patience) {
                let _nobody_waits = tell.send(());
            }
        });
        Self { over, _end: end }
    }

    /// Cancel safe.
    pub(super) async fn is_over(&mut self) {
        let _told = (&mut self.over).await;
    }
}
