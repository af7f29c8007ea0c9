//! The injected faults that a memory broker has yet to carry out, set by `MemoryFaults`.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A kind of injected fault.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    LostConfirm,
    WithheldConfirm,
    RefusedMessage,
    Duplicate,
    FailedAck,
    FailedDeadLetter,
    FailedRetry,
}

/// The number of times that each fault is still to occur.
#[derive(Debug, Default)]
pub(super) struct FaultPlan([AtomicUsize; 7]);

impl FaultPlan {
    pub(super) fn set(&self, fault: Fault, n: usize) {
        self.0[fault as usize].store(n, Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.0.iter().for_each(|left| left.store(0, Ordering::Release));
    }

    /// `true` if the fault occurs now; counts it.
    pub(super) fn occurs(&self, fault: Fault) -> bool {
        let next = |left: usize| match left {
            usize::MAX => Some(left),
            left => left.checked_sub(1),
        };
        let left = &self.0[fault as usize];
        left.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).is_ok()
    }
}
