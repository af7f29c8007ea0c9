//! A bound on the log lines of one cause, part of the consumer: one line for each period.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The least time between two lines.
const PERIOD: Duration = Duration::from_secs(10);

/// When a line of one cause was written last.
#[derive(Debug, Default)]
pub(super) struct LogPeriod(Mutex<Option<Instant>>);

impl LogPeriod {
    /// Whether a line is due: it is the first one, or the period of the last one is over.
    pub(super) fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| last.elapsed() >= PERIOD);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

/// Writes a line at its level if one is due, or else at DEBUG.
macro_rules! log_bounded {
    ($period:expr, $level:ident, $($line:tt)+) => {
        match $period.is_due() {
            true => tracing::$level!($($line)+),
            false => tracing::debug!($($line)+),
        }
    };
}

pub(super) use log_bounded;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_is_due_in_each_period() {
        let log = LogPeriod::default();
        assert!(log.is_due() && !log.is_due());
        tokio::time::advance(PERIOD).await;
        assert!(log.is_due() && !log.is_due());
    }
}
