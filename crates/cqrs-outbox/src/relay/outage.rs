//! The outages of a relay's database and broker: when to try again, and one log line for each.

use std::error::Error;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);

/// The last error of a row is cut to so many bytes.
const MAX_ERROR: usize = 1_024;

/// Times are since the start of the relay.
#[derive(Debug)]
pub(super) struct Outage {
    /// What fails.
    what: &'static str,
    longest: Duration,
    since: Option<Duration>,
    failures: u32,
    retry_at: Duration,
}

impl Outage {
    pub(super) fn new(what: &'static str, longest: Duration) -> Self {
        Self { what, longest, since: None, failures: 0, retry_at: Duration::ZERO }
    }

    /// A failure. Later ones of the same outage are not logged, and make the pause longer.
    pub(super) fn failed(&mut self, now: Duration, error: impl Display) {
        if self.since.is_none() {
            tracing::warn!(what = self.what, %error, "the relay of the outbox waits");
            self.since = Some(now);
        }
        let pause = FIRST.saturating_mul(1 << self.failures.min(10)).min(self.longest);
        self.failures += 1;
        self.retry_at = self.retry_at.max(now.saturating_add(pause));
    }

    pub(super) fn succeeded(&mut self, now: Duration) {
        if let Some(since) = self.since.take() {
            let lasted = now.saturating_sub(since);
            let (what, failures) = (self.what, self.failures);
            tracing::info!(what, ?lasted, failures, "the relay of the outbox goes on");
            self.failures = 0;
        }
    }

    /// The time of the next attempt, if there is an outage.
    pub(super) fn retry_at(&self) -> Option<Duration> {
        self.since.map(|_| self.retry_at)
    }

    /// `true` if nothing may be tried now.
    pub(super) fn waits(&self, now: Duration) -> bool {
        self.retry_at().is_some_and(|retry| now < retry)
    }
}

/// The error with its causes, cut to what a row keeps. No zero byte is in it, which PostgreSQL refuses in a text.
pub(super) fn text_of(error: &dyn Error) -> Arc<str> {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    cut(text)
}

/// What a row keeps of the text of an error.
pub(super) fn cut(mut text: String) -> Arc<str> {
    text.truncate(text.floor_char_boundary(MAX_ERROR));
    text.replace('\0', " ").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_row_is_cut_at_a_character() {
        let text = cut(format!("a\0{}", "é".repeat(1_000)));
        assert!(text.starts_with("a éé") && text.len() == MAX_ERROR, "{}", text.len());
        assert_eq!(cut("é".repeat(600)).len(), MAX_ERROR);
        assert_eq!(cut(format!("a{}", "é".repeat(600))).len(), MAX_ERROR - 1);
    }

    #[test]
    fn pause_grows_until_a_success() {
        let mut outage = Outage::new("database", Duration::from_secs(5));
        let mut now = Duration::ZERO;
        assert!(!outage.waits(now));
        for pause in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            outage.failed(now, "down");
            assert_eq!(outage.retry_at(), Some(now + Duration::from_millis(pause)));
            now += Duration::from_millis(pause);
            assert!(!outage.waits(now));
        }
        outage.succeeded(now);
        assert_eq!(outage.retry_at(), None);
        outage.failed(now, "down again");
        assert_eq!(outage.retry_at(), Some(now + FIRST));
    }
}
