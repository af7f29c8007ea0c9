//! A bound on log lines that any message may cause, for the crates that implement a source.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The least time between two lines of one cause.
const PERIOD: Duration = Duration::from_secs(10);

/// Limits the log lines of one cause to one in ten seconds, and counts those that are left out.
///
/// ```
/// # let limit = cqrs_core::consume::LogLimit::default();
/// if let Some(left_out) = limit.line() {
///     tracing::warn!(left_out, "a message has a header that cannot be read");
/// }
/// ```
#[derive(Debug, Default)]
pub struct LogLimit(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    last: Option<Instant>,
    left_out: u64,
}

impl LogLimit {
    /// Counts a line. `Some` if it must be written, with the number of lines left out since the last one.
    pub fn line(&self) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.last.is_some_and(|last| last.elapsed() < PERIOD) {
            lines.left_out += 1;
            return None;
        }
        lines.last = Some(Instant::now());
        Some(std::mem::take(&mut lines.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_within_a_period_are_counted() {
        let limit = LogLimit::default();
        assert_eq!([limit.line(), limit.line(), limit.line()], [Some(0), None, None]);
        tokio::time::advance(PERIOD).await;
        assert_eq!([limit.line(), limit.line()], [Some(2), None]);
    }
}
