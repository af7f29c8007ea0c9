//! The topics without a destination, whose rows wait without a failed attempt; used by the driver.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::relay::lane::Backoff;

/// Times are since the start of the relay.
#[derive(Debug)]
pub(super) struct Unroutable {
    backoff: Backoff,
    most: usize,
    topics: HashMap<Arc<str>, Attempts>,
}

#[derive(Debug)]
struct Attempts {
    count: u32,
    next_at: Duration,
}

impl Unroutable {
    pub(super) fn new(backoff: Backoff, most: usize) -> Self {
        Self { backoff, most, topics: HashMap::new() }
    }

    /// A message of the topic had no destination. `false`: there are too many such topics to remember it.
    pub(super) fn failed(&mut self, topic: &Arc<str>, error: &str, now: Duration) -> bool {
        if !self.topics.contains_key(topic) {
            if self.topics.len() >= self.most {
                self.topics.retain(|_, attempts| attempts.next_at > now);
            }
            if self.topics.len() >= self.most {
                return false;
            }
            tracing::warn!(
                %topic,
                %error,
                "a topic of python-cqrs's outbox has no destination: its rows wait, and nothing is counted"
            );
        }
        let attempts = Attempts { count: 0, next_at: Duration::ZERO };
        let attempts = self.topics.entry(Arc::clone(topic)).or_insert(attempts);
        // The other messages of the same batch are the same attempt.
        if attempts.next_at <= now {
            attempts.count = attempts.count.saturating_add(1);
            attempts.next_at = now.saturating_add(self.backoff.after(attempts.count));
        }
        true
    }

    /// A message of the topic is confirmed.
    pub(super) fn routed(&mut self, topic: &str) {
        if !self.topics.is_empty() && self.topics.remove(topic).is_some() {
            tracing::info!(topic, "the topic of python-cqrs's outbox has a destination again");
        }
    }

    /// `true` if no message of the topic may be tried now.
    pub(super) fn waits(&self, topic: &str, now: Duration) -> bool {
        self.topics.get(topic).is_some_and(|attempts| attempts.next_at > now)
    }

    /// The topics of which no message may be tried now.
    pub(super) fn waiting(&self, now: Duration) -> Vec<String> {
        let waiting = self.topics.iter().filter(|(_, attempts)| attempts.next_at > now);
        waiting.map(|(topic, _)| topic.to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn batch_of_a_topic_is_one_attempt() {
        let backoff = Backoff { first: seconds(1), longest: seconds(3) };
        let mut unroutable = Unroutable::new(backoff, 1);
        let topic = Arc::from("late");
        let mut now = Duration::ZERO;
        for pause in [1, 2, 3, 3] {
            for _ in 0..500 {
                assert!(unroutable.failed(&topic, "no queue", now));
            }
            assert_eq!(unroutable.waiting(now), ["late"]);
            now += seconds(pause);
            assert!(unroutable.waits("late", now - Duration::from_nanos(1)));
            assert!(!unroutable.waits("late", now));
        }
        unroutable.routed("late");
        assert!(unroutable.failed(&topic, "no queue", now));
        assert!(!unroutable.waits("late", now + seconds(1)), "the first pause again");
        assert!(!unroutable.failed(&Arc::from("other"), "no queue", now), "no room");
        assert!(unroutable.failed(&Arc::from("other"), "no queue", now + seconds(1)));
    }
}
