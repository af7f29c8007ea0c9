//! The retry schedule of a subscription, and the attempts that a message carries with it.

use std::fmt;
use std::time::Duration;

use super::error::SettleError;
use super::support::delay_text;
use crate::event::Timestamp;
use crate::message::Headers;

/// The schedule by which a failed message is tried again.
///
/// First *immediate* retries: the delivery is kept and its key waits. Then *delayed* ones: the message
/// waits with the broker, or its key's lane waits, without holding a worker. A failure after the last of
/// them, or a permanent failure at any time, makes it a dead letter.
///
/// The default is 50, 100 and 250 ms, then 10 s, 60 s and 5 min: seven attempts in all.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "give it to a subscription"]
pub struct Retry {
    immediate: Vec<Duration>,
    delayed: Vec<Duration>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            immediate: [50, 100, 250].map(Duration::from_millis).to_vec(),
            delayed: [10, 60, 300].map(Duration::from_secs).to_vec(),
        }
    }
}

/// The delays of both kinds: `50ms, 100ms, later: 10s`.
impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |delays: &[Duration]| {
            delays.iter().map(|delay| delay_text(*delay)).collect::<Vec<_>>().join(", ")
        };
        match (text(&self.immediate), text(&self.delayed)) {
            (none, delayed) if none.is_empty() && delayed.is_empty() => f.write_str("none"),
            (immediate, none) if none.is_empty() => f.write_str(&immediate),
            (none, delayed) if none.is_empty() => write!(f, "later: {delayed}"),
            (immediate, delayed) => write!(f, "{immediate}, later: {delayed}"),
        }
    }
}

/// The step after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextAttempt {
    Immediately(Duration),
    Later(Duration),
    Never,
}

impl Retry {
    /// No second attempt.
    pub fn none() -> Self {
        Self { immediate: Vec::new(), delayed: Vec::new() }
    }

    /// Replaces the immediate retries by one after each of `delays`.
    pub fn immediate(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
        self.immediate = delays.into_iter().collect();
        self
    }

    /// Replaces the delayed retries by one after each of `delays`.
    pub fn delayed(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
        self.delayed = delays.into_iter().collect();
        self
    }

    /// The delays of the delayed retries, in order.
    pub fn delays(&self) -> &[Duration] {
        &self.delayed
    }

    /// The shortest delay of the schedule that is not shorter than `delay`: a broker has one queue or topic
    /// for each delay of the schedule. `None` if the schedule has no delayed retries: the consumer holds
    /// the message.
    ///
    /// # Errors
    /// If `delay` is longer than all delays of the schedule.
    pub fn delay_at_least(&self, delay: Duration) -> Result<Option<Duration>, SettleError> {
        let longest = self.delayed.iter().max().copied();
        match self.delayed.iter().filter(|known| **known >= delay).min() {
            None if longest.is_none() => Ok(None),
            Some(known) => Ok(Some(*known)),
            None => Err(SettleError::new(format!(
                "a retry in {delay:?} is later than any of the schedule (at most {:?}): add such a delay \
                 with Retry::delayed",
                longest.unwrap_or_default()
            ))),
        }
    }

    /// The total number of attempts.
    pub fn max_attempts(&self) -> u32 {
        u32::try_from(1 + self.immediate.len() + self.delayed.len()).unwrap_or(u32::MAX)
    }

    /// The step after `failed` attempts, at least one.
    pub(crate) fn after(&self, failed: u32) -> NextAttempt {
        let index = usize::try_from(failed.saturating_sub(1)).unwrap_or(usize::MAX);
        match self.immediate.get(index) {
            Some(delay) => NextAttempt::Immediately(*delay),
            None => match self.delayed.get(index - self.immediate.len()) {
                Some(delay) => NextAttempt::Later(*delay),
                None => NextAttempt::Never,
            },
        }
    }

    /// The time at `now` until the next attempt of a message. Never longer than its delay, even if the
    /// clock of the process with the last failure was ahead.
    #[must_use]
    pub fn remaining(&self, state: &RetryState, now: Timestamp) -> Option<Duration> {
        let last = state.last_failure?;
        let delay = match self.after(state.attempts.max(1)) {
            NextAttempt::Immediately(delay) | NextAttempt::Later(delay) => delay,
            NextAttempt::Never => return None,
        };
        let micros = now.unix_micros().saturating_sub(last.unix_micros());
        let since = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
        delay.checked_sub(since).filter(|remaining| !remaining.is_zero())
    }
}

/// The names of the headers with the [`RetryState`] of a retry copy.
pub const RETRY_HEADERS: [&str; 3] =
    ["cqrs-retry-attempts", "cqrs-retry-first-failure", "cqrs-retry-last-failure"];

/// The earlier attempts of a message; carried with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryState {
    /// The number of failed attempts.
    pub attempts: u32,
    /// The time of the first failure.
    pub first_failure: Option<Timestamp>,
    /// The time of the last failure.
    pub last_failure: Option<Timestamp>,
    /// The number of crashes while it was handled, as far as the broker can tell: Kafka and RabbitMQ count
    /// crashes while it ran alone.
    pub crashes: u32,
}

impl RetryState {
    /// The state after one more failure at `now`.
    #[must_use]
    pub fn failed(mut self, now: Timestamp) -> Self {
        self.attempts = self.attempts.saturating_add(1);
        self.first_failure.get_or_insert(now);
        self.last_failure = Some(now);
        self
    }

    /// Header names and values, for a retry copy.
    pub fn to_headers(&self) -> Vec<(&'static str, String)> {
        let [attempts, first, last] = RETRY_HEADERS;
        let mut headers = vec![(attempts, self.attempts.to_string())];
        headers.extend(self.first_failure.map(|at| (first, at.to_string())));
        headers.extend(self.last_failure.map(|at| (last, at.to_string())));
        headers
    }

    /// Reads the headers of a retry copy. A missing or unreadable one reads as "never tried".
    pub fn from_headers(headers: &Headers) -> Self {
        let [attempts, first, last] = RETRY_HEADERS;
        let time = |name| headers.get(name).and_then(|text| text.parse().ok());
        Self {
            attempts: headers.get(attempts).and_then(|text| text.parse().ok()).unwrap_or(0),
            first_failure: time(first),
            last_failure: time(last),
            crashes: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_attempt_waits_from_last_failure_not_longer() {
        let s = Duration::from_secs;
        let retry = Retry::none().immediate([s(1)]).delayed([s(60)]);
        let start = Timestamp::from_unix_micros(1_700_000_000_000_000);
        let after = |span: Duration| Timestamp::from(std::time::SystemTime::from(start) + span);
        let once = RetryState::default().failed(start);
        let twice = once.failed(start);
        assert_eq!(retry.remaining(&RetryState::default(), start), None, "never tried");
        assert_eq!(retry.remaining(&once, start), Some(s(1)));
        assert_eq!(retry.remaining(&twice, after(s(20))), Some(s(40)));
        assert_eq!(retry.remaining(&twice, after(s(60))), None, "its time has come");
        assert_eq!(retry.remaining(&twice.failed(start), start), None, "the schedule is over");
        let ahead = RetryState::default().failed(after(s(3_600)));
        assert_eq!(retry.remaining(&ahead, start), Some(s(1)), "a clock that is ahead");
    }

    #[test]
    fn the_default_schedule_is_the_documented_one() {
        let retry = Retry::default();
        let steps: Vec<_> = (1..=7).map(|failed| retry.after(failed)).collect();
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        assert_eq!(
            steps,
            [
                NextAttempt::Immediately(ms(50)),
                NextAttempt::Immediately(ms(100)),
                NextAttempt::Immediately(ms(250)),
                NextAttempt::Later(s(10)),
                NextAttempt::Later(s(60)),
                NextAttempt::Later(s(300)),
                NextAttempt::Never,
            ]
        );
        assert_eq!(retry.max_attempts(), 7);
        assert_eq!(retry.to_string(), "50ms, 100ms, 250ms, later: 10s, 60s, 300s");
        assert_eq!(Retry::none().to_string(), "none");
        assert_eq!(Retry::none().after(1), NextAttempt::Never);
        assert_eq!(retry.after(u32::MAX), NextAttempt::Never);
    }

    #[test]
    fn delay_waits_in_the_next_longer_place() {
        let s = Duration::from_secs;
        let retry = Retry::none().delayed([60, 10, 300].map(s));
        for (delay, place) in [(1, 10), (10, 10), (11, 60), (300, 300)] {
            assert_eq!(retry.delay_at_least(s(delay)).unwrap(), Some(s(place)));
        }
        assert!(retry.delay_at_least(s(301)).unwrap_err().to_string().contains("301s"));
        assert_eq!(Retry::none().delay_at_least(s(1)).unwrap(), None);
    }

    #[test]
    fn the_state_travels_in_headers() {
        let (first, last) = ("2026-01-02T03:04:05Z", "2026-01-02T03:04:06.5Z");
        let state =
            RetryState::default().failed(first.parse().unwrap()).failed(last.parse().unwrap());
        let mut headers = Headers::new();
        for (name, value) in state.to_headers() {
            headers.insert(name, value).unwrap();
        }
        assert_eq!(RetryState::from_headers(&headers), state);
        assert_eq!((state.attempts, state.first_failure), (2, Some(first.parse().unwrap())));
    }

    #[test]
    fn foreign_headers_read_as_never_tried() {
        let mut headers = Headers::new();
        headers.insert(RETRY_HEADERS[0], "many").unwrap();
        headers.insert(RETRY_HEADERS[1], "yesterday").unwrap();
        assert_eq!(RetryState::from_headers(&headers), RetryState::default());
    }
}
