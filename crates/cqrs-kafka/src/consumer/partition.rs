//! One partition during one assignment: the epoch that deliveries belong to.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cqrs_core::RetryState;

use super::baton::Turn;
use super::ledger::{Draft, Ledger, View};
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
    /// How many handlers run, and [`REVOKED`].
    gate: AtomicUsize,
    ledger: Mutex<Ledger>,
    /// Whether the ledger knows of attempts: spares the lock.
    has_attempts: AtomicBool,
    /// Records below may be handed out.
    granted: AtomicI64,
    /// Whether the poll thread waits for each record that is finished.
    careful: AtomicBool,
    /// Tells, as long as this value lives, that suspects run on.
    strays: OnceLock<Turn>,
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
        let careful = AtomicBool::new(ledger.view().suspects_until.is_some());
        let granted = AtomicI64::new(ledger.granted());
        let ledger = Mutex::new(ledger);
        let gate = AtomicUsize::new(0);
        Self {
            shared,
            topic,
            id,
            is_retry,
            gate,
            ledger,
            has_attempts,
            granted,
            careful,
            strays: OnceLock::new(),
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

    /// Keeps a turn that tells of strays until nobody has a delivery of this assignment any more.
    pub(super) fn keep(&self, turn: Turn) {
        let _ = self.strays.set(turn);
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.gate.load(Ordering::Acquire) & REVOKED != 0
    }

    /// Marks a record as done. `false`: it does not count any more, the record comes again.
    pub(super) fn finish(&self, offset: i64) -> bool {
        let counts = self.ledger().finish(offset);
        self.tell_if_careful();
        counts
    }

    /// Remembers the failed attempts at a record, which may run on.
    pub(super) fn note_attempts(&self, offset: i64, state: RetryState) {
        self.has_attempts.store(true, Ordering::Release);
        self.ledger().note_attempts(offset, state);
    }

    /// A record is held for a later attempt.
    pub(super) fn hold(&self, offset: i64, state: RetryState) {
        self.has_attempts.store(true, Ordering::Release);
        self.ledger().hold(offset, state);
        self.tell_if_careful();
    }

    /// A handler starts with a record.
    pub(super) fn begun(&self, offset: i64) {
        if self.is_careful() {
            self.ledger().begin(offset);
        }
    }

    /// A record whose handler ran is given back, or kept for later.
    pub(super) fn rest(&self, offset: i64) {
        if self.is_careful() {
            self.ledger().rest(offset);
            self.tell_if_careful();
        }
    }

    fn tell_if_careful(&self) {
        if self.is_careful() {
            self.shared.wake_poller();
        }
    }

    /// Whether records may be suspect.
    pub(super) fn is_careful(&self) -> bool {
        self.careful.load(Ordering::Acquire)
    }

    /// Records below may be handed out.
    pub(super) fn granted(&self) -> i64 {
        self.granted.load(Ordering::Acquire)
    }

    /// As [`Ledger::ask`].
    pub(super) fn ask(&self, head: i64, may_name: bool) -> i64 {
        let mut ledger = self.ledger();
        let until = ledger.ask(head, may_name);
        self.careful.store(ledger.view().suspects_until.is_some(), Ordering::Release);
        until
    }

    /// As [`Ledger::outlast`].
    pub(super) fn outlast(&self) {
        self.ledger().outlast();
    }

    pub(super) fn view(&self) -> View {
        self.ledger().view()
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
        let mut ledger = self.ledger();
        let (draft, former) = (ledger.close(), ledger.former());
        drop(ledger);
        self.shared.remember(Arc::clone(&self.topic), self.id, former);
        draft
    }

    pub(super) fn committed(&self, draft: &Draft) {
        let mut ledger = self.ledger();
        ledger.committed(draft);
        self.granted.store(ledger.granted(), Ordering::Release);
    }
}
