//! The bound on a subscription's log lines: the first lines of a cause are written, repeats are counted.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The period after which the repeats of a cause are reported, in one line.
pub(super) const REPORT_PERIOD: Duration = Duration::from_secs(10);

/// The number of causes that are counted separately. Further ones are counted together, per kind of line.
const MAX_CAUSES: usize = 64;

/// The cause under which further ones are counted.
const OTHERS: &str = "others";

/// The subject of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Logged {
    FailedAttempt,
    FailedBatch,
    DeadLetter,
    NotDecodedNow,
    NotMarkedNow,
    Skipped,
    Unconfirmed,
    Refused,
    Unpublished,
    Unacked,
    Blocked,
}

impl fmt::Display for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FailedAttempt => "failed attempts",
            Self::FailedBatch => "failed attempts of batches",
            Self::DeadLetter => "dead letters",
            Self::NotDecodedNow => "messages that cannot be decoded now",
            Self::NotMarkedNow => "messages that the inbox cannot mark now",
            Self::Skipped => "skipped messages",
            Self::Unconfirmed => "copies that are not confirmed",
            Self::Refused => "copies that the broker refuses",
            Self::Unpublished => "events that are not published",
            Self::Unacked => "messages that are done, but not acked",
            Self::Blocked => "handlers that blocked their thread",
        })
    }
}

/// The causes of one subscription's log lines.
///
/// A cause is forgotten after a period without a repeat, so that its next line is written in full again.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<Vec<Cause>>);

#[derive(Debug)]
struct Cause {
    logged: Logged,
    cause: String,
    /// Lines written in the period, including the last report's.
    written: u64,
    /// Repeats in the period that were only counted.
    count: u64,
    /// The start of the period.
    since: Instant,
}

impl Repeats {
    /// `true` if a line of this cause must be written. `false`: it is counted as a repeat.
    pub(super) fn is_first(&self, logged: Logged, cause: &str) -> bool {
        self.is_among_first(1, logged, cause)
    }

    /// As [`is_first`](Self::is_first), for up to `limit` lines of a cause in a period.
    pub(super) fn is_among_first(&self, limit: u64, logged: Logged, cause: &str) -> bool {
        let mut causes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cause = match causes.len() < MAX_CAUSES {
            true => cause,
            false if causes.iter().any(|known| known.logged == logged && known.cause == cause) => {
                cause
            }
            false => OTHERS,
        };
        match causes.iter_mut().find(|known| known.logged == logged && known.cause == cause) {
            Some(known) if known.written < limit => {
                known.written += 1;
                true
            }
            Some(known) => {
                known.count += 1;
                false
            }
            None => {
                let (cause, since) = (cause.to_owned(), Instant::now());
                causes.push(Cause { logged, cause, written: 1, count: 0, since });
                true
            }
        }
    }

    /// Writes one line for each cause that repeated in the period that is over, or now if `at_once`.
    pub(super) fn report(&self, subscription: &str, at_once: bool) {
        let now = Instant::now();
        let mut reported = Vec::new();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|cause| {
            if !at_once && now - cause.since < REPORT_PERIOD {
                return true;
            }
            let repeated = cause.count > 0;
            if repeated {
                let seconds = (now - cause.since).as_secs_f32();
                reported.push((cause.logged, cause.cause.clone(), cause.count, seconds));
            }
            // The report counts as a line, so with a limit of one no further line is written.
            (cause.written, cause.count, cause.since) = (1, 0, now);
            repeated
        });
        // Log subscribers are user code, so the lock is released.
        for (logged, cause, repeats, seconds) in reported {
            tracing::warn!(
                subscription,
                cause,
                repeats,
                seconds,
                "repeated: {logged} (each is logged at DEBUG)"
            );
        }
    }
}

/// Writes a line at its level if it is the first of its cause, else at DEBUG.
macro_rules! log_first {
    ($is_first:expr, $level:ident, $($line:tt)+) => {
        match $is_first {
            true => tracing::$level!($($line)+),
            false => tracing::debug!($($line)+),
        }
    };
}

pub(super) use log_first;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn cause_is_first_again_after_a_quiet_period() {
        let repeats = Repeats::default();
        assert!(repeats.is_first(Logged::DeadLetter, "a"));
        assert!(!repeats.is_first(Logged::DeadLetter, "a"));
        assert!(
            repeats.is_first(Logged::DeadLetter, "b") && repeats.is_first(Logged::Skipped, "a")
        );
        tokio::time::advance(REPORT_PERIOD).await;
        repeats.report("s", false);
        assert!(!repeats.is_first(Logged::DeadLetter, "a"), "it repeated in the period");
        assert!(repeats.is_first(Logged::DeadLetter, "b"), "it did not");
    }

    #[tokio::test(start_paused = true)]
    async fn limit_counts_lines_of_each_period() {
        let repeats = Repeats::default();
        let written =
            || (0..30).filter(|_| repeats.is_among_first(10, Logged::Refused, "a")).count();
        assert_eq!(written(), 10);
        tokio::time::advance(REPORT_PERIOD).await;
        repeats.report("s", false);
        assert_eq!(written(), 9, "beside the line of the report");
        assert!(!repeats.is_first(Logged::Refused, "a"), "it is known");
    }

    #[tokio::test(start_paused = true)]
    async fn causes_are_bounded() {
        let repeats = Repeats::default();
        let first = (0..1_000).filter(|n| repeats.is_first(Logged::DeadLetter, &n.to_string()));
        assert_eq!(first.count(), MAX_CAUSES + 1);
        assert!(!repeats.is_first(Logged::DeadLetter, "3"), "it is known");
        assert_eq!(repeats.0.lock().unwrap().len(), MAX_CAUSES + 1);
    }
}
