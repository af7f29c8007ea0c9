//! The bound on records that are fetched and not settled: counts of the subscription, or of one partition.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What one bound counts.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    records: AtomicUsize,
    bytes: AtomicUsize,
    /// Whether the poll thread waits for room.
    starving: AtomicBool,
}

/// At most so many records and bytes. One more record may come on top of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl Bound {
    /// The fair share of each of `partitions`, so that all of them together never exceed the bound; but at
    /// least the records that are handled at once, each as large as `largest`, in an eighth of the bytes.
    pub(super) fn share(self, partitions: usize, at_once: usize, largest: usize) -> Self {
        let partitions = partitions.max(1);
        let floor = at_once.saturating_mul(largest).min(self.bytes / 8);
        Self {
            records: (self.records / partitions).max(at_once.min(self.records)).max(1),
            bytes: (self.bytes / partitions).max(floor).max(1),
        }
    }
}

impl Unsettled {
    /// How many records may be fetched now. When none, [`forget`](Self::forget) says when there is room.
    pub(super) fn room(&self, bound: Bound) -> usize {
        let room = || match self.bytes.load(Ordering::SeqCst) < bound.bytes {
            true => bound.records.saturating_sub(self.records.load(Ordering::SeqCst)),
            false => 0,
        };
        match room() {
            0 => {
                self.starving.store(true, Ordering::SeqCst);
                // What was settled right before said nothing.
                room()
            }
            some => some,
        }
    }

    /// Whether `more` bytes fill the bound.
    pub(super) fn is_heavy(&self, bound: Bound, more: usize) -> bool {
        self.bytes.load(Ordering::Relaxed) + more >= bound.bytes
    }

    pub(super) fn add(&self, records: usize, bytes: usize) {
        self.records.fetch_add(records, Ordering::SeqCst);
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Records are settled, or not ours any more. `true`: the poll thread is to be woken.
    pub(super) fn forget(&self, bound: Bound, records: usize, bytes: usize) -> bool {
        let left = self.records.fetch_sub(records, Ordering::SeqCst) - records;
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        // Not for every single one: the poll thread would wake as often as a record is settled.
        self.starving.load(Ordering::SeqCst)
            && left <= bound.records.saturating_sub((bound.records / 4).max(1))
            && self.starving.swap(false, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_all_partitions_fit_into_the_bound() {
        let all = Bound { records: 10_000, bytes: 64 << 20 };
        for partitions in [1, 2, 3, 12, 999] {
            let share = all.share(partitions, 10, 0);
            assert!(share.records * partitions <= all.records && share.records > 0);
            assert!(share.bytes * partitions <= all.bytes && share.bytes > 0);
        }
        assert_eq!(all.share(0, 1, 0), all);
        assert_eq!(all.share(999, 64, 0).records, 64, "handled at once");
        assert_eq!(all.share(1 << 40, 1, 0), Bound { records: 1, bytes: 1 }, "each goes on");
        assert_eq!(all.share(999, 2, 1 << 20).bytes, 2 << 20, "two large records at once");
        assert_eq!(all.share(999, 64, 1 << 20).bytes, 8 << 20, "an eighth at most");
    }

    #[test]
    fn full_bound_wakes_once_a_quarter_is_free() {
        let (bound, unsettled) = (Bound { records: 8, bytes: 100 }, Unsettled::default());
        assert_eq!(unsettled.room(bound), 8);
        unsettled.add(8, 8);
        assert_eq!(unsettled.room(bound), 0);
        assert!(!unsettled.forget(bound, 1, 1));
        assert!(unsettled.forget(bound, 1, 1) && !unsettled.forget(bound, 1, 1), "once");
        unsettled.add(1, 99);
        assert_eq!(unsettled.room(bound), 0, "its bytes are full");
        assert!(unsettled.is_heavy(bound, 0) && !Unsettled::default().is_heavy(bound, 99));
    }
}
