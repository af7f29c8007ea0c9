use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::Message;
use crate::consume::RetryState;

/// Where a new group begins in its topic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StartFrom {
    /// With the oldest message that the topic keeps.
    #[default]
    Oldest,
    /// With the next message that is published.
    Latest,
}

/// A message on its way through one group.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) offset: u64,
    pub(super) message: Arc<Message>,
    /// How often it was handed out.
    pub(super) attempt: u32,
    /// What its consumers know of earlier attempts.
    pub(super) retry: RetryState,
}

/// When an entry is handed out: by offset; one that was given back goes behind everything that was in
/// the topic then, so that a message nobody can handle does not keep the other keys waiting.
type Turn = (u64, u64);

/// What one group did not settle yet. See the invariants of [`super`].
///
/// A lane exists while a message of its key is ready or handed out; it holds the ones behind it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: u64,
    pub(super) name: Arc<str>,
    pub(super) signal: Arc<Notify>,
    ready: BTreeMap<Turn, Entry>,
    lanes: HashMap<Bytes, VecDeque<Entry>>,
    unsettled: usize,
    given_back: u64,
}

impl Group {
    pub(super) fn new(id: u64, name: Arc<str>) -> Self {
        Self {
            id,
            name,
            signal: Arc::default(),
            ready: BTreeMap::new(),
            lanes: HashMap::new(),
            unsettled: 0,
            given_back: 0,
        }
    }

    /// Adds a message later than all before. `true` when it is ready.
    pub(super) fn push(&mut self, offset: u64, message: Arc<Message>) -> bool {
        let entry = Entry { offset, message, attempt: 0, retry: RetryState::default() };
        self.unsettled += 1;
        if let Some(key) = &entry.message.key {
            if let Some(lane) = self.lanes.get_mut(key) {
                lane.push_back(entry);
                return false;
            }
            self.lanes.insert(key.clone(), VecDeque::new());
        }
        self.make_ready(entry);
        true
    }

    /// Hands out the next ready message.
    pub(super) fn take(&mut self) -> Option<Entry> {
        let (_turn, mut entry) = self.ready.pop_first()?;
        entry.attempt = entry.attempt.saturating_add(1);
        Some(entry)
    }

    /// A handed-out message is done. `true` when that made the next one of its key ready.
    pub(super) fn settle(&mut self, entry: &Entry) -> bool {
        self.unsettled -= 1;
        let Some(key) = &entry.message.key else { return false };
        match self.lanes.get_mut(key).and_then(VecDeque::pop_front) {
            Some(next) => {
                self.make_ready(next);
                true
            }
            None => {
                self.lanes.remove(key);
                false
            }
        }
    }

    /// A handed-out message is ready again. `end` is the offset of the next message of the topic.
    pub(super) fn give_back(&mut self, entry: Entry, end: u64) {
        self.given_back += 1;
        self.ready.insert((end, self.given_back), entry);
    }

    fn make_ready(&mut self, entry: Entry) {
        self.ready.insert((entry.offset, u64::MAX), entry);
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn unsettled(&self) -> usize {
        self.unsettled
    }

    /// Offsets of all that is not settled and not handed out.
    pub(super) fn into_waiting(self) -> impl Iterator<Item = u64> {
        let lanes = self.lanes.into_values().flatten();
        self.ready.into_values().chain(lanes).map(|entry| entry.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(keys: &[&'static str]) -> Group {
        let mut group = Group::new(0, "g".into());
        for (offset, key) in (0..).zip(keys) {
            let mut message = Message::new("t", "");
            message.key = Some(*key).filter(|key| !key.is_empty()).map(Bytes::from);
            group.push(offset, Arc::new(message));
        }
        group
    }

    fn take(group: &mut Group) -> Option<(u64, Entry)> {
        group.take().map(|entry| (entry.offset, entry))
    }

    #[test]
    fn a_key_waits_for_its_own_and_others_go_on() {
        let mut group = group(&["a", "a", "b", "", ""]);
        let (first, a) = take(&mut group).unwrap();
        let others: Vec<_> = std::iter::from_fn(|| group.take()).map(|e| e.offset).collect();
        assert_eq!((first, others), (0, vec![2, 3, 4]));
        assert!(group.settle(&a), "the second of key a");
        assert_eq!(take(&mut group).unwrap().0, 1);
    }

    #[test]
    fn handed_out_one_by_one_it_is_a_log() {
        let mut group = group(&["a", "a", "b", "", "a"]);
        for offset in 0..5 {
            let (taken, entry) = take(&mut group).unwrap();
            assert_eq!(taken, offset);
            group.settle(&entry);
        }
        assert_eq!((group.unsettled(), group.lanes.len()), (0, 0), "lanes are forgotten");
    }

    #[test]
    fn what_is_given_back_comes_before_its_key_and_after_the_others() {
        let mut group = group(&["a", "a", "b"]);
        let (_, a) = take(&mut group).unwrap();
        group.give_back(a, 3);
        let (b_offset, b) = take(&mut group).unwrap();
        group.give_back(b, 3);
        let (again, a) = take(&mut group).unwrap();
        assert_eq!((b_offset, again, a.attempt), (2, 0, 2));
        group.settle(&a);
        assert_eq!(take(&mut group).unwrap().0, 1, "older than what was given back");
        assert_eq!(take(&mut group).unwrap().0, 2);
    }
}
