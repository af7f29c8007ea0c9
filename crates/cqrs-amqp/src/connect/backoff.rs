//! The backoff between connection attempts; part of the connector.

use cqrs_config::Reconnect;
use tokio::time::Instant;

/// The time before which no attempt starts, by the failures in a row.
#[derive(Debug)]
pub(super) struct Backoff {
    config: Reconnect,
    failures: u32,
    not_before: Option<Instant>,
}

impl Backoff {
    pub(super) fn new(config: Reconnect) -> Self {
        Self { config, failures: 0, not_before: None }
    }

    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + self.config.delay(self.failures));
    }

    /// A connection held: after its loss the next attempt starts at once.
    pub(super) fn held(&mut self) {
        self.failures = 0;
        self.not_before = None;
    }

    pub(super) fn not_before(&self) -> Option<Instant> {
        self.not_before
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn delay_doubles_to_the_limit_with_jitter() {
        let milliseconds = Duration::from_millis;
        let config = Reconnect::new(milliseconds(100), milliseconds(350));
        let mut backoff = Backoff::new(config);
        let now = Instant::now();
        assert_eq!(backoff.not_before(), None);
        for full in [100, 200, 350, 350] {
            backoff.failed(now);
            let wait = backoff.not_before().unwrap() - now;
            let full = Duration::from_millis(full);
            assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
        }
        for _ in 0..100 {
            backoff.failed(now);
        }
        backoff.held();
        assert_eq!(backoff.not_before(), None);
    }
}
