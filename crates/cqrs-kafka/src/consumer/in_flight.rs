//! The bound on records in flight (fetched and not settled): of one subscription, or of one of its partitions.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The number of records in flight and of their bytes.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// Bytes in the lower [`BYTE_BITS`] bits, records above: one atomic operation changes both.
    counts: AtomicU64,
    /// Set if the poll thread waits for room.
    poller_waits: AtomicBool,
}

const BYTE_BITS: u32 = 40;

/// The largest number of records and bytes in flight. One record may exceed the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl Bound {
    /// The most that can be counted.
    pub(super) const MAX: Self = Self { records: 1 << 23, bytes: 1 << 39 };

    /// A bound of at most [`MAX`](Self::MAX).
    pub(super) fn new(records: usize, bytes: usize) -> Self {
        Self { records, bytes }.min(Self::MAX)
    }

    pub(super) fn is_zero(self) -> bool {
        self.records == 0 || self.bytes == 0
    }

    pub(super) fn min(self, other: Self) -> Self {
        Self { records: self.records.min(other.records), bytes: self.bytes.min(other.bytes) }
    }

    /// An equal share for each of `partitions`, raised to `at_once` records of size `largest` (up to an eighth of the
    /// bytes). With many partitions the shares add up to more than the bound: the bound of the subscription holds
    /// beside them.
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
    /// The room for records that may be fetched now. If it is zero, [`release`](Self::release) returns `true` once a
    /// quarter of the records is free.
    pub(super) fn room(&self, bound: Bound) -> Bound {
        let room = || {
            let counts = unpack(self.counts.load(Ordering::SeqCst));
            Bound {
                records: bound.records.saturating_sub(counts.records),
                bytes: bound.bytes.saturating_sub(counts.bytes),
            }
        };
        let free = room();
        if !free.is_zero() {
            return free;
        }
        self.poller_waits.store(true, Ordering::SeqCst);
        // Check again: a record that was settled before the store above woke nobody.
        room()
    }

    pub(super) fn add(&self, records: usize, bytes: usize) {
        self.counts.fetch_add(pack(records, bytes), Ordering::SeqCst);
    }

    /// Subtracts settled or revoked records. Returns `true` if the caller must wake the poll thread.
    pub(super) fn release(&self, bound: Bound, records: usize, bytes: usize) -> bool {
        let released = pack(records, bytes);
        let left = unpack(self.counts.fetch_sub(released, Ordering::SeqCst) - released).records;
        // Only once a quarter is free: else the poll thread would wake for each settled record.
        self.poller_waits.load(Ordering::SeqCst)
            && left <= bound.records.saturating_sub((bound.records / 4).max(1))
            && self.poller_waits.swap(false, Ordering::SeqCst)
    }
}

fn pack(records: usize, bytes: usize) -> u64 {
    ((records as u64) << BYTE_BITS) + bytes as u64
}

fn unpack(counts: u64) -> Bound {
    let part = |part: u64| usize::try_from(part).unwrap_or(usize::MAX);
    Bound { records: part(counts >> BYTE_BITS), bytes: part(counts & ((1 << BYTE_BITS) - 1)) }
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
        assert_eq!(
            all.share(1 << 40, 1, 0),
            Bound { records: 1, bytes: 1 },
            "each partition continues"
        );
        assert_eq!(all.share(999, 2, 1 << 20).bytes, 2 << 20, "two large records at once");
        assert_eq!(all.share(999, 64, 1 << 20).bytes, 8 << 20, "an eighth at most");
    }

    #[test]
    fn full_bound_wakes_once_a_quarter_is_free() {
        let (bound, in_flight) = (Bound { records: 8, bytes: 100 }, InFlight::default());
        assert_eq!(in_flight.room(bound), bound);
        in_flight.add(8, 8);
        assert_eq!(in_flight.room(bound), Bound { records: 0, bytes: 92 });
        assert!(!in_flight.release(bound, 1, 1));
        assert!(in_flight.release(bound, 1, 1) && !in_flight.release(bound, 1, 1), "once");
        in_flight.add(1, 93);
        assert_eq!(in_flight.room(bound), Bound { records: 2, bytes: 2 });
        in_flight.add(1, 3 << 30);
        assert!(in_flight.room(bound).is_zero(), "its bytes are full");
        in_flight.release(bound, 7, (3 << 30) + 98);
        assert_eq!(in_flight.room(bound), bound);
    }
}
