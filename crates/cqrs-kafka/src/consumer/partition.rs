//! One partition during one assignment. Shared by the poll thread, the source and the settlements of its records.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cqrs_core::consume::RetryState;

use super::in_flight::InFlight;
use super::offset_tracker::{Draft, OffsetTracker};
use super::poller::Poller;
use super::quarantine::Activity;
use super::record::Record;

/// A partition from its assignment to its revocation. The next assignment makes another value, so a late ack reaches
/// only the closed tracker of its own assignment.
///
/// States: open; [`revoke`](Self::revoke)d (no handler starts, running ones still settle); closed
/// ([`close`](Self::close): nothing settles any more).
#[derive(Debug)]
pub(super) struct Partition {
    poller: Arc<Poller>,
    pub(super) topic: Arc<str>,
    pub(super) id: i32,
    /// Set if it belongs to a retry topic.
    pub(super) is_retry: bool,
    /// Its part of the records in flight.
    pub(super) in_flight: InFlight,
    /// The number of running handlers, and [`REVOKED`].
    running: AtomicUsize,
    tracker: Mutex<OffsetTracker>,
    // Copies of the tracker's answers, which spare the lock.
    has_attempts: AtomicBool,
    is_limited: AtomicBool,
    delivery_limit: AtomicI64,
}

const REVOKED: usize = 1 << (usize::BITS - 1);

impl Partition {
    pub(super) fn new(
        poller: Arc<Poller>,
        topic: Arc<str>,
        id: i32,
        is_retry: bool,
        tracker: OffsetTracker,
    ) -> Self {
        Self {
            poller,
            topic,
            id,
            is_retry,
            in_flight: InFlight::default(),
            running: AtomicUsize::new(0),
            has_attempts: AtomicBool::new(tracker.has_attempts()),
            is_limited: AtomicBool::new(tracker.is_limited()),
            delivery_limit: AtomicI64::new(tracker.delivery_limit()),
            tracker: Mutex::new(tracker),
        }
    }

    /// Locks the tracker.
    pub(super) fn tracker(&self) -> TrackerGuard<'_> {
        let tracker = self.tracker.lock().unwrap_or_else(PoisonError::into_inner);
        TrackerGuard { partition: self, tracker }
    }

    /// Counts a handler as running. `false`: the partition is revoked, the handler must not start.
    pub(super) fn begin(&self) -> bool {
        let before = self.running.fetch_add(1, Ordering::AcqRel);
        if before & REVOKED != 0 {
            self.end();
            return false;
        }
        true
    }

    /// A running handler ended, or its delivery is held.
    pub(super) fn end(&self) {
        self.running.fetch_sub(1, Ordering::AcqRel);
    }

    /// The number of running handlers.
    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::Acquire) & !REVOKED
    }

    /// No handler starts from here on.
    pub(super) fn revoke(&self) {
        self.running.fetch_or(REVOKED, Ordering::AcqRel);
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.running.load(Ordering::Acquire) & REVOKED != 0
    }

    /// Marks a record as finished. `false`: the assignment is over, the record is redelivered.
    pub(super) fn finish(&self, offset: i64) -> bool {
        let counts = self.tracker().finish(offset);
        self.wake_if_limited();
        counts
    }

    /// Holds a record for a later attempt.
    pub(super) fn hold(&self, record: &Record, state: RetryState) {
        self.tracker().hold(record.offset, record.key(), state);
        self.wake_if_limited();
    }

    /// A record whose handler ran is returned, or kept for later.
    pub(super) fn run_ended(&self, record: &Record) {
        if self.is_limited() {
            self.tracker().run_ended(record.offset, record.key());
            self.wake_if_limited();
        }
    }

    fn wake_if_limited(&self) {
        if self.is_limited() {
            self.poller.wake();
        }
    }

    /// Returns whether delivery depends on commits. The poll thread then waits for each record to be finished.
    pub(super) fn is_limited(&self) -> bool {
        self.is_limited.load(Ordering::Acquire)
    }

    /// Records below this offset may be delivered.
    pub(super) fn delivery_limit(&self) -> i64 {
        self.delivery_limit.load(Ordering::Acquire)
    }

    /// The earlier attempts at a record, as far as they are known.
    pub(super) fn attempts(&self, record: &Record) -> RetryState {
        let mut state = RetryState::default();
        if self.has_attempts.load(Ordering::Acquire) {
            state = self.tracker().attempts(record.offset);
        }
        if self.is_retry {
            let carried = record.retry_state();
            if carried.attempts > state.attempts {
                let crashes = state.crashes;
                state = carried;
                state.crashes = crashes;
            }
        }
        state
    }

    /// Ends the assignment. Returns its last commit, if one is needed.
    pub(super) fn close(&self) -> Option<Draft> {
        self.revoke();
        // The count is read under the lock: a handler that ends meanwhile is not counted as running.
        let mut tracker = self.tracker();
        let running = self.running();
        tracker.close(running)
    }
}

/// The activity of the handlers of all these partitions.
pub(super) fn total_activity<'p>(partitions: impl Iterator<Item = &'p Partition>) -> Activity {
    partitions.fold(Activity::default(), |all, partition| {
        let tracker = partition.tracker();
        let running = partition.running();
        let Activity { started, .. } = tracker.activity(running);
        Activity { running: all.running + running, started: all.started + started }
    })
}

/// The locked tracker of a partition.
pub(super) struct TrackerGuard<'p> {
    partition: &'p Partition,
    tracker: MutexGuard<'p, OffsetTracker>,
}

impl Deref for TrackerGuard<'_> {
    type Target = OffsetTracker;

    fn deref(&self) -> &OffsetTracker {
        &self.tracker
    }
}

impl DerefMut for TrackerGuard<'_> {
    fn deref_mut(&mut self) -> &mut OffsetTracker {
        &mut self.tracker
    }
}

impl Drop for TrackerGuard<'_> {
    /// Updates the partition's copies, still under the lock.
    fn drop(&mut self) {
        let Self { partition, tracker } = self;
        partition.has_attempts.store(tracker.has_attempts(), Ordering::Release);
        partition.is_limited.store(tracker.is_limited(), Ordering::Release);
        partition.delivery_limit.store(tracker.delivery_limit(), Ordering::Release);
    }
}
