//! One assigned partition's queue of fetched records.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rdkafka::consumer::base_consumer::{BaseConsumer, PartitionQueue};
use rdkafka::message::BorrowedMessage;

use super::context::Context;
use super::partition::Partition;
use super::record::Record;
use super::shared::Shared;

/// Records that are taken from one partition before the next one's turn.
pub(super) const BATCH: usize = 256;

/// librdkafka keeps what it fetched of a partition in a queue of its own. What is not taken out stays
/// there, and nothing is fetched beyond the limits: so a partition is paused by not looking, and
/// resumed without fetching anything twice.
pub(super) struct Lane {
    pub(super) partition: Arc<Partition>,
    queue: PartitionQueue<Context>,
    /// A record that was taken out and may not be handed out yet: a retry copy whose time has not come,
    /// or one behind the fence.
    head: Option<Record>,
    /// When the head is due, if it waits for that.
    due: Option<SystemTime>,
    /// The record that is handed out next, when the fence is to be moved.
    wanted: Option<i64>,
    /// Where the fence was moved to. It holds once that is committed.
    asked: i64,
    step: i64,
    moved: Instant,
    /// How far the fence may be ahead of suspects, and where those end.
    stride: Option<(i64, i64)>,
    /// Until where its records are handed out alone, if they are.
    pub(super) suspects_until: Option<i64>,
}

/// How many records lie between the fence and the next record, at least and at most: few, so that there
/// are few suspects after a crash, unless the fence would have to be moved all the time.
const STEPS: (i64, i64) = (256, 65_536);
/// A fence that is moved again within this time is moved farther.
const SOON: Duration = Duration::from_millis(100);
/// A fence that stood longer is moved less far.
const LONG: Duration = Duration::from_secs(1);

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
            suspects_until: partition.alone_until(),
            stride: partition.stride(),
            partition,
            queue,
            head: None,
            due: None,
            wanted: None,
            asked: 0,
            step: STEPS.0,
            moved: Instant::now(),
        })
    }

    /// When the head is due, if it waits for that.
    pub(super) fn due(&self) -> Option<SystemTime> {
        self.due
    }

    /// Whether the fence is to be moved, or its move to be committed.
    pub(super) fn wants_fence(&self) -> bool {
        let waits = || self.head.as_ref().is_some_and(|head| head.offset >= self.partition.fence());
        self.wanted.is_some() || (self.due.is_none() && self.suspects_until.is_none() && waits())
    }

    /// Moves the fence, if it is to be moved.
    pub(super) fn move_fence(&mut self) {
        let Some(next) = self.wanted.take() else { return };
        let stood = self.moved.elapsed();
        if stood < SOON {
            self.step = (self.step * 2).min(STEPS.1);
        } else if stood > LONG {
            self.step = (self.step / 2).max(STEPS.0);
        }
        self.moved = Instant::now();
        match self.stride {
            Some((stride, until)) if next < until => self.step = stride,
            Some(_) => (self.stride, self.step) = (None, STEPS.0),
            None => {}
        }
        self.asked = next.saturating_add(self.step);
        self.partition.move_fence(self.asked);
    }

    /// Hands out up to `room` records. `true`: there may be more.
    pub(super) fn pump(&mut self, shared: &Shared, room: usize) -> bool {
        let room = room.min(BATCH);
        let fence = self.partition.fence();
        let mut records = Vec::new();
        let (mut bytes, mut more) = (0, true);
        while records.len() < room && !shared.is_heavy(bytes) {
            let Some(record) = self.next() else {
                more = false;
                break;
            };
            // Moved before it is reached, so that nothing waits for it.
            if record.offset >= self.asked - self.step / 2 {
                self.partition.begin_at(record.offset);
                self.wanted = Some(record.offset);
            }
            if record.offset >= fence {
                self.head = Some(record);
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

    /// Hands out one record, past the fence.
    pub(super) fn hand_out_one(&self, shared: &Shared, record: Record) {
        self.hand_out(shared, vec![record]);
    }

    /// Gives back what [`next`](Self::next) took out last.
    pub(super) fn put_back(&mut self, record: Record) {
        self.head = Some(record);
    }

    /// Takes a record that came on another way.
    pub(super) fn accept(&mut self, shared: &Shared, message: &BorrowedMessage<'_>) {
        self.hand_out(shared, vec![Record::copy(message)]);
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

    /// The next record whose time has come.
    pub(super) fn next(&mut self) -> Option<Record> {
        self.due = None;
        let record = match self.head.take() {
            Some(record) => record,
            // Errors of a partition come through the callbacks, too.
            None => Record::copy(&self.queue.poll(Duration::ZERO)?.ok()?),
        };
        if self.partition.is_retry
            && let Some(due) = record.due()
            && due > SystemTime::now()
        {
            self.due = Some(due);
            self.head = Some(record);
            return None;
        }
        Some(record)
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("partition", &self.partition).finish_non_exhaustive()
    }
}
