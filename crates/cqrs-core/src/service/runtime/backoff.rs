//! Delays that double up to a limit.

use std::time::Duration;

/// Waits that double up to a limit.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, max: Duration) -> Self {
        Self { next: first, max }
    }

    pub(super) fn next(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.max);
        now
    }

    /// Cancel safe; a cancelled wait counts.
    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }
}
