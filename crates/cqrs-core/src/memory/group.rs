use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

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
    /// Names this handing-out, so that a delivery that was taken away settles nothing.
    pub(super) ticket: u64,
    /// Who has it, while it is handed out.
    pub(super) member: u64,
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
    /// The first offset that it reads.
    start: u64,
    ready: BTreeMap<Turn, Entry>,
    lanes: HashMap<Bytes, VecDeque<Entry>>,
    /// Handed out, by ticket.
    out: HashMap<u64, Entry>,
    /// Copies that come when their time has come. They are in no lane.
    delayed: BTreeMap<(Instant, u64), Entry>,
    unsettled: usize,
    /// Counts what gets a number of its own: tickets, turns, delayed copies.
    numbers: u64,
}

impl Group {
    pub(super) fn new(id: u64, name: Arc<str>, start: u64) -> Self {
        Self {
            id,
            name,
            signal: Arc::default(),
            start,
            ready: BTreeMap::new(),
            lanes: HashMap::new(),
            out: HashMap::new(),
            delayed: BTreeMap::new(),
            unsettled: 0,
            numbers: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Adds a message later than all before. `true` when it is ready.
    pub(super) fn push(&mut self, offset: u64, message: Arc<Message>) -> bool {
        let retry = RetryState::default();
        let entry = Entry { offset, ticket: 0, member: 0, message, attempt: 0, retry };
        self.unsettled += 1;
        self.enter(entry, (offset, u64::MAX), VecDeque::push_back)
    }

    /// Makes `entry` ready, or lets it wait in its key's lane where `place` says. `true` when it is ready.
    fn enter(
        &mut self,
        entry: Entry,
        turn: Turn,
        place: impl FnOnce(&mut VecDeque<Entry>, Entry),
    ) -> bool {
        if let Some(key) = &entry.message.key {
            if let Some(lane) = self.lanes.get_mut(key) {
                place(lane, entry);
                return false;
            }
            self.lanes.insert(key.clone(), VecDeque::new());
        }
        self.ready.insert(turn, entry);
        true
    }

    /// Hands out the next ready message to `member`.
    pub(super) fn take(&mut self, member: u64) -> Option<Entry> {
        let (_turn, mut entry) = self.ready.pop_first()?;
        entry.attempt = entry.attempt.saturating_add(1);
        (entry.ticket, entry.member) = (self.number(), member);
        self.out.insert(entry.ticket, entry.clone());
        Some(entry)
    }

    pub(super) fn is_out(&self, ticket: u64) -> bool {
        self.out.contains_key(&ticket)
    }

    /// Kept for whoever gets it next, if it comes again.
    pub(super) fn set_retry(&mut self, ticket: u64, retry: RetryState) {
        if let Some(entry) = self.out.get_mut(&ticket) {
            entry.retry = retry;
        }
    }

    /// A handed-out message is done: its offset. `None` when it was taken away meanwhile.
    pub(super) fn settle(&mut self, ticket: u64) -> Option<u64> {
        let entry = self.out.remove(&ticket)?;
        self.unsettled -= 1;
        if let Some(key) = &entry.message.key {
            match self.lanes.get_mut(key).and_then(VecDeque::pop_front) {
                Some(next) => self.make_ready(next),
                None => drop(self.lanes.remove(key)),
            }
        }
        Some(entry.offset)
    }

    /// A handed-out message is ready again. `end` is the offset of the next message of the topic.
    pub(super) fn give_back(&mut self, ticket: u64, end: u64) {
        if let Some(entry) = self.out.remove(&ticket) {
            let turn = (end, self.number());
            self.ready.insert(turn, entry);
        }
    }

    /// All that is handed out is ready again, in its old order: how many.
    pub(super) fn take_away(&mut self) -> usize {
        let out = std::mem::take(&mut self.out);
        let taken = out.len();
        out.into_values().for_each(|entry| self.make_ready_again(entry));
        taken
    }

    /// The same for what one member has.
    pub(super) fn take_away_from(&mut self, member: u64) {
        let (taken, out) = std::mem::take(&mut self.out)
            .into_iter()
            .partition::<HashMap<_, _>, _>(|(_, entry)| entry.member == member);
        self.out = out;
        taken.into_values().for_each(|entry| self.make_ready_again(entry));
    }

    /// A copy and its original may both be out, with one offset.
    fn make_ready_again(&mut self, entry: Entry) {
        let turn = (entry.offset, self.number());
        self.ready.insert(turn, entry);
    }

    /// Adds a copy of `entry` that comes when it is `due`, behind all that is there then.
    pub(super) fn delay(&mut self, entry: Entry, due: Instant) {
        self.unsettled += 1;
        let number = self.number();
        self.delayed.insert((due, number), Entry { attempt: 0, ..entry });
    }

    /// Makes the copies ready whose time has come. `true` when one is.
    pub(super) fn release(&mut self, end: u64) -> bool {
        let mut ready = false;
        if self.delayed.is_empty() {
            return ready;
        }
        let now = Instant::now();
        while let Some(first) = self.delayed.first_entry()
            && first.key().0 <= now
        {
            let entry = first.remove();
            let turn = (end, self.number());
            ready |= self.enter(entry, turn, VecDeque::push_back);
        }
        ready
    }

    /// Adds a message again that it has settled, before what is later of its key and not handed out.
    pub(super) fn push_again(&mut self, offset: u64, message: Arc<Message>) {
        let retry = RetryState::default();
        // It was handed out before.
        let entry = Entry { offset, ticket: 0, member: 0, message, attempt: 1, retry };
        self.unsettled += 1;
        let later = |(_, ready): &(&Turn, &Entry)| {
            ready.offset > offset && ready.message.key == entry.message.key
        };
        let next = self.ready.iter().find(later).map(|(turn, _)| *turn);
        if let Some(key) = &entry.message.key
            && let Some(lane) = self.lanes.get_mut(key)
            && let Some(next) = next.and_then(|turn| self.ready.remove(&turn))
        {
            lane.push_front(next);
            return self.make_ready(entry);
        }
        self.enter(entry, (offset, u64::MAX), |lane, entry| {
            let at = lane.partition_point(|waiting| waiting.offset < offset);
            lane.insert(at, entry);
        });
    }

    /// Those of `offsets` that it has settled.
    pub(super) fn settled(&self, offsets: impl Iterator<Item = u64>) -> Vec<u64> {
        let unsettled: HashSet<u64> = self.unsettled_offsets().collect();
        offsets.filter(|at| *at >= self.start && !unsettled.contains(at)).collect()
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

    /// Offsets of all that is not settled; a copy counts beside its original.
    pub(super) fn unsettled_offsets(&self) -> impl Iterator<Item = u64> {
        let waiting = self.ready.values().chain(self.lanes.values().flatten());
        let elsewhere = self.out.values().chain(self.delayed.values());
        waiting.chain(elsewhere).map(|entry| entry.offset)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn group(keys: &[&'static str]) -> Group {
        let mut group = Group::new(0, "g".into(), 0);
        for (offset, key) in (0..).zip(keys) {
            let mut message = Message::new("t", "");
            message.key = Some(*key).filter(|key| !key.is_empty()).map(Bytes::from);
            group.push(offset, Arc::new(message));
        }
        group
    }

    /// Hands out one message: its offset and its ticket.
    fn take(group: &mut Group) -> (u64, u64) {
        let entry = group.take(0).unwrap();
        (entry.offset, entry.ticket)
    }

    fn offsets(group: &mut Group) -> Vec<u64> {
        std::iter::from_fn(|| group.take(0)).map(|entry| entry.offset).collect()
    }

    #[test]
    fn a_key_waits_for_its_own_and_others_go_on() {
        let mut group = group(&["a", "a", "b", "", ""]);
        let (first, a) = take(&mut group);
        assert_eq!((first, offsets(&mut group)), (0, vec![2, 3, 4]));
        assert_eq!(group.settle(a), Some(0));
        assert_eq!(take(&mut group).0, 1, "the second of key a");
    }

    #[test]
    fn handed_out_one_by_one_it_is_a_log() {
        let mut group = group(&["a", "a", "b", "", "a"]);
        for offset in 0..5 {
            let (taken, ticket) = take(&mut group);
            assert_eq!(taken, offset);
            group.settle(ticket);
        }
        assert_eq!((group.unsettled(), group.lanes.len()), (0, 0), "lanes are forgotten");
        assert!(group.out.is_empty());
    }

    #[test]
    fn what_is_given_back_comes_before_its_key_and_after_the_others() {
        let mut group = group(&["a", "a", "b"]);
        let (_, a) = take(&mut group);
        group.give_back(a, 3);
        let (b_offset, b) = take(&mut group);
        group.give_back(b, 3);
        let a = group.take(0).unwrap();
        assert_eq!((b_offset, a.offset, a.attempt), (2, 0, 2));
        group.settle(a.ticket);
        assert_eq!(take(&mut group).0, 1, "older than what was given back");
        assert_eq!(take(&mut group).0, 2);
    }

    #[test]
    fn what_is_taken_away_comes_again_in_order_and_its_old_tickets_settle_nothing() {
        let mut group = group(&["a", "a", "b"]);
        let (_, a) = take(&mut group);
        let (_, b) = take(&mut group);
        group.set_retry(a, RetryState { attempts: 3, ..RetryState::default() });
        assert_eq!(group.take_away(), 2);
        assert_eq!((group.settle(a), group.is_out(b)), (None, false));
        group.give_back(b, 3);
        let again = group.take(0).unwrap();
        assert_eq!((again.offset, again.retry.attempts, again.attempt), (0, 3, 2));
        assert_eq!((take(&mut group).0, group.unsettled()), (2, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_copy_comes_behind_what_is_there_and_keeps_no_key_waiting() {
        let mut group = group(&["a", "a", "b"]);
        let first = group.take(0).unwrap();
        group.delay(first.clone(), Instant::now() + Duration::from_secs(1));
        group.settle(first.ticket);
        let (second, ticket) = take(&mut group);
        assert_eq!((second, offsets(&mut group), group.unsettled()), (1, vec![2], 3));
        assert!(!group.release(3));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!group.release(3), "the second of its key is out");
        assert_eq!(group.settle(ticket), Some(1));
        assert_eq!(offsets(&mut group), [0]);
    }

    #[test]
    fn what_was_settled_can_come_again_in_its_place() {
        let mut group = group(&["a", "a", "a"]);
        for _ in 0..2 {
            let (_, ticket) = take(&mut group);
            group.settle(ticket);
        }
        assert_eq!(group.settled(0..3), [0, 1]);
        let third = group.take(0).unwrap();
        group.give_back(third.ticket, 3);
        for offset in [0, 1] {
            group.push_again(offset, Arc::clone(&third.message));
        }
        for expected in [0, 1, 2] {
            let again = group.take(0).unwrap();
            assert_eq!((again.offset, again.attempt), (expected, 2));
            group.settle(again.ticket);
        }
        assert_eq!(group.unsettled(), 0);
    }
}
