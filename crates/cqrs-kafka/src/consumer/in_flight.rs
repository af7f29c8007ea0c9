//! The bound on records in flight (fetched and not settled): of one subscription, or of one of its partitions.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The records in flight.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    records: AtomicUsize,
    bytes: AtomicUsize,
    /// Set if the poll thread waits for room.
    starving: AtomicBool,
}

/// The largest number of records and bytes in flight. One record may exceed the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl Bound {
    /// The share of each of `partitions`, so that all together do not exceed the bound. A share has room for at least
    /// the records handled at once, each as large as `largest`, within an eighth of the bytes.
    pub(super) fn share(self, partitions: usize, at_once: usize, largest: usize) -> Self {
        let partitions = partitions.max(1);
        let floor = at_once.saturating_mul(largest).min(self.bytes / 8);
        Self {
            records: (self.records / partitions).max(at_once.min(self.records)).max(1),
            bytes: (self.bytes / partitions).max(floor).max(1),
        }
    }
}

impl InFlight {
    /// The number of records that may be fetched now. After a 0, [`forget`](Self::forget) returns when there is room.
    pub(super) fn room(&self, bound: Bound) -> usize {
        let room = || match self.bytes.load(Ordering::SeqCst) < bound.bytes {
            true => bound.records.saturating_sub(self.records.load(Ordering::SeqCst)),
            false => 0,
        };
        match room() {
            0 => {
                self.starving.store(true, Ordering::SeqCst);
                // A settlement just before the store did not see it.
                room()
            }
            some => some,
        }
    }

    /// Returns whether `more` bytes fill the bound.
    pub(super) fn is_heavy(&self, bound: Bound, more: usize) -> bool {
        self.bytes.load(Ordering::Relaxed) + more >= bound.bytes
    }

    pub(super) fn add(&self, records: usize, bytes: usize) {
        self.records.fetch_add(records, Ordering::SeqCst);
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Records are settled, or revoked. `true`: the poll thread is to be woken.
    pub(super) fn forget(&self, bound: Bound, records: usize, bytes: usize) -> bool {
        let left = self.records.fetch_sub(records, Ordering::SeqCst) - records;
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        // Only once a quarter is free: else the poll thread would wake for each settled record.
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
        let (bound, in_flight) = (Bound { records: 8, bytes: 100 }, InFlight::default());
        assert_eq!(in_flight.room(bound), 8);
        in_flight.add(8, 8);
        assert_eq!(in_flight.room(bound), 0);
        assert!(!in_flight.forget(bound, 1, 1));
        assert!(in_flight.forget(bound, 1, 1) && !in_flight.forget(bound, 1, 1), "once");
        in_flight.add(1, 99);
        assert_eq!(in_flight.room(bound), 0, "its bytes are full");
        assert!(in_flight.is_heavy(bound, 0) && !InFlight::default().is_heavy(bound, 99));
    }
}
