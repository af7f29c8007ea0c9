//! The schedule of a session's commits: every interval, at once if one is urgent, and later after a failure. Part of the
//! [`session`](super::session).

use std::time::{Duration, Instant};

/// The pause after a failed commit.
const RETRY_AFTER: Duration = Duration::from_millis(250);
/// The shortest time between two log lines of failed commits.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// A pure data structure.
#[derive(Debug)]
pub(super) struct CommitSchedule {
    interval: Duration,
    /// The next commit, if none is urgent before.
    next: Instant,
    /// No commit before this time, however urgent.
    not_before: Instant,
    /// Set while commits are in flight.
    in_flight: bool,
    /// The time of the last log line of a failed commit.
    logged: Option<Instant>,
}

impl CommitSchedule {
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        let next = now + interval;
        Self { interval, next, not_before: now, in_flight: false, logged: None }
    }

    /// Returns whether to commit now.
    pub(super) fn is_due(&self, now: Instant, is_urgent: impl FnOnce() -> bool) -> bool {
        !self.in_flight && (now >= self.next || now >= self.not_before && is_urgent())
    }

    /// Returns whether the interval is over, and starts the next one.
    pub(super) fn starts_interval(&mut self, now: Instant) -> bool {
        let is_over = now >= self.next;
        if is_over {
            self.next = now + self.interval;
        }
        is_over
    }

    pub(super) fn sent(&mut self) {
        self.in_flight = true;
    }

    pub(super) fn answered(&mut self) {
        self.in_flight = false;
    }

    /// A commit failed and is retried soon. Returns whether to log it: rarely, since there are several retries a second.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        self.not_before = now + RETRY_AFTER;
        self.next = self.next.min(self.not_before);
        let logs = self.logged.is_none_or(|at| now >= at + LOG_EVERY);
        if logs {
            self.logged = Some(now);
        }
        logs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_commit_delays_urgent_ones_and_logs_once() {
        let start = Instant::now();
        let mut schedule = CommitSchedule::new(Duration::from_secs(1), start);
        assert!(!schedule.is_due(start, || false) && schedule.is_due(start, || true));
        schedule.sent();
        assert!(!schedule.is_due(start, || true), "commits are in flight");
        schedule.answered();
        assert!(schedule.failed(start) && !schedule.failed(start));
        assert!(!schedule.is_due(start, || true));
        let retry = start + RETRY_AFTER;
        assert!(schedule.is_due(retry, || false) && schedule.starts_interval(retry));
        assert!(!schedule.is_due(retry, || false), "the next interval has started");
    }
}
