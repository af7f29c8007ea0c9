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
    use super::*;

    #[test]
    fn held_connection_ends_the_delay() {
        let (mut backoff, now) = (Backoff::new(Reconnect::default()), Instant::now());
        backoff.failed(now);
        assert!(backoff.not_before() > Some(now));
        backoff.held();
        assert_eq!(backoff.not_before(), None);
    }
}
