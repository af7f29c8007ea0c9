//! One assigned partition's queue of fetched records.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rdkafka::consumer::base_consumer::{BaseConsumer, PartitionQueue};
use rdkafka::message::BorrowedMessage;

use super::context::Context;
use super::partition::Partition;
use super::record::{Copier, Record};
use super::shared::Shared;

/// Records that are taken from one partition before the next one's turn.
pub(super) const BATCH: usize = 256;

/// librdkafka keeps what it fetched of a partition in a queue of its own. What is not taken out stays
/// there, and nothing is fetched beyond the limits: so a partition is paused by not looking, and
/// resumed without fetching anything twice.
pub(super) struct Lane {
    pub(super) partition: Arc<Partition>,
    queue: PartitionQueue<Context>,
    copier: Copier,
    /// A retry copy whose time has not come.
    head: Option<(Record, SystemTime)>,
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
        Some(Self { partition, queue, copier: Copier::default(), head: None })
    }

    /// When the head is due, if it waits.
    pub(super) fn due(&self) -> Option<SystemTime> {
        self.head.as_ref().map(|(_, due)| *due)
    }

    /// Hands out up to `room` records. `true`: there may be more.
    pub(super) fn pump(&mut self, shared: &Shared, room: usize) -> bool {
        let room = room.min(BATCH);
        let mut records = Vec::new();
        let (mut bytes, mut more) = (0, true);
        while records.len() < room && !shared.is_heavy(bytes) {
            let Some(record) = self.next() else {
                more = false;
                break;
            };
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
    pub(super) fn accept(&mut self, shared: &Shared, message: &BorrowedMessage<'_>) {
        let record = self.copier.copy(message);
        self.hand_out(shared, vec![record]);
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
        let now = || SystemTime::now();
        if let Some((record, due)) = self.head.take() {
            if due > now() {
                self.head = Some((record, due));
                return None;
            }
            return Some(record);
        }
        // Errors of a partition come through the callbacks, too.
        let message = self.queue.poll(Duration::ZERO)?.ok()?;
        let record = self.copier.copy(&message);
        if self.partition.is_retry
            && let Some(due) = record.due()
            && due > now()
        {
            self.head = Some((record, due));
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
