//! The backoff between connection attempts; part of the connector.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::ReconnectConfig;

/// The delay before the next attempt. It doubles with each failure up to a limit; jitter takes off up to
/// half, so that many processes do not reconnect at the same time.
#[derive(Debug)]
pub(super) struct Backoff {
    config: ReconnectConfig,
    failures: u32,
    not_before: Option<Instant>,
}

impl Backoff {
    pub(super) fn new(config: ReconnectConfig) -> Self {
        Self { config, failures: 0, not_before: None }
    }

    pub(super) fn failed(&mut self, now: Instant) {
        let doubled = self.config.initial.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + jitter(doubled.min(self.config.max)));
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

fn jitter(delay: Duration) -> Duration {
    // A RandomState is seeded at random for each value: enough to spread attempts.
    let random = RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64;
    delay.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn delay_doubles_to_the_limit_with_jitter() {
        let config = ReconnectConfig {
            initial: Duration::from_millis(100),
            max: Duration::from_millis(350),
        };
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
