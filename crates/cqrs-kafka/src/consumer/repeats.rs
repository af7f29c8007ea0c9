//! Bounds log lines that every record may cause: one in a period, with the count of those left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines of one cause, at least.
const PERIOD: Duration = Duration::from_secs(10);

/// The lines of one cause.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<(Option<Instant>, u64)>);

impl Repeats {
    /// Counts a line. When it is to be written: how many were left out before it.
    pub(super) fn note(&self) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.0.is_some_and(|last| last.elapsed() < PERIOD) {
            lines.1 += 1;
            return None;
        }
        lines.0 = Some(Instant::now());
        Some(std::mem::take(&mut lines.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_within_a_period_are_counted() {
        let repeats = Repeats::default();
        assert_eq!(repeats.note(), Some(0));
        assert_eq!((repeats.note(), repeats.note()), (None, None));
        repeats.0.lock().unwrap().0 = None;
        assert_eq!((repeats.note(), repeats.note()), (Some(2), None));
    }
}
