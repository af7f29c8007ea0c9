//! The state of one subscription, shared by its poll thread, its source and its settlements.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use cqrs_core::consume::{SourceError, SourceStatus, SubscribeError};
use tokio::sync::watch;

use super::copies::Copies;
use super::in_flight::{Bound, InFlight};
use super::partition::Partition;
use super::plan::Plan;
use super::poller::Poller;
use super::record::Record;
use super::start_offsets::TopicsAtStart;

/// Records of one partition, from the poll thread to the source.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) partition: Arc<Partition>,
    pub(super) records: VecDeque<Record>,
}

/// The progress of opening a subscription.
#[derive(Debug, Default)]
pub(super) enum OpenState {
    #[default]
    Waiting,
    Open,
    Failed(Option<SubscribeError>),
}

/// The result of closing a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CloseOutcome {
    /// All settled records were committed.
    Clean,
    /// Some were not; the reason.
    Uncommitted(Arc<str>),
}

/// The poll thread adds batches and reads the counts; the source takes batches out; settlements count down. Each lock
/// is held briefly, and never together with another one.
pub(super) struct SubscriptionState {
    pub(super) plan: Arc<Plan>,
    pub(super) poller: Arc<Poller>,
    /// The bound on records in flight, over all partitions.
    bound: Bound,
    in_flight: InFlight,
    /// Records and bytes of the share of each partition.
    share: (AtomicUsize, AtomicUsize),
    /// The size of the largest record fetched so far.
    largest: AtomicUsize,
    /// Set if deliveries were returned since the source took them out.
    returned: AtomicBool,
    inbox: Mutex<Inbox>,
    /// Set if nothing more is delivered.
    stopped: AtomicBool,
    /// The deadline of the close. `None`: open.
    closing: Mutex<Option<Instant>>,
    pub(super) topics_at_start: Arc<TopicsAtStart>,
    /// Set once it was logged that the group refuses commits.
    pub(super) refusal_logged: AtomicBool,
    pub(super) opening: watch::Sender<OpenState>,
    pub(super) closed: watch::Sender<Option<CloseOutcome>>,
    pub(super) copies: Copies,
}

#[derive(Default)]
struct Inbox {
    batches: VecDeque<Batch>,
    returned: Vec<(Arc<Partition>, Record)>,
    failure: Option<SourceError>,
    waker: Option<Waker>,
}

impl SubscriptionState {
    pub(super) fn new(plan: Arc<Plan>, copies: Copies) -> Self {
        let bytes = plan.subscription.max_unsettled_bytes;
        let bound = Bound::new(plan.max_unsettled(), bytes);
        Self {
            bound,
            plan,
            poller: Arc::default(),
            in_flight: InFlight::default(),
            share: (AtomicUsize::new(bound.records), AtomicUsize::new(bound.bytes)),
            largest: AtomicUsize::new(0),
            returned: AtomicBool::new(false),
            inbox: Mutex::default(),
            stopped: AtomicBool::new(false),
            closing: Mutex::new(None),
            topics_at_start: Arc::default(),
            refusal_logged: AtomicBool::new(false),
            opening: watch::Sender::default(),
            closed: watch::Sender::default(),
            copies,
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the number of partitions that share the bound, and of records handled at once.
    pub(super) fn share_among(&self, partitions: usize, at_once: usize) {
        let largest = self.largest.load(Ordering::Relaxed);
        let Bound { records, bytes } = self.bound.share(partitions, at_once, largest);
        self.share.0.store(records, Ordering::Relaxed);
        self.share.1.store(bytes, Ordering::Relaxed);
    }

    /// The bound on records in flight of one partition.
    pub(super) fn share(&self) -> Bound {
        let (records, bytes) = &self.share;
        Bound { records: records.load(Ordering::Relaxed), bytes: bytes.load(Ordering::Relaxed) }
    }

    /// The room for records of a partition that may be fetched now. If it is zero, a settlement that makes room wakes
    /// the poll thread.
    ///
    /// The bound of the subscription holds for a partition without records in flight too: a partition that is assigned
    /// while the others fill the bound gets the room that they free beyond their new shares.
    pub(super) fn room(&self, partition: &Partition) -> Bound {
        let share = partition.in_flight.room(self.share());
        if share.is_zero() { share } else { share.min(self.in_flight.room(self.bound)) }
    }

    /// Adds fetched records, and wakes the source.
    pub(super) fn push(&self, partition: &Arc<Partition>, records: Vec<Record>) {
        let size = records.iter().map(Record::size).sum();
        let largest = records.iter().map(Record::size).max().unwrap_or_default();
        self.largest.fetch_max(largest, Ordering::Relaxed);
        self.in_flight.add(records.len(), size);
        partition.in_flight.add(records.len(), size);
        let batch = Batch { partition: Arc::clone(partition), records: records.into() };
        let mut inbox = self.inbox();
        inbox.batches.push_back(batch);
        let waker = inbox.waker.take();
        drop(inbox);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Records of a partition are no longer in flight: settled, or revoked.
    pub(super) fn release(&self, partition: &Partition, records: usize, bytes: usize) {
        let wakes = self.in_flight.release(self.bound, records, bytes);
        if partition.in_flight.release(self.share(), records, bytes) || wakes {
            self.poller.wake();
        }
    }

    /// Takes a dropped delivery for redelivery.
    pub(super) fn put_back(&self, partition: Arc<Partition>, record: Record) {
        if partition.is_revoked() || self.is_stopped() {
            return self.release(&partition, 1, record.size());
        }
        let mut inbox = self.inbox();
        inbox.returned.push((partition, record));
        self.returned.store(true, Ordering::Release);
        let waker = inbox.waker.take();
        drop(inbox);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Returns whether deliveries were returned and not taken out yet. Cheap.
    pub(super) fn has_returned(&self) -> bool {
        self.returned.load(Ordering::Acquire)
    }

    /// Takes out the returned deliveries.
    pub(super) fn take_returned(&self) -> Vec<(Arc<Partition>, Record)> {
        let mut inbox = self.inbox();
        self.returned.store(false, Ordering::Release);
        std::mem::take(&mut inbox.returned)
    }

    /// Takes out the fetched batches. `false`: there are none; `waker` is woken on the next change.
    pub(super) fn take_batches(
        &self,
        into: &mut VecDeque<Batch>,
        waker: &Waker,
    ) -> Result<bool, SourceError> {
        let mut inbox = self.inbox();
        std::mem::swap(&mut inbox.batches, into);
        if !into.is_empty() {
            return Ok(true);
        }
        if let Some(failure) = inbox.failure.take() {
            return Err(failure);
        }
        inbox.waker = Some(waker.clone());
        // Checked under the lock: a later return or stop wakes the waker.
        Ok(!inbox.returned.is_empty() || self.is_stopped())
    }

    /// Discards fetched records of revoked partitions.
    pub(super) fn discard_revoked(&self) {
        let mut gone = Vec::new();
        let mut inbox = self.inbox();
        for batch in std::mem::take(&mut inbox.batches) {
            match batch.partition.is_revoked() {
                true => gone.push(batch),
                false => inbox.batches.push_back(batch),
            }
        }
        drop(inbox);
        for Batch { partition, records } in gone {
            self.release(&partition, records.len(), records.iter().map(Record::size).sum());
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Stops delivery, and wakes the source so that it ends.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        let waker = self.inbox().waker.take();
        waker.into_iter().for_each(Waker::wake);
        self.poller.wake();
    }

    /// Fails the opening of the subscription. `false`: it is open already.
    pub(super) fn fail_opening(&self, failure: SubscribeError) -> bool {
        self.opening.send_if_modified(|opening| {
            let is_waiting = matches!(opening, OpenState::Waiting);
            if is_waiting {
                *opening = OpenState::Failed(Some(failure));
            }
            is_waiting
        })
    }

    pub(super) fn report_disconnected(&self, error: &impl ToString) {
        let last_error = error.to_string().into();
        self.plan.request.status.report(SourceStatus::Disconnected { last_error });
    }

    pub(super) fn set_closed(&self, outcome: CloseOutcome) {
        self.closed.send_replace(Some(outcome));
    }

    /// Fails the source.
    pub(super) fn fail(&self, failure: SourceError) {
        let mut inbox = self.inbox();
        inbox.failure.get_or_insert(failure);
        let waker = inbox.waker.take();
        drop(inbox);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Closes the subscription until about `end`, or until the time of an earlier call.
    pub(super) fn close(&self, end: Instant) {
        self.stopped.store(true, Ordering::Release);
        let mut closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        *closing = Some(closing.map_or(end, |earlier| earlier.min(end)));
        drop(closing);
        self.poller.wake();
    }

    pub(super) fn closes_at(&self) -> Option<Instant> {
        *self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
