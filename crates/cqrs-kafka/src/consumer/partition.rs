//! One partition during one assignment: the epoch that deliveries belong to.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cqrs_core::RetryState;

use super::bound::Unsettled;
use super::ledger::{Draft, Ledger};
use super::quarantine::{Activity, Head};
use super::record::Record;
use super::shared::Shared;

/// A partition as it was assigned once. Assigned again, it is another value: what is left of the old
/// epoch reaches only the old, closed books.
///
/// Life: open; [`revoke`](Self::revoke)d (no handler starts any more, those that run are waited for and
/// still count); closed ([`close`](Self::close): nothing counts any more).
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) shared: Arc<Shared>,
    pub(super) topic: Arc<str>,
    pub(super) id: i32,
    /// Whether it belongs to a retry topic.
    pub(super) is_retry: bool,
    /// Its part of what is fetched and not settled.
    pub(super) unsettled: Unsettled,
    /// How many handlers run, and [`REVOKED`].
    gate: AtomicUsize,
    ledger: Mutex<Ledger>,
    /// Whether the ledger knows of attempts: spares the lock.
    has_attempts: AtomicBool,
    /// Records below may be handed out.
    granted: AtomicI64,
    /// Whether what is handed out depends on commits: the poll thread waits for each record that is finished.
    careful: AtomicBool,
}

const REVOKED: usize = 1 << (usize::BITS - 1);

impl Partition {
    pub(super) fn new(
        shared: Arc<Shared>,
        topic: Arc<str>,
        id: i32,
        is_retry: bool,
        ledger: Ledger,
    ) -> Self {
        let has_attempts = AtomicBool::new(ledger.has_attempts());
        let careful = AtomicBool::new(ledger.is_careful());
        let granted = AtomicI64::new(ledger.granted());
        let ledger = Mutex::new(ledger);
        let gate = AtomicUsize::new(0);
        Self {
            unsettled: Unsettled::default(),
            shared,
            topic,
            id,
            is_retry,
            gate,
            ledger,
            has_attempts,
            granted,
            careful,
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes fetched records into the books; takes out those that are here already.
    pub(super) fn add(&self, records: &mut Vec<Record>) {
        let mut ledger = self.ledger();
        records.retain(|record| ledger.add(record.offset));
    }

    /// A handler is about to start. `false`: not here any more.
    pub(super) fn begin(&self) -> bool {
        let before = self.gate.fetch_add(1, Ordering::AcqRel);
        if before & REVOKED != 0 {
            self.end();
            return false;
        }
        true
    }

    /// A handler that was begun ended, or its delivery is held.
    pub(super) fn end(&self) {
        self.gate.fetch_sub(1, Ordering::AcqRel);
    }

    /// How many handlers run.
    pub(super) fn running(&self) -> usize {
        self.gate.load(Ordering::Acquire) & !REVOKED
    }

    /// No handler starts from here on.
    pub(super) fn revoke(&self) {
        self.gate.fetch_or(REVOKED, Ordering::AcqRel);
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.gate.load(Ordering::Acquire) & REVOKED != 0
    }

    /// Marks a record as done. `false`: it does not count any more, the record comes again.
    pub(super) fn finish(&self, offset: i64) -> bool {
        let counts = self.ledger().finish(offset);
        self.wake_if_careful();
        counts
    }

    /// Remembers the failed attempts at a record, which may run on.
    pub(super) fn note_attempts(&self, offset: i64, state: RetryState) {
        self.has_attempts.store(true, Ordering::Release);
        self.ledger().note_attempts(offset, state);
    }

    /// A record is held for a later attempt.
    pub(super) fn hold(&self, record: &Record, state: RetryState) {
        self.has_attempts.store(true, Ordering::Release);
        self.ledger().hold(record.offset, record.key(), state);
        self.wake_if_careful();
    }

    /// A record whose handler ran is given back, or kept for later.
    pub(super) fn run_ended(&self, record: &Record) {
        if self.is_careful() {
            self.ledger().run_ended(record.offset, record.key());
            self.wake_if_careful();
        }
    }

    fn wake_if_careful(&self) {
        if self.is_careful() {
            self.shared.wake_poller();
        }
    }

    /// Whether what is handed out depends on commits.
    pub(super) fn is_careful(&self) -> bool {
        self.careful.load(Ordering::Acquire)
    }

    /// Records below may be handed out.
    pub(super) fn granted(&self) -> i64 {
        self.granted.load(Ordering::Acquire)
    }

    /// As [`Ledger::activity`].
    pub(super) fn activity(&self) -> Activity {
        self.ledger().activity(self.running())
    }

    /// As [`Ledger::advance`].
    pub(super) fn advance(&self, head: Option<&Head>, all: Activity, now: Instant) -> bool {
        let mut ledger = self.ledger();
        let advanced = ledger.advance(head, self.running(), all, now);
        if advanced {
            self.store(&ledger);
        }
        advanced
    }

    /// As [`Ledger::pass`].
    pub(super) fn pass(&self, position: i64) {
        self.ledger().pass(position);
    }

    /// As [`Ledger::refused`].
    pub(super) fn refused(&self, draft: &Draft, is_bare: bool) {
        let mut ledger = self.ledger();
        ledger.refused(draft, is_bare);
        self.store(&ledger);
    }

    fn store(&self, ledger: &Ledger) {
        self.granted.store(ledger.granted(), Ordering::Release);
        self.careful.store(ledger.is_careful(), Ordering::Release);
    }

    /// Whether a record was finished in an earlier assignment.
    pub(super) fn was_done(&self, offset: i64) -> bool {
        self.ledger().was_done(offset)
    }

    /// What is known of earlier attempts at a record.
    pub(super) fn attempts(&self, record: &Record) -> RetryState {
        let mut state = RetryState::default();
        if self.has_attempts.load(Ordering::Acquire) {
            state = self.ledger().attempts(record.offset);
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

    pub(super) fn draft(&self) -> Option<Draft> {
        self.ledger().draft()
    }

    /// The last commit of this epoch. Nothing counts from here on.
    pub(super) fn close(&self) -> Option<Draft> {
        self.revoke();
        self.ledger().close(self.running())
    }

    /// Whether nothing counts any more.
    pub(super) fn is_closed(&self) -> bool {
        self.ledger().is_closed()
    }

    pub(super) fn committed(&self, draft: &Draft) {
        let mut ledger = self.ledger();
        ledger.committed(draft);
        self.store(&ledger);
    }
}
