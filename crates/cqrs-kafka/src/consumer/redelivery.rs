//! Dropped deliveries until their redelivery. Part of the [`source`](super::source).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::partition::Partition;
use super::record::Record;

/// The wait before the redelivery of a record that was dropped once; doubled for each further drop.
const BACKOFF: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(5);

/// Dropped deliveries by key. Those of one key are redelivered together, in order; other records of the key that would
/// be delivered meanwhile wait behind them. A record without a key waits alone.
#[derive(Debug, Default)]
pub(super) struct Redelivery {
    waiting: HashMap<RedeliveryKey, Waiting>,
    /// Records whose wait is over.
    due: VecDeque<(Arc<Partition>, Record)>,
}

/// A partition (by the address of its value), and the record's key, or its offset if it has none.
#[derive(Debug, PartialEq, Eq, Hash)]
enum RedeliveryKey {
    Key(usize, Bytes),
    Offset(usize, i64),
}

#[derive(Debug)]
struct Waiting {
    partition: Arc<Partition>,
    records: BTreeMap<i64, Record>,
    due: Instant,
}

impl RedeliveryKey {
    fn of(partition: &Arc<Partition>, record: &Record) -> Self {
        let address = Arc::as_ptr(partition).addr();
        match record.key() {
            Some(key) => Self::Key(address, key),
            None => Self::Offset(address, record.offset),
        }
    }
}

impl Redelivery {
    /// Returns whether no record waits: the usual case.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.due.is_empty()
    }

    /// Adds a dropped delivery.
    pub(super) fn put(&mut self, partition: Arc<Partition>, record: Record, now: Instant) {
        let exponent = record.drops.saturating_sub(1).min(16);
        let due = now + BACKOFF.saturating_mul(1 << exponent).min(LONGEST);
        // Records of its key that are due wait with it.
        if record.key().is_some() {
            let key = RedeliveryKey::of(&partition, &record);
            let (same, rest) =
                self.due.drain(..).partition(|(of, other)| RedeliveryKey::of(of, other) == key);
            self.due = rest;
            let same: VecDeque<_> = same;
            for (of, other) in same {
                self.wait(of, other, due);
            }
        }
        self.wait(partition, record, due);
    }

    fn wait(&mut self, partition: Arc<Partition>, record: Record, due: Instant) {
        let key = RedeliveryKey::of(&partition, &record);
        let waiting = self.waiting.entry(key).or_insert_with(|| Waiting {
            partition,
            records: BTreeMap::new(),
            due,
        });
        waiting.due = waiting.due.max(due);
        waiting.records.insert(record.offset, record);
    }

    /// Returns the record if no record of its key waits, else keeps it behind them.
    pub(super) fn pass(&mut self, partition: &Arc<Partition>, record: Record) -> Option<Record> {
        if self.waiting.is_empty() || record.key().is_none() {
            return Some(record);
        }
        match self.waiting.get_mut(&RedeliveryKey::of(partition, &record)) {
            Some(waiting) => {
                waiting.records.insert(record.offset, record);
                None
            }
            None => Some(record),
        }
    }

    /// The next record that is due.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Arc<Partition>, Record)> {
        if self.due.is_empty() {
            let due = &mut self.due;
            self.waiting.retain(|_, waiting| {
                if waiting.due > now {
                    return true;
                }
                let records = std::mem::take(&mut waiting.records).into_values();
                due.extend(records.map(|record| (Arc::clone(&waiting.partition), record)));
                false
            });
        }
        self.due.pop_front()
    }

    /// The time at which the next record is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.due).min()
    }

    /// Takes out all records.
    pub(super) fn clear(&mut self) -> Vec<(Arc<Partition>, Record)> {
        let of = |waiting: Waiting| {
            let Waiting { partition, records, .. } = waiting;
            records.into_values().map(move |record| (Arc::clone(&partition), record))
        };
        let waiting = self.waiting.drain().flat_map(|(_, waiting)| of(waiting));
        waiting.chain(self.due.drain(..)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::offset_tracker::{OffsetTracker, Takeover};
    use super::super::quarantine::QuarantineOptions;
    use super::*;

    fn partition() -> Arc<Partition> {
        let tracker = OffsetTracker::new(Takeover::default(), QuarantineOptions::off());
        Arc::new(Partition::new(Arc::default(), "t".into(), 0, false, tracker))
    }

    fn dropped(offset: i64, key: Option<&str>) -> Record {
        let mut record = Record::of(offset, key, &[]);
        record.drops = 1;
        record
    }

    #[test]
    fn key_is_redelivered_in_order_before_newer_records() {
        let (mut redelivery, here, start) = (Redelivery::default(), partition(), Instant::now());
        redelivery.put(Arc::clone(&here), dropped(6, Some("a")), start);
        redelivery.put(Arc::clone(&here), dropped(5, Some("a")), start);
        assert!(redelivery.pass(&here, dropped(7, Some("a"))).is_none(), "behind the others");
        assert!(redelivery.pass(&here, dropped(8, Some("b"))).is_some());
        assert!(redelivery.pass(&here, dropped(9, None)).is_some());
        assert!(redelivery.next(start).is_none(), "not at once");
        assert_eq!(redelivery.next_due(), Some(start + BACKOFF));
        let later = start + BACKOFF;
        let offsets: Vec<_> = std::iter::from_fn(|| redelivery.next(later))
            .map(|(_, record)| record.offset)
            .collect();
        assert_eq!(offsets, [5, 6, 7]);
        assert!(redelivery.is_empty());
    }

    #[test]
    fn second_drop_delays_the_rest_of_its_key() {
        let (mut redelivery, here, start) = (Redelivery::default(), partition(), Instant::now());
        for offset in [1, 2] {
            redelivery.put(Arc::clone(&here), dropped(offset, Some("a")), start);
        }
        let later = start + BACKOFF;
        let (_, mut first) = redelivery.next(later).unwrap();
        first.drops = 2;
        redelivery.put(Arc::clone(&here), first, later);
        assert!(redelivery.next(later).is_none(), "2 waits behind 1");
        let last = later + 2 * BACKOFF;
        assert_eq!(redelivery.next(last).unwrap().1.offset, 1);
        assert_eq!(redelivery.next(last).unwrap().1.offset, 2);
    }

    #[test]
    fn wait_grows_up_to_its_limit() {
        let (mut redelivery, here, start) = (Redelivery::default(), partition(), Instant::now());
        let mut often = dropped(1, None);
        often.drops = 1_000;
        redelivery.put(Arc::clone(&here), often, start);
        assert_eq!(redelivery.next_due(), Some(start + LONGEST));
        assert_eq!(redelivery.clear().len(), 1);
        assert!(redelivery.is_empty());
    }
}
