use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::consume::RetryState;
use crate::message::Message;

/// A message on its way through one group.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) offset: u64,
    /// Names this handing-out, so that a delivery that was taken away settles nothing.
    pub(super) tag: u64,
    /// Who has it, while it is handed out.
    pub(super) member: u64,
    pub(super) message: Arc<Message>,
    /// How often it was handed out.
    pub(super) attempt: u32,
    /// What its consumers know of earlier attempts.
    pub(super) retry: RetryState,
    /// Whether it is a copy that waited for the next attempt.
    pub(super) delayed: bool,
}

/// When an entry is handed out: by offset; one that was given back goes behind everything that was in
/// the topic then, so that a message nobody can handle does not keep the other keys waiting.
type Position = (u64, u64);

/// What one group did not settle yet. See the invariants of [`super`].
#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: u64,
    pub(super) name: Arc<str>,
    pub(super) signal: Arc<Notify>,
    /// The first offset that it reads.
    start: u64,
    /// For whichever member is first.
    ready: BTreeMap<Position, Entry>,
    queues: HashMap<Bytes, KeyQueue>,
    /// Keys whose next message is for one member alone, by member.
    reserved: HashMap<u64, BTreeMap<Position, Bytes>>,
    /// Handed out, by tag.
    in_flight: HashMap<u64, Entry>,
    /// Copies that come when their time has come. They are in no queue.
    delayed: BTreeMap<(Instant, u64), Entry>,
    unsettled: usize,
    /// Counts what gets a number of its own: tags, positions, delayed copies.
    numbers: u64,
}

/// The messages of one key. Exists while one of them is ready or handed out.
#[derive(Debug, Default)]
struct KeyQueue {
    /// Behind the one that is ready or those that are out.
    waiting: VecDeque<Entry>,
    /// How many are handed out. While any is, none is ready.
    in_flight: usize,
    /// Who has them and may have those behind them as well.
    holder: Option<u64>,
    /// Where the next one stands in `reserved`.
    position: Option<Position>,
}

/// Who takes a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) id: u64,
    /// Keeps the order of a key itself, so that several messages of one may be handed out to it.
    pub(super) keeps_order: bool,
}

/// For whom a message has become ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadyFor {
    None,
    Any,
    /// The one who has those before it.
    Holder,
}

impl KeyQueue {
    /// Behind everything earlier; copies, which have the offsets of their originals, stay where they are.
    fn insert(&mut self, entry: Entry) {
        let later = self.waiting.iter().position(|waiting| waiting.offset > entry.offset);
        self.waiting.insert(later.unwrap_or(self.waiting.len()), entry);
    }
}

impl Group {
    pub(super) fn new(id: u64, name: Arc<str>, start: u64) -> Self {
        Self {
            id,
            name,
            signal: Arc::default(),
            start,
            ready: BTreeMap::new(),
            queues: HashMap::new(),
            reserved: HashMap::new(),
            in_flight: HashMap::new(),
            delayed: BTreeMap::new(),
            unsettled: 0,
            numbers: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Adds a message later than all before.
    pub(super) fn push(&mut self, offset: u64, message: Arc<Message>) -> ReadyFor {
        let retry = RetryState::default();
        let entry = Entry { offset, tag: 0, member: 0, message, attempt: 0, retry, delayed: false };
        self.unsettled += 1;
        self.enter(entry, (offset, u64::MAX))
    }

    /// Makes `entry` ready, or lets it wait behind all of its key.
    fn enter(&mut self, entry: Entry, position: Position) -> ReadyFor {
        let Some(key) = entry.message.key.clone() else {
            self.ready.insert(position, entry);
            return ReadyFor::Any;
        };
        match self.queues.get_mut(&key) {
            Some(queue) => {
                queue.waiting.push_back(entry);
                match queue.position {
                    Some(_) => ReadyFor::None, // the one before it is reserved
                    None => self.reserve(&key),
                }
            }
            None => {
                self.queues.insert(key, KeyQueue::default());
                self.ready.insert(position, entry);
                ReadyFor::Any
            }
        }
    }

    /// Reserves the next message of a key for the one who has those before it.
    fn reserve(&mut self, key: &Bytes) -> ReadyFor {
        let number = self.number();
        let Some(queue) = self.queues.get_mut(key) else { return ReadyFor::None };
        let Some(holder) = queue.holder else { return ReadyFor::None };
        let reserved = self.reserved.entry(holder).or_default();
        if let Some(position) = queue.position.take() {
            reserved.remove(&position);
        }
        let Some(next) = queue.waiting.front() else { return ReadyFor::None };
        let position = (next.offset, number);
        queue.position = Some(position);
        reserved.insert(position, key.clone());
        ReadyFor::Holder
    }

    /// Hands out the next message.
    pub(super) fn take(&mut self, member: Member) -> Option<Entry> {
        let ready = self.ready.first_key_value().map(|(position, _)| *position);
        let reserved = self.reserved.get(&member.id).and_then(BTreeMap::first_key_value);
        let entry = match (ready, reserved.map(|(position, key)| (*position, key.clone()))) {
            (position, Some((mine, key))) if position.is_none_or(|position| mine < position) => {
                let entry = self.queues.get_mut(&key).and_then(|queue| {
                    queue.in_flight += 1;
                    queue.waiting.pop_front()
                });
                self.reserve(&key);
                entry
            }
            _ => {
                let entry = self.ready.pop_first().map(|(_, entry)| entry);
                if let Some(key) = entry.as_ref().and_then(|entry| entry.message.key.as_ref())
                    && let Some(queue) = self.queues.get_mut(key)
                {
                    queue.in_flight = 1;
                    queue.holder = member.keeps_order.then_some(member.id);
                    self.reserve(key);
                }
                entry
            }
        };
        let mut entry = entry?;
        entry.attempt = entry.attempt.saturating_add(1);
        (entry.tag, entry.member) = (self.number(), member.id);
        self.in_flight.insert(entry.tag, entry.clone());
        Some(entry)
    }

    /// One of `key` is not out any more. When none is, the next one is for anybody.
    fn end_in_flight(&mut self, key: &Bytes, position: impl FnOnce(&Entry) -> Position) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        queue.in_flight -= 1;
        if queue.in_flight > 0 {
            return;
        }
        if let (Some(holder), Some(position)) = (queue.holder.take(), queue.position.take())
            && let Some(reserved) = self.reserved.get_mut(&holder)
        {
            reserved.remove(&position);
        }
        match queue.waiting.pop_front() {
            Some(next) => drop(self.ready.insert(position(&next), next)),
            None => drop(self.queues.remove(key)),
        }
    }

    pub(super) fn is_in_flight(&self, tag: u64) -> bool {
        self.in_flight.contains_key(&tag)
    }

    /// Kept for whoever gets it next, if it comes again.
    pub(super) fn set_retry(&mut self, tag: u64, retry: RetryState) {
        if let Some(entry) = self.in_flight.get_mut(&tag) {
            (entry.retry, entry.delayed) = (retry, false);
        }
    }

    /// A handed-out message is done: its offset. `None` when it was taken away meanwhile.
    pub(super) fn settle(&mut self, tag: u64) -> Option<u64> {
        let entry = self.in_flight.remove(&tag)?;
        self.unsettled -= 1;
        if let Some(key) = &entry.message.key {
            self.end_in_flight(key, |next| (next.offset, u64::MAX));
        }
        Some(entry.offset)
    }

    /// A handed-out message is ready again. `end` is the offset of the next message of the topic.
    pub(super) fn give_back(&mut self, tag: u64, end: u64) {
        if let Some(entry) = self.in_flight.remove(&tag) {
            let position = (end, self.number());
            self.return_entry(entry, |_| position);
        }
    }

    /// `position` of whichever of its key is ready then.
    fn return_entry(&mut self, entry: Entry, position: impl FnOnce(&Entry) -> Position) {
        let Some(key) = entry.message.key.clone() else {
            self.ready.insert(position(&entry), entry);
            return;
        };
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.insert(entry);
            self.reserve(&key);
            self.end_in_flight(&key, position);
        }
    }

    /// All that is handed out is ready again, in its old order: how many.
    pub(super) fn revoke_all(&mut self) -> usize {
        let out = std::mem::take(&mut self.in_flight);
        let taken = out.len();
        self.return_all(out);
        taken
    }

    /// The same for what one member has.
    pub(super) fn revoke_from(&mut self, member: u64) {
        let (taken, out) = std::mem::take(&mut self.in_flight)
            .into_iter()
            .partition::<HashMap<_, _>, _>(|(_, entry)| entry.member == member);
        self.in_flight = out;
        self.return_all(taken);
        self.reserved.remove(&member);
    }

    fn return_all(&mut self, taken: HashMap<u64, Entry>) {
        for entry in taken.into_values() {
            // A copy and its original may both be out, with one offset.
            let number = self.number();
            self.return_entry(entry, |next| (next.offset, number));
        }
    }

    /// Adds a copy of `entry` that comes when it is `due`, behind all that is there then.
    pub(super) fn delay(&mut self, entry: Entry, due: Instant) {
        self.unsettled += 1;
        let number = self.number();
        self.delayed.insert((due, number), Entry { attempt: 0, ..entry });
    }

    /// Lets the copies in whose time has come. `true` when there are some.
    pub(super) fn release(&mut self, end: u64) -> bool {
        let mut released = false;
        if self.delayed.is_empty() {
            return released;
        }
        let now = Instant::now();
        while let Some(first) = self.delayed.first_entry()
            && first.key().0 <= now
        {
            let entry = first.remove();
            let position = (end, self.number());
            self.enter(entry, position);
            released = true;
        }
        released
    }

    /// Adds a message again that it has settled, before what is later of its key and not handed out.
    pub(super) fn push_redelivered(&mut self, offset: u64, message: Arc<Message>) {
        let retry = RetryState::default();
        // It was handed out before.
        let entry = Entry { offset, tag: 0, member: 0, message, attempt: 1, retry, delayed: false };
        self.unsettled += 1;
        let position = (offset, self.number());
        let Some(key) = entry.message.key.clone() else {
            self.ready.insert(position, entry);
            return;
        };
        let Some(queue) = self.queues.get_mut(&key) else {
            self.enter(entry, position);
            return;
        };
        queue.insert(entry);
        if queue.in_flight > 0 {
            self.reserve(&key);
            return;
        }
        // One of its key is ready: whichever is earlier shall be.
        let is_of_key = |(_, ready): &(&Position, &Entry)| ready.message.key.as_ref() == Some(&key);
        let ready = self.ready.iter().find(is_of_key).map(|(position, _)| *position);
        if let Some(ready) = ready.and_then(|position| self.ready.remove(&position)) {
            queue.insert(ready);
        }
        if let Some(first) = queue.waiting.pop_front() {
            self.ready.insert(position, first);
        }
    }

    /// Those of `offsets` that it has settled.
    pub(super) fn settled(&self, offsets: impl Iterator<Item = u64>) -> Vec<u64> {
        let unsettled: HashSet<u64> = self.unsettled_offsets().collect();
        offsets.filter(|at| *at >= self.start && !unsettled.contains(at)).collect()
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn unsettled(&self) -> usize {
        self.unsettled
    }

    /// Offsets of all that is not settled; a copy counts beside its original.
    pub(super) fn unsettled_offsets(&self) -> impl Iterator<Item = u64> {
        let waiting =
            self.ready.values().chain(self.queues.values().flat_map(|queue| &queue.waiting));
        let elsewhere = self.in_flight.values().chain(self.delayed.values());
        waiting.chain(elsewhere).map(|entry| entry.offset)
    }
}

#[cfg(test)]
mod tests;
