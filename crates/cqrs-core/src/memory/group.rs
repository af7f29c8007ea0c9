//! The unsettled messages of one group of a topic: ready, queued per key, in flight, delayed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::consume::RetryState;
use crate::message::Message;

/// A message of one group, until it is settled.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) offset: u64,
    /// The delivery tag: unique per delivery, so that a revoked one settles nothing.
    pub(super) tag: u64,
    /// The member that has it, while it is in flight.
    pub(super) member: u64,
    pub(super) message: Arc<Message>,
    /// The number of deliveries.
    pub(super) attempt: u32,
    /// The earlier attempts, as its consumers recorded them.
    pub(super) retry: RetryState,
    /// Set for a retry copy.
    pub(super) delayed: bool,
}

/// The position of an entry in the order of delivery: its offset. One that was given back goes behind all
/// messages that the topic had then, so that a message that keeps failing does not block other keys.
type Position = (u64, u64);

/// The unsettled messages of one group. See the invariants of [`super`].
#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: u64,
    pub(super) name: Arc<str>,
    pub(super) signal: Arc<Notify>,
    /// The first offset that the group reads.
    start: u64,
    /// Ready for any member.
    ready: BTreeMap<Position, Entry>,
    queues: HashMap<Bytes, KeyQueue>,
    /// Keys whose next message is for one member only, by member.
    reserved: HashMap<u64, BTreeMap<Position, Bytes>>,
    /// In flight, by delivery tag.
    in_flight: HashMap<u64, Entry>,
    /// Retry copies, by the time at which they are due. They are in no queue.
    delayed: BTreeMap<(Instant, u64), Entry>,
    unsettled: usize,
    /// The last number given to a delivery tag, a position or a delayed copy.
    numbers: u64,
}

/// The messages of one key. Exists while one of them is ready or in flight.
#[derive(Debug, Default)]
struct KeyQueue {
    /// Behind those that are ready or in flight.
    waiting: VecDeque<Entry>,
    /// The number in flight. While it is not 0, none is ready.
    in_flight: usize,
    /// The member that has them and may take the next ones, too.
    holder: Option<u64>,
    /// The position of the next one in `reserved`.
    position: Option<Position>,
}

/// A member of a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) id: u64,
    /// Set if the member keeps the order of a key itself, so that it may take several messages of one key.
    pub(super) keeps_order: bool,
}

/// The members for which a message has become ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadyFor {
    None,
    Any,
    /// The member that has the messages before it.
    Holder,
}

impl KeyQueue {
    /// Inserts by offset. Copies have the offsets of their originals and keep their places.
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

    /// Adds the message of a new, highest offset.
    pub(super) fn push(&mut self, offset: u64, message: Arc<Message>) -> ReadyFor {
        let retry = RetryState::default();
        let entry = Entry { offset, tag: 0, member: 0, message, attempt: 0, retry, delayed: false };
        self.unsettled += 1;
        self.enter(entry, (offset, u64::MAX))
    }

    /// Makes `entry` ready, or adds it at the end of its key's queue.
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

    /// Reserves the next message of a key for the member that has those before it.
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

    /// Delivers the next message.
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

    /// A message of `key` is no longer in flight. Once none is, the next one is ready for any member.
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

    /// Recorded for the next delivery.
    pub(super) fn set_retry(&mut self, tag: u64, retry: RetryState) {
        if let Some(entry) = self.in_flight.get_mut(&tag) {
            (entry.retry, entry.delayed) = (retry, false);
        }
    }

    /// Settles a message in flight and returns its offset. `None` if it was revoked.
    pub(super) fn settle(&mut self, tag: u64) -> Option<u64> {
        let entry = self.in_flight.remove(&tag)?;
        self.unsettled -= 1;
        if let Some(key) = &entry.message.key {
            self.end_in_flight(key, |next| (next.offset, u64::MAX));
        }
        Some(entry.offset)
    }

    /// Makes a message in flight ready again. `end` is the topic's next offset.
    pub(super) fn give_back(&mut self, tag: u64, end: u64) {
        if let Some(entry) = self.in_flight.remove(&tag) {
            let position = (end, self.number());
            self.return_entry(entry, |_| position);
        }
    }

    /// `position` is that of the message of its key that becomes ready.
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

    /// Makes all messages in flight ready again, in their old order; returns their number.
    pub(super) fn revoke_all(&mut self) -> usize {
        let out = std::mem::take(&mut self.in_flight);
        let taken = out.len();
        self.return_all(out);
        taken
    }

    /// The same for the messages of one member.
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
            // A copy and its original may both be in flight, with one offset.
            let number = self.number();
            self.return_entry(entry, |next| (next.offset, number));
        }
    }

    /// Adds a retry copy of `entry`, delivered when it is `due`, behind the messages that are there then.
    pub(super) fn delay(&mut self, entry: Entry, due: Instant) {
        self.unsettled += 1;
        let number = self.number();
        self.delayed.insert((due, number), Entry { attempt: 0, ..entry });
    }

    /// Makes due retry copies ready. `true` if there were some.
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

    /// Adds a settled message again, before the later ones of its key that are not in flight.
    pub(super) fn push_redelivered(&mut self, offset: u64, message: Arc<Message>) {
        let retry = RetryState::default();
        // It was delivered before.
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
        // A message of its key is ready: the earlier of the two must be.
        let is_of_key = |(_, ready): &(&Position, &Entry)| ready.message.key.as_ref() == Some(&key);
        let ready = self.ready.iter().find(is_of_key).map(|(position, _)| *position);
        if let Some(ready) = ready.and_then(|position| self.ready.remove(&position)) {
            queue.insert(ready);
        }
        if let Some(first) = queue.waiting.pop_front() {
            self.ready.insert(position, first);
        }
    }

    /// The settled ones of `offsets`.
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

    /// The offsets of all unsettled messages, including retry copies.
    pub(super) fn unsettled_offsets(&self) -> impl Iterator<Item = u64> {
        let waiting =
            self.ready.values().chain(self.queues.values().flat_map(|queue| &queue.waiting));
        let elsewhere = self.in_flight.values().chain(self.delayed.values());
        waiting.chain(elsewhere).map(|entry| entry.offset)
    }
}

#[cfg(test)]
mod tests;
