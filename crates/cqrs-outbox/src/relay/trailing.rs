//! The ids below which no row can appear late, by time, for databases that show no snapshots; used by the
//! reads of the relay.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Between two marks. Fewer marks make a late read longer, never wrong.
const STEP: Duration = Duration::from_secs(1);

/// The lowest id of the rows that may have become visible below rows that were read already.
///
/// Ids are taken in order. So all ids up to one that a read has seen are older than that read: that pair is a
/// mark. Once it is older than the longest transaction, the rows below it are visible or will never be.
#[derive(Debug)]
pub(super) struct TrailingIds {
    /// The longest that a transaction may take from the id of its row to the commit. Rows that take longer are found
    /// by the next sweep.
    longest: Duration,
    /// (time after a read, the highest id read until then), both ascending.
    marks: VecDeque<(Instant, i64)>,
    /// The beginning of the last read.
    last: Option<Instant>,
}

impl TrailingIds {
    pub(super) fn new(longest: Duration) -> Self {
        Self { longest, marks: VecDeque::new(), last: None }
    }

    /// Forgets what was read: the database may be another one now, with other ids.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.longest);
    }

    /// A read ran from `began` to `ended`, and `highest` is the highest id that it brought. Rows above the
    /// returned id may be visible that the read before could not see.
    pub(super) fn observe(&mut self, began: Instant, ended: Instant, highest: Option<i64>) -> i64 {
        let last = self.last.replace(began).and_then(|last| last.checked_sub(self.longest));
        let above = last.map_or(i64::MIN, |bound| {
            let place = self.marks.iter().rposition(|(time, _)| *time <= bound);
            // Those before it are not needed again.
            self.marks.drain(..place.unwrap_or(0));
            place.map_or(i64::MIN, |_| self.marks[0].1)
        });
        let is_due = self.marks.back().is_none_or(|(time, _)| ended >= *time + STEP);
        if let Some(highest) = highest.filter(|_| is_due) {
            let before = self.marks.back().map_or(i64::MIN, |(_, highest)| *highest);
            self.marks.push_back((ended, highest.max(before)));
        }
        above
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(60);

    /// Reads once a second, each taking 10 ms; `ids` are the highest ones of the reads.
    fn read(trailing: &mut TrailingIds, start: Instant, seconds: u64, highest: Option<i64>) -> i64 {
        let began = start + Duration::from_secs(seconds);
        trailing.observe(began, began + Duration::from_millis(10), highest)
    }

    #[test]
    fn ids_older_than_the_longest_transaction_are_not_read_again() {
        let (mut trailing, start) = (TrailingIds::new(LONGEST), Instant::now());
        for second in 0..200_u64 {
            let id = i64::try_from(second).unwrap();
            let above = read(&mut trailing, start, second * 2, Some(id));
            // The read before began 2 s ago; what it could not see took its id at most 60 s before it.
            let expected = if second < 32 { i64::MIN } else { id - 32 };
            assert_eq!(above, expected, "{second}");
        }
        assert!(trailing.marks.len() < 35, "{}", trailing.marks.len());
    }

    #[test]
    fn pause_between_reads_is_covered() {
        let (mut trailing, start) = (TrailingIds::new(LONGEST), Instant::now());
        read(&mut trailing, start, 0, Some(7));
        read(&mut trailing, start, 1, Some(9));
        // A row below 9 may have become visible at any time since the last read.
        assert_eq!(read(&mut trailing, start, 1_000, None), i64::MIN);
        assert_eq!(read(&mut trailing, start, 1_001, None), 9);
        trailing.clear();
        assert_eq!(read(&mut trailing, start, 1_002, None), i64::MIN);
    }
}
