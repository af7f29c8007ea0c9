//! Deliveries that were dropped, until they are handed out again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::partition::Partition;
use super::record::Record;

/// The wait before a delivery that was dropped once is handed out again; doubled for each further time.
const BACKOFF: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(5);

/// Dropped deliveries by their keys. Those of one key come again together, in order; whatever of the
/// key would be handed out meanwhile joins them. A record without a key waits alone.
#[derive(Debug, Default)]
pub(super) struct Again {
    lanes: HashMap<Lane, Waiting>,
    /// Their time has come.
    due: VecDeque<(Arc<Partition>, Record)>,
}

/// A partition (by the address of its value) with a key, or an offset where there is none.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Lane {
    Key(usize, Bytes),
    Offset(usize, i64),
}

#[derive(Debug)]
struct Waiting {
    partition: Arc<Partition>,
    records: BTreeMap<i64, Record>,
    due: Instant,
}

impl Lane {
    fn of(partition: &Arc<Partition>, record: &Record) -> Self {
        let address = Arc::as_ptr(partition).addr();
        match record.key() {
            Some(key) => Self::Key(address, key),
            None => Self::Offset(address, record.offset),
        }
    }
}

impl Again {
    /// Whether nothing waits: the usual case.
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty() && self.due.is_empty()
    }

    /// Takes a delivery that was dropped.
    pub(super) fn put(&mut self, partition: Arc<Partition>, record: Record, now: Instant) {
        let exponent = record.drops.saturating_sub(1).min(16);
        let due = now + BACKOFF.saturating_mul(1 << exponent).min(LONGEST);
        // One of the key that is about to come again waits with it.
        if record.key().is_some() {
            let lane = Lane::of(&partition, &record);
            let (same, rest) =
                self.due.drain(..).partition(|(of, other)| Lane::of(of, other) == lane);
            self.due = rest;
            let same: VecDeque<_> = same;
            for (of, other) in same {
                self.wait(of, other, due);
            }
        }
        self.wait(partition, record, due);
    }

    fn wait(&mut self, partition: Arc<Partition>, record: Record, due: Instant) {
        let lane = Lane::of(&partition, &record);
        let waiting = self.lanes.entry(lane).or_insert_with(|| Waiting {
            partition,
            records: BTreeMap::new(),
            due,
        });
        waiting.due = waiting.due.max(due);
        waiting.records.insert(record.offset, record);
    }

    /// Gives the record back when nothing of its key waits, else keeps it behind the others.
    pub(super) fn pass(&mut self, partition: &Arc<Partition>, record: Record) -> Option<Record> {
        if self.lanes.is_empty() || record.key().is_none() {
            return Some(record);
        }
        match self.lanes.get_mut(&Lane::of(partition, &record)) {
            Some(waiting) => {
                waiting.records.insert(record.offset, record);
                None
            }
            None => Some(record),
        }
    }

    /// The next one whose time has come.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Arc<Partition>, Record)> {
        if self.due.is_empty() {
            let due = &mut self.due;
            self.lanes.retain(|_, waiting| {
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

    /// When the next one's time comes.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.lanes.values().map(|waiting| waiting.due).min()
    }

    /// Takes everything out.
    pub(super) fn clear(&mut self) -> Vec<(Arc<Partition>, Record)> {
        let of = |waiting: Waiting| {
            let Waiting { partition, records, .. } = waiting;
            records.into_values().map(move |record| (Arc::clone(&partition), record))
        };
        let waiting = self.lanes.drain().flat_map(|(_, waiting)| of(waiting));
        waiting.chain(self.due.drain(..)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::copies::{Copies, CopyProducers};
    use super::super::ledger::{Ledger, Takeover};
    use super::super::quarantine::Rule;
    use super::super::shared::Shared;
    use super::*;
    use crate::config::KafkaConfig;

    fn partition() -> Arc<Partition> {
        let link = Arc::new(CopyProducers::new(&KafkaConfig::new(["localhost:1"])));
        let shared = Arc::new(Shared::new(10, 1_000, Arc::new(Copies::new(link, None))));
        let ledger = Ledger::new(Takeover::default(), Rule::off());
        Arc::new(Partition::new(shared, "t".into(), 0, false, ledger))
    }

    fn dropped(offset: i64, key: Option<&str>) -> Record {
        let mut record = Record::of(offset, key, &[]);
        record.drops = 1;
        record
    }

    #[test]
    fn a_key_comes_again_in_order_and_nothing_overtakes_it() {
        let (mut again, here, start) = (Again::default(), partition(), Instant::now());
        again.put(Arc::clone(&here), dropped(6, Some("a")), start);
        again.put(Arc::clone(&here), dropped(5, Some("a")), start);
        assert!(again.pass(&here, dropped(7, Some("a"))).is_none(), "behind the others");
        assert!(again.pass(&here, dropped(8, Some("b"))).is_some());
        assert!(again.pass(&here, dropped(9, None)).is_some());
        assert!(again.next(start).is_none(), "not at once");
        assert_eq!(again.next_due(), Some(start + BACKOFF));
        let later = start + BACKOFF;
        let offsets: Vec<_> =
            std::iter::from_fn(|| again.next(later)).map(|(_, record)| record.offset).collect();
        assert_eq!(offsets, [5, 6, 7]);
        assert!(again.is_empty());
    }

    #[test]
    fn one_that_is_dropped_again_holds_back_the_rest_of_its_key() {
        let (mut again, here, start) = (Again::default(), partition(), Instant::now());
        for offset in [1, 2] {
            again.put(Arc::clone(&here), dropped(offset, Some("a")), start);
        }
        let later = start + BACKOFF;
        let (_, mut first) = again.next(later).unwrap();
        first.drops = 2;
        again.put(Arc::clone(&here), first, later);
        assert!(again.next(later).is_none(), "2 waits behind 1");
        let last = later + 2 * BACKOFF;
        assert_eq!(again.next(last).unwrap().1.offset, 1);
        assert_eq!(again.next(last).unwrap().1.offset, 2);
    }

    #[test]
    fn the_wait_grows_and_ends() {
        let (mut again, here, start) = (Again::default(), partition(), Instant::now());
        let mut often = dropped(1, None);
        often.drops = 1_000;
        again.put(Arc::clone(&here), often, start);
        assert_eq!(again.next_due(), Some(start + LONGEST));
        assert_eq!(again.clear().len(), 1);
        assert!(again.is_empty());
    }
}
