//! The queue of fetched records of one assigned partition. Owned by the [`session`](super::session), which takes
//! records out of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rdkafka::consumer::base_consumer::{BaseConsumer, PartitionQueue as ClientQueue};

use super::context::Context;
use super::copier::Copier;
use super::in_flight::Bound;
use super::partition::Partition;
use super::poller::Poller;
use super::quarantine::{Activity, NextRecord};
use super::record::Record;
use super::subscription_state::SubscriptionState;

/// Records that are taken from one partition before the next partition is polled.
pub(super) const BATCH: usize = 256;

/// librdkafka keeps the fetched records of a partition in a queue, and stops fetching at its limits. So a partition is
/// paused by not polling its queue, and resumed without fetching anything twice.
///
/// Nothing is delivered before the takeover commit. After an unclean end some records wait for further commits
/// ([`quarantine`](super::quarantine)).
pub(super) struct PartitionQueue {
    pub(super) partition: Arc<Partition>,
    fetched: ClientQueue<Context>,
    waiting: Option<WaitingRecord>,
    /// Records that librdkafka returned by its common queue.
    misrouted: VecDeque<Record>,
    /// The time since when its bound is full.
    pub(super) full_since: Option<Instant>,
    /// Set if a commit is urgent.
    pub(super) is_urgent: bool,
}

/// The next record, which cannot be delivered yet.
struct WaitingRecord {
    record: Record,
    /// The time until which a retry copy waits. `None`: it waits for the delivery limit.
    due: Option<SystemTime>,
}

impl PartitionQueue {
    /// To be made before the partition is assigned: earlier records would go to the common queue.
    pub(super) fn new(
        consumer: &Arc<BaseConsumer<Context>>,
        partition: Arc<Partition>,
        poller: Arc<Poller>,
    ) -> Option<Self> {
        let mut fetched = consumer.split_partition_queue(&partition.topic, partition.id)?;
        fetched.set_nonempty_callback(move || poller.wake());
        Some(Self {
            partition,
            fetched,
            waiting: None,
            full_since: None,
            misrouted: VecDeque::new(),
            // The takeover commit.
            is_urgent: true,
        })
    }

    /// Ends the assignment: no handler starts any more.
    pub(super) fn end(self) -> Arc<Partition> {
        self.partition.revoke();
        self.partition
    }

    /// The time at which the next record is due, if it waits for that.
    pub(super) fn due(&self) -> Option<SystemTime> {
        self.waiting.as_ref()?.due
    }

    /// Advances the quarantine, if there is one. `has_room`: more records may be delivered; `all` is the activity of
    /// the subscription.
    pub(super) fn advance(&mut self, has_room: bool, all: Activity, now: Instant) {
        if !self.partition.is_limited() {
            return;
        }
        let next = self.waiting.as_ref().filter(|next| has_room && next.due.is_none());
        let next = next.map(|WaitingRecord { record, .. }| NextRecord {
            offset: record.offset,
            key: record.key(),
        });
        let mut tracker = self.partition.tracker();
        let running = self.partition.running();
        self.is_urgent |= tracker.advance(next.as_ref(), running, all, now);
    }

    /// All records before `position` were taken out of the queue, by librdkafka's account.
    pub(super) fn pass(&self, position: i64) {
        if self.waiting.is_none() && self.misrouted.is_empty() {
            self.partition.tracker().pass(position);
        }
    }

    /// Delivers records to the source, as far as there is `room`. `true`: there may be more.
    pub(super) fn deliver(
        &mut self,
        state: &SubscriptionState,
        copier: &mut Copier,
        room: Bound,
    ) -> bool {
        let most = room.records.min(BATCH);
        let limit = self.partition.delivery_limit();
        let mut records = Vec::new();
        let (mut bytes, mut more) = (0, true);
        while records.len() < most && bytes < room.bytes {
            let Some(record) = self.next(copier) else {
                more = false;
                break;
            };
            if record.offset >= limit && !self.partition.tracker().was_done(record.offset) {
                self.waiting = Some(WaitingRecord { record, due: None });
                more = false;
                break;
            }
            bytes += record.size();
            if records.capacity() == 0 {
                records.reserve(most);
            }
            records.push(record);
        }
        if !records.is_empty() {
            let mut tracker = self.partition.tracker();
            records.retain(|record| tracker.add(record.offset));
        }
        if !records.is_empty() {
            state.push(&self.partition, records);
        }
        more
    }

    /// Takes a record that librdkafka returned by its common queue.
    pub(super) fn accept(&mut self, record: Record) {
        self.misrouted.push_back(record);
    }

    /// The next record, unless it is not due yet.
    #[inline]
    fn next(&mut self, copier: &mut Copier) -> Option<Record> {
        // Most records come straight out of the client's queue: each move of one is a copy.
        if self.waiting.is_none() && self.misrouted.is_empty() && !self.partition.is_retry {
            return self.poll(copier);
        }
        let WaitingRecord { record, due } = match self.waiting.take() {
            Some(waiting) => waiting,
            None => {
                let record = self.misrouted.pop_front().or_else(|| self.poll(copier))?;
                let due = if self.partition.is_retry { record.due() } else { None };
                WaitingRecord { record, due }
            }
        };
        if due.is_some_and(|due| due > SystemTime::now()) {
            self.waiting = Some(WaitingRecord { record, due });
            return None;
        }
        Some(record)
    }

    /// The next fetched record. Errors of a partition come through the callbacks, too.
    #[inline]
    fn poll(&self, copier: &mut Copier) -> Option<Record> {
        let message = self.fetched.poll(Duration::ZERO)?.ok()?;
        Some(copier.copy(&message))
    }
}
