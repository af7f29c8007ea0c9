//! What the poll thread and the async side of one subscription share.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::thread::Thread;
use std::time::Instant;

use cqrs_core::consume::{SourceError, SubscribeError};
use tokio::sync::watch;

use super::bound::{Bound, Unsettled};
use super::copies::Copies;
use super::partition::Partition;
use super::record::Record;

/// Records of one partition, on their way to the async side.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) partition: Arc<Partition>,
    pub(super) records: VecDeque<Record>,
}

/// Whether a subscription was opened.
#[derive(Debug, Default)]
pub(super) enum Opening {
    #[default]
    Waiting,
    Open,
    Failed(Option<SubscribeError>),
}

/// How the last commits ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// Everything settled was committed.
    Clean,
    /// Not everything was; why.
    Uncommitted(Arc<str>),
}

/// The poll thread puts batches in and looks at the counts; the source takes batches out; settlements
/// count down. Locks are held for a few moves each, and never together.
pub(super) struct Shared {
    /// What may be fetched and not settled, of all partitions.
    bound: Bound,
    unsettled: Unsettled,
    /// How many partitions share the bound.
    partitions: AtomicUsize,
    /// How many records are handled at once.
    at_once: AtomicUsize,
    /// Bytes of the largest record that was fetched.
    largest: AtomicUsize,
    /// Whether something was given back since the source looked.
    returned: AtomicBool,
    inbox: Mutex<Inbox>,
    poller: OnceLock<Thread>,
    /// No further delivery.
    stopped: AtomicBool,
    /// Until when the source closes. `None`: open.
    closing: Mutex<Option<Instant>>,
    /// The topics there were when the subscription began, and how many partitions each had.
    pub(super) topics_at_start: OnceLock<HashMap<String, i32>>,
    /// Whether it was logged that the group refuses commit metadata.
    pub(super) refusal_logged: AtomicBool,
    pub(super) opening: watch::Sender<Opening>,
    pub(super) ending: watch::Sender<Option<Ending>>,
    pub(super) copies: Arc<Copies>,
}

#[derive(Default)]
struct Inbox {
    batches: VecDeque<Batch>,
    returned: Vec<(Arc<Partition>, Record)>,
    failure: Option<SourceError>,
    waker: Option<Waker>,
}

impl Shared {
    pub(super) fn new(cap: usize, byte_cap: usize, copies: Arc<Copies>) -> Self {
        Self {
            bound: Bound { records: cap, bytes: byte_cap },
            unsettled: Unsettled::default(),
            partitions: AtomicUsize::new(1),
            at_once: AtomicUsize::new(1),
            largest: AtomicUsize::new(0),
            returned: AtomicBool::new(false),
            inbox: Mutex::default(),
            poller: OnceLock::new(),
            stopped: AtomicBool::new(false),
            closing: Mutex::new(None),
            topics_at_start: OnceLock::new(),
            refusal_logged: AtomicBool::new(false),
            opening: watch::Sender::default(),
            ending: watch::Sender::default(),
            copies,
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whom to wake. Once, by the poll thread itself.
    pub(super) fn set_poller(&self, thread: Thread) {
        let _ = self.poller.set(thread);
    }

    /// Wakes the poll thread. Cheap while it is awake.
    pub(super) fn wake_poller(&self) {
        if let Some(thread) = self.poller.get() {
            thread.unpark();
        }
    }

    /// How many partitions share the bound from now on, while so many records are handled at once.
    pub(super) fn share_among(&self, partitions: usize, at_once: usize) {
        self.at_once.store(at_once, Ordering::Relaxed);
        self.partitions.store(partitions, Ordering::Relaxed);
    }

    /// What may be fetched of one partition and not settled.
    pub(super) fn share(&self) -> Bound {
        let at_once = self.at_once.load(Ordering::Relaxed);
        let largest = self.largest.load(Ordering::Relaxed);
        self.bound.share(self.partitions.load(Ordering::Relaxed), at_once, largest)
    }

    /// How many records of a partition may be fetched now. When none, a settlement that makes room wakes the
    /// poll thread.
    ///
    /// The bound of the subscription holds even for a partition that has none: one that is assigned while the
    /// others hold all gets what they settle beyond their new shares.
    pub(super) fn room(&self, partition: &Partition) -> usize {
        let share = partition.unsettled.room(self.share());
        if share == 0 { 0 } else { share.min(self.unsettled.room(self.bound)) }
    }

    /// Whether one more byte of a partition is too many.
    pub(super) fn is_heavy(&self, partition: &Partition, more: usize) -> bool {
        self.unsettled.is_heavy(self.bound, more)
            || partition.unsettled.is_heavy(self.share(), more)
    }

    /// Puts fetched records in, and wakes the source.
    pub(super) fn push(&self, partition: &Arc<Partition>, records: Vec<Record>) {
        let size = records.iter().map(Record::size).sum();
        let largest = records.iter().map(Record::size).max().unwrap_or_default();
        self.largest.fetch_max(largest, Ordering::Relaxed);
        self.unsettled.add(records.len(), size);
        partition.unsettled.add(records.len(), size);
        let batch = Batch { partition: Arc::clone(partition), records: records.into() };
        let mut inbox = self.inbox();
        inbox.batches.push_back(batch);
        let waker = inbox.waker.take();
        drop(inbox);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Records of a partition left: settled, or not ours any more.
    pub(super) fn forget(&self, partition: &Partition, records: usize, bytes: usize) {
        let wakes = self.unsettled.forget(self.bound, records, bytes);
        if partition.unsettled.forget(self.share(), records, bytes) || wakes {
            self.wake_poller();
        }
    }

    /// Takes back a delivery that was dropped.
    pub(super) fn give_back(&self, partition: Arc<Partition>, record: Record) {
        if partition.is_revoked() || self.is_stopped() {
            return self.forget(&partition, 1, record.size());
        }
        let mut inbox = self.inbox();
        inbox.returned.push((partition, record));
        self.returned.store(true, Ordering::Release);
        let waker = inbox.waker.take();
        drop(inbox);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Whether something was given back that was not taken out. Cheap.
    pub(super) fn has_returned(&self) -> bool {
        self.returned.load(Ordering::Acquire)
    }

    /// Takes out what was given back.
    pub(super) fn take_returned(&self) -> Vec<(Arc<Partition>, Record)> {
        let mut inbox = self.inbox();
        self.returned.store(false, Ordering::Release);
        std::mem::take(&mut inbox.returned)
    }

    /// Takes out what was fetched. `false`: nothing was; `waker` is woken once there is something to do.
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
        // Under the lock: what is given back, and a stop, from now on wake it.
        Ok(!inbox.returned.is_empty() || self.is_stopped())
    }

    /// Throws away what was fetched of partitions that are not ours any more.
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
            self.forget(&partition, records.len(), records.iter().map(Record::size).sum());
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// No further delivery; wakes the source, so that it says so.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        let waker = self.inbox().waker.take();
        waker.into_iter().for_each(Waker::wake);
        self.wake_poller();
    }

    /// The subscription cannot go on.
    pub(super) fn fail(&self, failure: SourceError) {
        let mut inbox = self.inbox();
        inbox.failure.get_or_insert(failure);
        let waker = inbox.waker.take();
        drop(inbox);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Ends the subscription within about that time, or an earlier call's.
    pub(super) fn close(&self, end: Instant) {
        self.stopped.store(true, Ordering::Release);
        let mut closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        *closing = Some(closing.map_or(end, |earlier| earlier.min(end)));
        drop(closing);
        self.wake_poller();
    }

    pub(super) fn closes_at(&self) -> Option<Instant> {
        *self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("bound", &self.bound)
            .field("unsettled", &self.unsettled)
            .finish_non_exhaustive()
    }
}
