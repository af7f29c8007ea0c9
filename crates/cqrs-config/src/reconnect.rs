//! [`Reconnect`]: the waits between attempts to reach a server, for every client.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use serde::Deserialize;

use crate::deserialize_duration;

/// The wait between attempts to reach the server, which go on forever: doubled after each failure, and a
/// random part of it (half to all) is waited, so that many processes do not reconnect in step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Reconnect {
    /// After the first failure; 100 ms by default, at least 1 ms.
    #[serde(deserialize_with = "deserialize_duration")]
    pub initial: Duration,
    /// At most; 2 s by default.
    #[serde(deserialize_with = "deserialize_duration")]
    pub max: Duration,
}

impl Reconnect {
    /// The smallest [`initial`](Self::initial).
    pub const MIN: Duration = Duration::from_millis(1);

    /// These waits.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max }
    }

    /// The wait after this many failures in a row, at least one.
    pub fn delay(&self, failures: u32) -> Duration {
        let doubled = self.initial.saturating_mul(1 << failures.saturating_sub(1).min(20));
        // A RandomState is seeded at random for each value: enough to spread attempts.
        let random = RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64;
        doubled.min(self.max).mul_f64(0.5 + random / 2.0)
    }

    /// Refuses what would try again without a pause.
    ///
    /// # Errors
    /// When [`initial`](Self::initial) is below [`MIN`](Self::MIN) or above [`max`](Self::max).
    pub fn check(&self) -> Result<(), String> {
        crate::check_minimum("reconnect.initial", self.initial, Self::MIN)?;
        crate::check_minimum("reconnect.max", self.max, self.initial)
    }
}

impl Default for Reconnect {
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_doubles_to_the_limit_with_jitter() {
        let reconnect = Reconnect::new(Duration::from_millis(100), Duration::from_millis(350));
        for (failures, full) in [(1, 100), (2, 200), (3, 350), (4, 350), (1_000, 350)] {
            let (wait, full) = (reconnect.delay(failures), Duration::from_millis(full));
            assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let check = |initial, max| Reconnect::new(initial, max).check();
        let second = Duration::from_secs(1);
        assert!(check(second, second).is_ok());
        assert!(check(Duration::ZERO, second).unwrap_err().contains("reconnect.initial is 0ns"));
        assert!(check(second, Duration::ZERO).unwrap_err().contains("reconnect.max is 0ns"));
    }

    #[test]
    fn file_names_only_what_differs() {
        let read: Reconnect = toml::from_str("max = '5s'").unwrap();
        assert_eq!(read, Reconnect { max: Duration::from_secs(5), ..Reconnect::default() });
        assert!(toml::from_str::<Reconnect>("max = 5").is_err());
    }
}
