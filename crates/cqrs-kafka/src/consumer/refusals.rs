//! Topics that were refused (a missing right, for example), remembered so that not every copy tries again. Used by the
//! [`copies`](super::copies).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The time for which a refusal answers the next attempts.
const REMEMBERED: Duration = Duration::from_secs(30);

/// The last refusal of each topic.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<String, Refusal>>);

#[derive(Debug)]
struct Refusal {
    at: Instant,
    reason: String,
}

impl Refusals {
    /// The reason why `topic` was refused, if that was not long ago.
    pub(super) fn get(&self, topic: &str) -> Option<String> {
        let all = self.lock();
        let refusal = all.get(topic).filter(|refusal| refusal.at.elapsed() < REMEMBERED)?;
        Some(refusal.reason.clone())
    }

    /// Adds a refusal. `true`: the last one of this topic had another reason, or there was none.
    pub(super) fn add(&self, topic: &str, reason: &str) -> bool {
        let refusal = Refusal { at: Instant::now(), reason: reason.to_owned() };
        let last = self.lock().insert(topic.to_owned(), refusal);
        last.is_none_or(|last| last.reason != reason)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_is_kept_by_topic_and_is_new_once() {
        let refusals = Refusals::default();
        assert_eq!(refusals.get("a"), None);
        assert!(refusals.add("a", "no right") && !refusals.add("a", "no right"));
        assert_eq!(refusals.get("a").as_deref(), Some("no right"));
        assert_eq!(refusals.get("b"), None);
        assert!(refusals.add("a", "another reason"));
    }
}
