//! The wake-up of relays of the same process after a commit.

use std::sync::Arc;

use tokio::sync::watch;

/// Wakes the relays of this process, so that they need not wait for their next poll. Cloning is cheap;
/// clones wake the same relays.
#[derive(Debug, Clone)]
pub struct Wakeup(Arc<watch::Sender<()>>);

impl Wakeup {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(())))
    }

    /// Tells the relays that rows were committed.
    pub fn wake(&self) {
        self.0.send_replace(());
    }

    /// Sees the wake-ups from now on; several at once are one.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}
