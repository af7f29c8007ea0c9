//! The wake-up of a subscription's poll thread. Shared by all that changes what the poll thread waits for.

use std::sync::OnceLock;
use std::thread::Thread;

#[derive(Debug, Default)]
pub(super) struct Poller(OnceLock<Thread>);

impl Poller {
    /// Called once, by the poll thread itself.
    pub(super) fn set_thread(&self, thread: Thread) {
        let _ = self.0.set(thread);
    }

    /// Wakes the poll thread. Cheap while it is awake.
    pub(super) fn wake(&self) {
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }
}
