//! The unsettled messages of one group of a topic: ready, queued per key, in flight, delayed.

mod entry;
mod key_queue;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::RandomState;
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::Instant;

use entry::EntryId;
pub(super) use entry::{Entry, Tag};
use key_queue::{KeyQueue, Position, QueueId};

use super::ordered::OrderedQueue;
use super::stored::StoredMessage;
use crate::consume::RetryState;

/// The unsettled messages of one group. See the invariants of [`super`].
///
/// A member that keeps the order of a key itself needs no queues while it alone has messages in flight: all others
/// are ready, in order. The queues are made when another member takes a message, or one is given back, and given up
/// when all messages are settled.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: u64,
    pub(super) name: Arc<str>,
    pub(super) signal: Arc<Notify>,
    /// The first offset that the group reads.
    start: u64,
    /// All unsettled messages.
    entries: Slab<Entry>,
    /// Ready for any member.
    ready: OrderedQueue<Position, EntryId>,
    /// Set while each key has its queue. Until then only `last_member` has messages in flight, and it keeps order.
    has_queues: bool,
    /// The member that took a message last.
    last_member: Option<Member>,
    queues: Slab<KeyQueue>,
    queue_of_key: HashMap<Bytes, QueueId, RandomState>,
    /// The keys whose next message is for one member only, by member.
    reserved: Vec<(u64, OrderedQueue<Position, QueueId>)>,
    /// The number of entries in flight.
    in_flight: usize,
    /// Retry copies, by the time at which they are due. They are in no queue.
    delayed: BTreeMap<(Instant, u64), EntryId>,
    /// The last number given to a delivery tag, a position or a delayed copy.
    numbers: u64,
}

/// A member of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) id: u64,
    /// Set if the member keeps the order of a key itself, so that it may take several messages of one key.
    pub(super) keeps_order: bool,
}

/// The largest number of empty places that are kept: all of them are looked at when queues are made.
const MOST_EMPTY: usize = 4_096;

/// The members for which a message has become ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadyFor {
    None,
    Any,
    /// The member that has the messages before it.
    Holder,
}

/// The result of [`Group::take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TakeResult {
    pub(super) taken: usize,
    /// Set if messages have become ready for other members only: all waiting members must be woken.
    pub(super) wakes_all: bool,
}

/// The result of [`Group::settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) offset: u64,
    /// Set if the next message of its key has become ready for any member.
    pub(super) wakes_one: bool,
}

impl Group {
    pub(super) fn new(id: u64, name: Arc<str>, start: u64) -> Self {
        Self {
            id,
            name,
            signal: Arc::default(),
            start,
            entries: Slab::new(),
            ready: OrderedQueue::default(),
            has_queues: false,
            last_member: None,
            queues: Slab::new(),
            queue_of_key: HashMap::default(),
            reserved: Vec::new(),
            in_flight: 0,
            delayed: BTreeMap::new(),
            numbers: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Adds the message of a new, highest offset.
    pub(super) fn push(&mut self, offset: u64, message: StoredMessage) -> ReadyFor {
        let id = self.entries.insert(Entry::new(offset, message));
        self.enter(id, (offset, u64::MAX))
    }

    /// Makes an entry ready, or adds it at the end of its key's queue.
    fn enter(&mut self, id: EntryId, position: Position) -> ReadyFor {
        let found = if self.has_queues { self.queue_for(id) } else { None };
        match found {
            Some((queue_id, false)) => {
                let Some(queue) = self.queues.get_mut(queue_id) else { return ReadyFor::None };
                queue.waiting.push_back(id);
                match queue.position {
                    Some(_) => ReadyFor::None, // the one before it is reserved
                    None => self.reserve(queue_id),
                }
            }
            _ => {
                self.ready.insert(position, id);
                ReadyFor::Any
            }
        }
    }

    /// Puts an entry into the queue of its key, which is made if there is none: the queue, and `true` if it was
    /// made. `None` if the entry has no key.
    fn queue_for(&mut self, id: EntryId) -> Option<(QueueId, bool)> {
        let entry = self.entries.get_mut(id)?;
        let key = entry.message.message().key.as_ref()?;
        if let Some(queue) = self.queue_of_key.get(key) {
            entry.queue = Some(*queue);
            return Some((*queue, false));
        }
        let queue = self.queues.insert(KeyQueue::new(key.clone()));
        self.queue_of_key.insert(key.clone(), queue);
        entry.queue = Some(queue);
        Some((queue, true))
    }

    /// Gives each key its queue.
    fn make_queues(&mut self) {
        if std::mem::replace(&mut self.has_queues, true) {
            return;
        }
        let in_flight = self.entries.iter().filter(|(_, entry)| entry.number.is_some());
        let in_flight: Vec<_> = in_flight.map(|(id, entry)| (id, entry.member)).collect();
        for (id, member) in in_flight {
            let queue = self.queue_for(id);
            if let Some(queue) = queue.and_then(|(id, _)| self.queues.get_mut(id)) {
                queue.in_flight += 1;
                queue.holder = Some(member);
            }
        }
        let mut ready = std::mem::take(&mut self.ready);
        while let Some((position, id)) = ready.pop_first() {
            self.enter(id, position);
        }
    }

    /// Reserves the next message of a key for the member that has those before it.
    fn reserve(&mut self, id: QueueId) -> ReadyFor {
        let Some(queue) = self.queues.get_mut(id) else { return ReadyFor::None };
        let Some(holder) = queue.holder else { return ReadyFor::None };
        let before = queue.position.take();
        let next = queue.waiting.front().and_then(|next| self.entries.get(*next));
        let next = next.map(|next| (next.offset, self.numbers + 1));
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

    /// Delivers the next messages, at most `max`: `deliver` gets the tag of each, and its entry.
    pub(super) fn take(
        &mut self,
        member: Member,
        max: usize,
        mut deliver: impl FnMut(Tag, &Entry),
    ) -> TakeResult {
        let is_alone =
            member.keeps_order && (self.in_flight == 0 || self.last_member == Some(member));
        let makes_queues = !(self.has_queues || is_alone);
        if makes_queues {
            self.make_queues();
        }
        self.last_member = Some(member);
        let mut taken = 0;
        while taken < max && self.take_next(member, &mut deliver).is_some() {
            taken += 1;
        }
        TakeResult { taken, wakes_all: makes_queues && !self.reserved.is_empty() }
    }

    /// Delivers the next message, if there is one.
    #[inline]
    fn take_next(&mut self, member: Member, deliver: &mut impl FnMut(Tag, &Entry)) -> Option<()> {
        let reserved = match self.reserved.is_empty() {
            true => None,
            false => self.pop_reserved(member),
        };
        let id = match reserved {
            Some(id) => id,
            None => self.take_ready(member)?,
        };
        let number = self.number();
        let entry = self.entries.get_mut(id)?;
        entry.attempt = entry.attempt.saturating_add(1);
        entry.member = member.id;
        entry.number = Some(number);
        self.in_flight += 1;
        deliver(Tag { number, entry: id }, entry);
        Some(())
    }

    /// Takes the next message that is reserved for `member`, unless one that is ready for any is before it.
    fn pop_reserved(&mut self, member: Member) -> Option<EntryId> {
        let ready = self.ready.first_key();
        let reserved = self.reserved_for(member.id)?;
        let first = reserved.first_key()?;
        if ready.is_some_and(|ready| ready < first) {
            return None;
        }
        let (_, queue_id) = reserved.pop_first()?;
        let queue = self.queues.get_mut(queue_id)?;
        queue.in_flight += 1;
        queue.position = None;
        let id = queue.waiting.pop_front();
        self.reserve(queue_id);
        id
    }

    fn take_ready(&mut self, member: Member) -> Option<EntryId> {
        let (_, id) = self.ready.pop_first()?;
        if self.has_queues
            && let Some(queue_id) = self.entries.get(id)?.queue
            && let Some(queue) = self.queues.get_mut(queue_id)
        {
            queue.in_flight = 1;
            queue.holder = member.keeps_order.then_some(member.id);
            self.reserve(queue_id);
        }
        Some(id)
    }

    /// A message of a key is no longer in flight. Once none is, the next one is ready for any member: `true`.
    fn end_in_flight(&mut self, id: QueueId, position: impl FnOnce(&Entry) -> Position) -> bool {
        let Some(queue) = self.queues.get_mut(id) else { return false };
        queue.in_flight -= 1;
        if queue.in_flight > 0 {
            return false;
        }
        let reserved = queue.holder.take().zip(queue.position.take());
        let next = queue.waiting.pop_front();
        match next.and_then(|next| Some((next, self.entries.get(next)?))) {
            Some((next, entry)) => self.ready.insert(position(entry), next),
            None => {
                self.queue_of_key.remove(&queue.key);
                self.queues.remove(id);
            }
        }
        if let Some((holder, position)) = reserved {
            self.unreserve(holder, position);
        }
        next.is_some()
    }

    pub(super) fn is_in_flight(&self, tag: Tag) -> bool {
        self.delivered(tag).is_some()
    }

    /// A message in flight. `None` if it was revoked.
    pub(super) fn delivered(&self, tag: Tag) -> Option<&Entry> {
        self.entries.get(tag.entry).filter(|entry| entry.number == Some(tag.number))
    }

    /// Ends a delivery. `false` if it was revoked.
    fn end_delivery(&mut self, tag: Tag) -> bool {
        let entry = self.entries.get_mut(tag.entry);
        let ended = entry.and_then(|entry| entry.number.take_if(|number| *number == tag.number));
        self.in_flight -= usize::from(ended.is_some());
        ended.is_some()
    }

    /// Recorded for the next delivery.
    pub(super) fn set_retry(&mut self, tag: Tag, retry: RetryState) {
        let entry = self.entries.get_mut(tag.entry);
        if let Some(entry) = entry.filter(|entry| entry.number == Some(tag.number)) {
            (entry.retry, entry.delayed) = (retry, false);
        }
    }

    /// Settles a message in flight. `None` if it was revoked.
    #[inline]
    pub(super) fn settle(&mut self, tag: Tag) -> Option<Settled> {
        let Entry { offset, queue, .. } = *self.delivered(tag)?;
        self.in_flight -= 1;
        drop(self.entries.remove(tag.entry));
        let mut wakes_one = false;
        if let Some(queue) = queue {
            wakes_one = self.end_in_flight(queue, |next| (next.offset, u64::MAX));
        }
        if self.entries.is_empty() {
            if self.entries.capacity() > MOST_EMPTY {
                self.entries = Slab::new();
            }
            self.has_queues = self.last_member.is_some_and(|member| !member.keeps_order);
        }
        Some(Settled { offset, wakes_one })
    }

    /// Makes a message in flight ready again. `end` is the topic's next offset.
    pub(super) fn give_back(&mut self, tag: Tag, end: u64) {
        if !self.is_in_flight(tag) {
            return;
        }
        self.make_queues();
        self.end_delivery(tag);
        let position = (end, self.number());
        self.return_entry(tag.entry, |_| position);
    }

    /// `position` is that of the message of its key that becomes ready.
    fn return_entry(&mut self, id: EntryId, position: impl FnOnce(&Entry) -> Position) {
        let Some(entry) = self.entries.get(id) else { return };
        let Some(queue_id) = entry.queue else {
            self.ready.insert(position(entry), id);
            return;
        };
        if let Some(queue) = self.queues.get_mut(queue_id) {
            queue.insert(id, &self.entries);
            self.reserve(queue_id);
            self.end_in_flight(queue_id, position);
        }
    }

    /// Makes all messages in flight ready again, in their old order; returns their number.
    pub(super) fn revoke_all(&mut self) -> usize {
        self.revoke_if(|_| true)
    }

    /// The same for the messages of one member.
    pub(super) fn revoke_from(&mut self, member: u64) {
        self.revoke_if(|entry| entry.member == member);
        self.reserved.retain(|(known, _)| *known != member);
    }

    fn revoke_if(&mut self, condition: impl Fn(&Entry) -> bool) -> usize {
        let tags = self.entries.iter().filter(|(_, entry)| condition(entry));
        let tags = tags.filter_map(|(id, entry)| Some(Tag { number: entry.number?, entry: id }));
        let tags: Vec<_> = tags.collect();
        if tags.is_empty() {
            return 0;
        }
        self.make_queues();
        for &tag in &tags {
            self.end_delivery(tag);
            // A copy and its original may both be in flight, with one offset.
            let number = self.number();
            self.return_entry(tag.entry, |next| (next.offset, number));
        }
        tags.len()
    }

    /// Adds a retry copy of a message in flight with its earlier attempts, delivered when it is `due`, behind the
    /// messages that are there then. Returns the message's offset; `None` if it was revoked.
    pub(super) fn delay(&mut self, tag: Tag, retry: RetryState, due: Instant) -> Option<u64> {
        let Entry { offset, message, .. } = self.delivered(tag)?;
        let (offset, message) = (*offset, message.clone());
        let copy = Entry { retry, delayed: true, ..Entry::new(offset, message) };
        let number = self.number();
        self.delayed.insert((due, number), self.entries.insert(copy));
        Some(offset)
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
            let id = first.remove();
            let position = (end, self.number());
            self.make_queues();
            self.enter(id, position);
            released = true;
        }
        released
    }

    /// Adds a settled message again, before the later ones of its key that are not in flight.
    pub(super) fn push_redelivered(&mut self, offset: u64, message: StoredMessage) {
        self.make_queues();
        let position = (offset, self.number());
        let key = message.message().key.as_ref();
        let queue_id = key.and_then(|key| self.queue_of_key.get(key).copied());
        // It was delivered before.
        let entry = Entry { attempt: 1, queue: queue_id, ..Entry::new(offset, message) };
        let id = self.entries.insert(entry);
        let Some(queue_id) = queue_id else {
            self.enter(id, position);
            return;
        };
        let Some(queue) = self.queues.get_mut(queue_id) else { return };
        queue.insert(id, &self.entries);
        if queue.in_flight > 0 {
            self.reserve(queue_id);
            return;
        }
        // A message of its key is ready: the earlier of the two must be.
        let is_of_key =
            |id: EntryId| self.entries.get(id).is_some_and(|e| e.queue == Some(queue_id));
        let ready = self.ready.iter().find(|(_, ready)| is_of_key(**ready));
        let ready = ready.map(|(position, _)| position);
        if let Some(ready) = ready.and_then(|position| self.ready.remove(position)) {
            queue.insert(ready, &self.entries);
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
        self.entries.len()
    }

    /// The offsets of all unsettled messages, including retry copies.
    pub(super) fn unsettled_offsets(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().map(|(_, entry)| entry.offset)
    }
}

#[cfg(test)]
mod tests;
