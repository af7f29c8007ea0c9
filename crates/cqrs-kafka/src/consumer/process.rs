//! This process, as the [`quarantine`](super::quarantine) of each partition knows it: its id, its start, and the lock
//! that one quarantine at a time holds.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

#[derive(Debug)]
pub(super) struct Process {
    pub(super) id: i64,
    pub(super) started_at: Instant,
    is_locked: AtomicBool,
}

/// The right of one partition to run its quarantined records. Released on drop.
#[derive(Debug)]
pub(super) struct QuarantineLock(Arc<Process>);

impl Process {
    pub(super) fn new(started_at: Instant) -> Arc<Self> {
        // The keys of `RandomState` are random: the standard library's only source of random numbers.
        let id = RandomState::new().hash_one(std::process::id()) >> 1;
        Arc::new(Self { id: id.cast_signed(), started_at, is_locked: AtomicBool::new(false) })
    }

    pub(super) fn this() -> Arc<Self> {
        static THIS: LazyLock<Arc<Process>> = LazyLock::new(|| Process::new(Instant::now()));
        Arc::clone(&THIS)
    }

    pub(super) fn try_lock(self: &Arc<Self>) -> Option<QuarantineLock> {
        (!self.is_locked.swap(true, Ordering::AcqRel)).then(|| QuarantineLock(Arc::clone(self)))
    }
}

impl Drop for QuarantineLock {
    fn drop(&mut self) {
        self.0.is_locked.store(false, Ordering::Release);
    }
}
