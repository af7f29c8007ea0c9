//! The unsettled messages of one group of a topic: ready, queued per key, in flight, delayed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::RandomState;
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::ordered::OrderedQueue;
use super::stored::StoredMessage;
use crate::consume::RetryState;

/// A message of one group, until it is settled.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) offset: u64,
    pub(super) tag: Tag,
    /// The member that has it, while it is in flight.
    pub(super) member: u64,
    pub(super) message: Arc<StoredMessage>,
    /// The number of deliveries.
    pub(super) attempt: u32,
    /// The earlier attempts, as its consumers recorded them.
    pub(super) retry: RetryState,
    /// Set for a retry copy.
    pub(super) delayed: bool,
    /// The queue of its key, unless it is delayed.
    queue: Option<QueueId>,
}

/// The delivery tag of a message in flight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag {
    /// Unique per delivery, so that a revoked one settles nothing.
    number: u64,
    /// The place in `in_flight`.
    place: usize,
}

/// The position of an entry in the order of delivery: its offset. One that was given back goes behind all
/// messages that the topic had then, so that a message that keeps failing does not block other keys.
type Position = (u64, u64);

/// The place of a key's queue in `queues`.
type QueueId = usize;

/// The unsettled messages of one group. See the invariants of [`super`].
#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: u64,
    pub(super) name: Arc<str>,
    pub(super) signal: Arc<Notify>,
    /// The first offset that the group reads.
    start: u64,
    /// Ready for any member.
    ready: OrderedQueue<Position, Entry>,
    queues: Slab<KeyQueue>,
    queue_of_key: HashMap<Bytes, QueueId, RandomState>,
    /// The keys whose next message is for one member only, by member.
    reserved: Vec<(u64, OrderedQueue<Position, QueueId>)>,
    in_flight: Slab<Entry>,
    /// Retry copies, by the time at which they are due. They are in no queue.
    delayed: BTreeMap<(Instant, u64), Entry>,
    unsettled: usize,
    /// The last number given to a delivery tag, a position or a delayed copy.
    numbers: u64,
}

/// The messages of one key. Exists while one of them is ready or in flight.
#[derive(Debug)]
struct KeyQueue {
    key: Bytes,
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

impl Entry {
    fn new(offset: u64, message: Arc<StoredMessage>) -> Self {
        let (tag, retry) = (Tag::default(), RetryState::default());
        Self { offset, tag, member: 0, message, attempt: 0, retry, delayed: false, queue: None }
    }

    /// A retry copy of a message, with its earlier attempts.
    pub(super) fn retry_copy(offset: u64, message: Arc<StoredMessage>, retry: RetryState) -> Self {
        Self { retry, delayed: true, ..Self::new(offset, message) }
    }
}

impl KeyQueue {
    fn new(key: Bytes) -> Self {
        Self { key, waiting: VecDeque::new(), in_flight: 0, holder: None, position: None }
    }

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
            ready: OrderedQueue::default(),
            queues: Slab::new(),
            queue_of_key: HashMap::default(),
            reserved: Vec::new(),
            in_flight: Slab::new(),
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
    pub(super) fn push(&mut self, offset: u64, message: Arc<StoredMessage>) -> ReadyFor {
        self.unsettled += 1;
        self.enter(Entry::new(offset, message), (offset, u64::MAX))
    }

    /// The queue of the entry's key, which is made if there is none, and `true` if it was made. `None` if
    /// the entry has no key.
    fn queue_for(&mut self, entry: &Entry) -> Option<(QueueId, bool)> {
        let key = entry.message.message().key.as_ref()?;
        if let Some(id) = self.queue_of_key.get(key) {
            return Some((*id, false));
        }
        let id = self.queues.insert(KeyQueue::new(key.clone()));
        self.queue_of_key.insert(key.clone(), id);
        Some((id, true))
    }

    /// Makes `entry` ready, or adds it at the end of its key's queue.
    fn enter(&mut self, mut entry: Entry, position: Position) -> ReadyFor {
        match self.queue_for(&entry) {
            Some((id, false)) => {
                entry.queue = Some(id);
                let Some(queue) = self.queues.get_mut(id) else { return ReadyFor::None };
                queue.waiting.push_back(entry);
                match queue.position {
                    Some(_) => ReadyFor::None, // the one before it is reserved
                    None => self.reserve(id),
                }
            }
            made => {
                entry.queue = made.map(|(id, _)| id);
                self.ready.insert(position, entry);
                ReadyFor::Any
            }
        }
    }

    /// Reserves the next message of a key for the member that has those before it.
    fn reserve(&mut self, id: QueueId) -> ReadyFor {
        let Some(queue) = self.queues.get_mut(id) else { return ReadyFor::None };
        let Some(holder) = queue.holder else { return ReadyFor::None };
        let before = queue.position.take();
        let next = queue.waiting.front().map(|next| (next.offset, self.numbers + 1));
        queue.position = next;
        if let Some(before) = before {
            self.unreserve(holder, before);
        }
        let Some(position) = next else { return ReadyFor::None };
        self.numbers += 1;
        match self.reserved_for(holder) {
            Some(reserved) => reserved.insert(position, id),
            None => {
                let mut reserved = OrderedQueue::default();
                reserved.insert(position, id);
                self.reserved.push((holder, reserved));
            }
        }
        ReadyFor::Holder
    }

    fn unreserve(&mut self, holder: u64, position: Position) {
        if let Some(reserved) = self.reserved_for(holder) {
            reserved.remove(position);
        }
    }

    fn reserved_for(&mut self, member: u64) -> Option<&mut OrderedQueue<Position, QueueId>> {
        let known = self.reserved.iter_mut().find(|(known, _)| *known == member);
        known.map(|(_, reserved)| reserved)
    }

    /// Delivers the next message.
    pub(super) fn take(&mut self, member: Member) -> Option<Entry> {
        let ready = self.ready.first_key();
        let reserved = self.reserved_for(member.id).filter(|reserved| {
            let first = reserved.first_key();
            first.is_some_and(|first| ready.is_none_or(|ready| first < ready))
        });
        let mut entry = match reserved.and_then(OrderedQueue::pop_first) {
            Some((_, id)) => self.take_reserved(id)?,
            None => self.take_ready(member)?,
        };
        entry.attempt = entry.attempt.saturating_add(1);
        entry.member = member.id;
        let number = self.number();
        let place = self.in_flight.vacant_entry();
        entry.tag = Tag { number, place: place.key() };
        place.insert(entry.clone());
        Some(entry)
    }

    fn take_reserved(&mut self, id: QueueId) -> Option<Entry> {
        let queue = self.queues.get_mut(id)?;
        queue.in_flight += 1;
        queue.position = None;
        let entry = queue.waiting.pop_front();
        self.reserve(id);
        entry
    }

    fn take_ready(&mut self, member: Member) -> Option<Entry> {
        let (_, entry) = self.ready.pop_first()?;
        if let Some(id) = entry.queue
            && let Some(queue) = self.queues.get_mut(id)
        {
            queue.in_flight = 1;
            queue.holder = member.keeps_order.then_some(member.id);
            self.reserve(id);
        }
        Some(entry)
    }

    /// A message of a key is no longer in flight. Once none is, the next one is ready for any member.
    fn end_in_flight(&mut self, id: QueueId, position: impl FnOnce(&Entry) -> Position) {
        let Some(queue) = self.queues.get_mut(id) else { return };
        queue.in_flight -= 1;
        if queue.in_flight > 0 {
            return;
        }
        let reserved = queue.holder.take().zip(queue.position.take());
        match queue.waiting.pop_front() {
            Some(next) => self.ready.insert(position(&next), next),
            None => {
                self.queue_of_key.remove(&queue.key);
                self.queues.remove(id);
            }
        }
        if let Some((holder, position)) = reserved {
            self.unreserve(holder, position);
        }
    }

    pub(super) fn is_in_flight(&self, tag: Tag) -> bool {
        self.in_flight.get(tag.place).is_some_and(|entry| entry.tag == tag)
    }

    fn remove_in_flight(&mut self, tag: Tag) -> Option<Entry> {
        self.is_in_flight(tag).then(|| self.in_flight.remove(tag.place))
    }

    /// Recorded for the next delivery.
    pub(super) fn set_retry(&mut self, tag: Tag, retry: RetryState) {
        let entry = self.in_flight.get_mut(tag.place).filter(|entry| entry.tag == tag);
        if let Some(entry) = entry {
            (entry.retry, entry.delayed) = (retry, false);
        }
    }

    /// Settles a message in flight and returns its offset. `None` if it was revoked.
    pub(super) fn settle(&mut self, tag: Tag) -> Option<u64> {
        let entry = self.remove_in_flight(tag)?;
        self.unsettled -= 1;
        if let Some(queue) = entry.queue {
            self.end_in_flight(queue, |next| (next.offset, u64::MAX));
        }
        Some(entry.offset)
    }

    /// Makes a message in flight ready again. `end` is the topic's next offset.
    pub(super) fn give_back(&mut self, tag: Tag, end: u64) {
        if let Some(entry) = self.remove_in_flight(tag) {
            let position = (end, self.number());
            self.return_entry(entry, |_| position);
        }
    }

    /// `position` is that of the message of its key that becomes ready.
    fn return_entry(&mut self, entry: Entry, position: impl FnOnce(&Entry) -> Position) {
        let Some(id) = entry.queue else {
            self.ready.insert(position(&entry), entry);
            return;
        };
        if let Some(queue) = self.queues.get_mut(id) {
            queue.insert(entry);
            self.reserve(id);
            self.end_in_flight(id, position);
        }
    }

    /// Makes all messages in flight ready again, in their old order; returns their number.
    pub(super) fn revoke_all(&mut self) -> usize {
        let taken = self.in_flight.len();
        self.revoke_if(|_| true);
        taken
    }

    /// The same for the messages of one member.
    pub(super) fn revoke_from(&mut self, member: u64) {
        self.revoke_if(|entry| entry.member == member);
        self.reserved.retain(|(known, _)| *known != member);
    }

    fn revoke_if(&mut self, condition: impl Fn(&Entry) -> bool) {
        let taken = self.in_flight.iter().filter(|(_, entry)| condition(entry));
        let taken: Vec<_> = taken.map(|(_, entry)| entry.tag).collect();
        for tag in taken {
            let Some(entry) = self.remove_in_flight(tag) else { continue };
            // A copy and its original may both be in flight, with one offset.
            let number = self.number();
            self.return_entry(entry, |next| (next.offset, number));
        }
    }

    /// Adds a retry copy of `entry`, delivered when it is `due`, behind the messages that are there then.
    pub(super) fn delay(&mut self, entry: Entry, due: Instant) {
        self.unsettled += 1;
        let number = self.number();
        self.delayed.insert((due, number), Entry { attempt: 0, queue: None, ..entry });
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
    pub(super) fn push_redelivered(&mut self, offset: u64, message: Arc<StoredMessage>) {
        // It was delivered before.
        let mut entry = Entry { attempt: 1, ..Entry::new(offset, message) };
        self.unsettled += 1;
        let position = (offset, self.number());
        let key = entry.message.message().key.as_ref();
        let Some(&id) = key.and_then(|key| self.queue_of_key.get(key)) else {
            self.enter(entry, position);
            return;
        };
        let Some(queue) = self.queues.get_mut(id) else { return };
        entry.queue = Some(id);
        queue.insert(entry);
        if queue.in_flight > 0 {
            self.reserve(id);
            return;
        }
        // A message of its key is ready: the earlier of the two must be.
        let ready = self.ready.iter().find(|(_, ready)| ready.queue == Some(id));
        let ready = ready.map(|(position, _)| position);
        if let Some(ready) = ready.and_then(|position| self.ready.remove(position)) {
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

    /// The signal that wakes a waiting member, if a message is ready for any.
    pub(super) fn signal_if_ready(&self) -> Option<Arc<Notify>> {
        (!self.ready.is_empty()).then(|| Arc::clone(&self.signal))
    }

    pub(super) fn unsettled(&self) -> usize {
        self.unsettled
    }

    /// The offsets of all unsettled messages, including retry copies.
    pub(super) fn unsettled_offsets(&self) -> impl Iterator<Item = u64> {
        let queued = self.queues.iter().flat_map(|(_, queue)| &queue.waiting);
        let waiting = self.ready.iter().map(|(_, entry)| entry).chain(queued);
        let in_flight = self.in_flight.iter().map(|(_, entry)| entry);
        waiting.chain(in_flight).chain(self.delayed.values()).map(|entry| entry.offset)
    }
}

#[cfg(test)]
mod tests;
