//! One assigned partition's queue of fetched records.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rdkafka::consumer::base_consumer::{BaseConsumer, PartitionQueue};
use rdkafka::message::BorrowedMessage;

use super::context::Context;
use super::partition::Partition;
use super::quarantine;
use super::record::{Copier, Record};
use super::shared::Shared;

/// Records that are taken from one partition before the next one's turn.
pub(super) const BATCH: usize = 256;

/// librdkafka keeps what it fetched of a partition in a queue of its own. What is not taken out stays
/// there, and nothing is fetched beyond the limits: so a partition is paused by not looking, and
/// resumed without fetching anything twice.
///
/// Nothing is handed out before the takeover commit; after an unclean end some records wait for further
/// commits ([`quarantine`]).
pub(super) struct Lane {
    pub(super) partition: Arc<Partition>,
    queue: PartitionQueue<Context>,
    copier: Copier,
    head: Option<Head>,
    /// Records that came on another way.
    strayed: VecDeque<Record>,
    /// Since when its bound is full.
    pub(super) full_since: Option<Instant>,
    /// Whether there is something to commit at once.
    pub(super) is_urgent: bool,
}

/// The next record, when it has to wait.
struct Head {
    record: Record,
    /// Until when a retry copy waits; `None`: until it is granted.
    due: Option<SystemTime>,
}

impl Lane {
    /// To be made before the partition is assigned: records of before would go elsewhere.
    pub(super) fn new(
        consumer: &Arc<BaseConsumer<Context>>,
        partition: Arc<Partition>,
    ) -> Option<Self> {
        let mut queue = consumer.split_partition_queue(&partition.topic, partition.id)?;
        let shared = Arc::clone(&partition.shared);
        queue.set_nonempty_callback(move || shared.wake_poller());
        Some(Self {
            partition,
            queue,
            copier: Copier::default(),
            head: None,
            full_since: None,
            strayed: VecDeque::new(),
            // The takeover commit.
            is_urgent: true,
        })
    }

    /// The assignment ends: no handler starts any more.
    pub(super) fn end(self) -> Arc<Partition> {
        self.partition.revoke();
        self.partition
    }

    /// When the head is due, if it waits for that.
    pub(super) fn due(&self) -> Option<SystemTime> {
        self.head.as_ref()?.due
    }

    /// Goes on with the quarantine, if there is one; `has_room`: more may be handed out; `all` is what the
    /// handlers of the subscription do.
    pub(super) fn look(&mut self, has_room: bool, all: quarantine::Activity, now: Instant) {
        if !self.partition.is_careful() {
            return;
        }
        let head = self.head.as_ref().filter(|head| has_room && head.due.is_none());
        let head = head.map(|Head { record, .. }| quarantine::Head {
            offset: record.offset,
            key: record.key(),
        });
        self.is_urgent |= self.partition.advance(head.as_ref(), all, now);
    }

    /// Up to where everything was taken over to the partition, by what librdkafka says was taken out.
    pub(super) fn pass(&self, position: i64) {
        if self.head.is_none() && self.strayed.is_empty() {
            self.partition.pass(position);
        }
    }

    /// Hands out up to `room` records. `true`: there may be more.
    pub(super) fn pump(&mut self, shared: &Shared, room: usize) -> bool {
        let room = room.min(BATCH);
        let granted = self.partition.granted();
        let mut records = Vec::new();
        let (mut bytes, mut more) = (0, true);
        while records.len() < room && !shared.is_heavy(&self.partition, bytes) {
            let Some(record) = self.next() else {
                more = false;
                break;
            };
            if record.offset >= granted && !self.partition.was_done(record.offset) {
                self.head = Some(Head { record, due: None });
                more = false;
                break;
            }
            bytes += record.size();
            if records.capacity() == 0 {
                records.reserve(room);
            }
            records.push(record);
        }
        self.hand_out(shared, records);
        more
    }

    /// Takes a record that came on another way.
    pub(super) fn accept(&mut self, message: &BorrowedMessage<'_>) {
        let record = self.copier.copy(message);
        self.strayed.push_back(record);
    }

    fn hand_out(&self, shared: &Shared, mut records: Vec<Record>) {
        if records.is_empty() {
            return;
        }
        self.partition.add(&mut records);
        if !records.is_empty() {
            shared.push(&self.partition, records);
        }
    }

    fn next(&mut self) -> Option<Record> {
        let Head { record, due } = match self.head.take() {
            Some(head) => head,
            None => {
                let record = self.fetched()?;
                let due = if self.partition.is_retry { record.due() } else { None };
                Head { record, due }
            }
        };
        if due.is_some_and(|due| due > SystemTime::now()) {
            self.head = Some(Head { record, due });
            return None;
        }
        Some(record)
    }

    fn fetched(&mut self) -> Option<Record> {
        self.strayed.pop_front().or_else(|| {
            // Errors of a partition come through the callbacks, too.
            let message = self.queue.poll(Duration::ZERO)?.ok()?;
            Some(self.copier.copy(&message))
        })
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("partition", &self.partition).finish_non_exhaustive()
    }
}
