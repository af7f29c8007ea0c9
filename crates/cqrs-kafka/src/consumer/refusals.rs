//! Topics for which this principal lacks a right, remembered so that not every copy asks again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a refusal is taken for the answer to the next attempts.
const REMEMBERED: Duration = Duration::from_secs(30);

/// The last refusal of each topic.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<String, Refusal>>);

#[derive(Debug)]
struct Refusal {
    at: Instant,
    why: String,
}

impl Refusals {
    /// Why `topic` was refused, if that was not long ago.
    pub(super) fn recall(&self, topic: &str) -> Option<String> {
        let all = self.lock();
        let refusal = all.get(topic).filter(|refusal| refusal.at.elapsed() < REMEMBERED)?;
        Some(refusal.why.clone())
    }

    /// Remembers a refusal. `true` if the last one of this topic said something else.
    pub(super) fn note(&self, topic: &str, why: &str) -> bool {
        let refusal = Refusal { at: Instant::now(), why: why.to_owned() };
        let last = self.lock().insert(topic.to_owned(), refusal);
        last.is_none_or(|last| last.why != why)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_is_remembered_for_its_topic_and_new_once() {
        let refusals = Refusals::default();
        assert_eq!(refusals.recall("a"), None);
        assert!(refusals.note("a", "no right") && !refusals.note("a", "no right"));
        assert_eq!(refusals.recall("a").as_deref(), Some("no right"));
        assert_eq!(refusals.recall("b"), None);
        assert!(refusals.note("a", "another reason"));
    }
}
