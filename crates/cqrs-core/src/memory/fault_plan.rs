//! The injected faults that a memory broker has yet to carry out, set by `MemoryFaults`.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The faults that are still to occur.
#[derive(Debug, Default)]
pub(super) struct FaultPlan {
    pub(super) lost_confirms: Countdown,
    pub(super) withheld_confirms: Countdown,
    pub(super) refused_messages: Countdown,
    pub(super) duplicates: Countdown,
    pub(super) failed_acks: Countdown,
    pub(super) failed_dead_letters: Countdown,
    pub(super) failed_retries: Countdown,
}

impl FaultPlan {
    pub(super) fn clear(&self) {
        let Self {
            lost_confirms,
            withheld_confirms,
            refused_messages,
            duplicates,
            failed_acks,
            failed_dead_letters,
            failed_retries,
        } = self;
        for countdown in [
            lost_confirms,
            withheld_confirms,
            refused_messages,
            duplicates,
            failed_acks,
            failed_dead_letters,
            failed_retries,
        ] {
            countdown.set(0);
        }
    }
}

/// The number of times that a fault is still to occur.
#[derive(Debug, Default)]
pub(super) struct Countdown(AtomicUsize);

impl Countdown {
    pub(super) fn set(&self, n: usize) {
        self.0.store(n, Ordering::Release);
    }

    /// `true` if the fault occurs now; counts it.
    pub(super) fn occurs(&self) -> bool {
        let next = |left: usize| match left {
            usize::MAX => Some(left),
            left => left.checked_sub(1),
        };
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).is_ok()
    }
}
