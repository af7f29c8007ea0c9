//! Tests of the order and ownership of a group's messages.

use std::ops::Deref;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::Message;

const ANY: Member = Member { id: 0, keeps_order: false };
const KEEPER: Member = Member { id: 1, keeps_order: true };

fn push(group: &mut Group, offset: u64, key: Option<&[u8]>) -> ReadyFor {
    let mut message = Message::new("t", "");
    message.key = key.map(Bytes::copy_from_slice);
    group.push(offset, StoredMessage::new(message.into(), offset))
}

fn group(keys: &[&'static str]) -> Group {
    let mut group = Group::new(0, "g".into(), 0);
    for (offset, key) in (0..).zip(keys) {
        push(&mut group, offset, Some(key.as_bytes()).filter(|key| !key.is_empty()));
    }
    group
}

fn settle(group: &mut Group, tag: Tag) -> Option<u64> {
    group.settle(tag).map(|settled| settled.offset)
}

/// A message as a member took it.
struct Delivered {
    tag: Tag,
    entry: Entry,
}

impl Deref for Delivered {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

/// The next messages for `member`, at most `max`, and the result of taking them.
fn take_for(group: &mut Group, member: Member, max: usize) -> (Vec<Delivered>, TakeResult) {
    let mut taken = Vec::new();
    let result =
        group.take(member, max, |tag, entry| taken.push(Delivered { tag, entry: entry.clone() }));
    (taken, result)
}

/// The next message for `member`.
fn next(group: &mut Group, member: Member) -> Option<Delivered> {
    take_for(group, member, 1).0.pop()
}

/// Takes one message: its offset and its delivery tag.
fn take(group: &mut Group) -> (u64, Tag) {
    let Delivered { tag, entry } = next(group, ANY).unwrap();
    (entry.offset, tag)
}

fn offsets(group: &mut Group) -> Vec<u64> {
    std::iter::from_fn(|| next(group, ANY)).map(|taken| taken.offset).collect()
}

#[test]
fn key_in_flight_blocks_only_its_own_messages() {
    let mut group = group(&["a", "a", "b", "", ""]);
    let (first, a) = take(&mut group);
    assert_eq!((first, offsets(&mut group)), (0, vec![2, 3, 4]));
    assert_eq!(settle(&mut group, a), Some(0));
    assert_eq!(take(&mut group).0, 1, "the second of key a");
}

#[test]
fn single_deliveries_follow_offset_order() {
    let mut group = group(&["a", "a", "b", "", "a"]);
    for offset in 0..5 {
        let (taken, tag) = take(&mut group);
        assert_eq!(taken, offset);
        group.settle(tag);
    }
    assert_eq!((group.unsettled(), group.queues.len()), (0, 0), "queues are forgotten");
    assert_eq!(group.in_flight, 0);
}

#[test]
fn given_back_precedes_its_key_and_follows_others() {
    let mut group = group(&["a", "a", "b"]);
    let (_, a) = take(&mut group);
    group.give_back(a, 3);
    let (b_offset, b) = take(&mut group);
    group.give_back(b, 3);
    let a = next(&mut group, ANY).unwrap();
    assert_eq!((b_offset, a.offset, a.attempt), (2, 0, 2));
    group.settle(a.tag);
    assert_eq!(take(&mut group).0, 1, "older than what was given back");
    assert_eq!(take(&mut group).0, 2);
}

#[test]
fn revoked_is_redelivered_and_old_tag_settles_nothing() {
    let mut group = group(&["a", "a", "b"]);
    let (_, a) = take(&mut group);
    let (_, b) = take(&mut group);
    group.set_retry(a, RetryState { attempts: 3, ..RetryState::default() });
    assert_eq!(group.revoke_all(), 2);
    assert_eq!((group.settle(a), group.is_in_flight(b)), (None, false));
    group.give_back(b, 3);
    let again = next(&mut group, ANY).unwrap();
    assert_eq!((again.offset, again.retry.attempts, again.attempt), (0, 3, 2));
    assert_eq!((take(&mut group).0, group.unsettled()), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn delayed_copy_queues_last_and_blocks_no_key() {
    let mut group = group(&["a", "a", "b"]);
    let first = next(&mut group, ANY).unwrap();
    let due = Instant::now() + Duration::from_secs(1);
    assert_eq!(group.delay(first.tag, RetryState::default(), due), Some(0));
    group.settle(first.tag);
    assert_eq!(group.delay(first.tag, RetryState::default(), due), None, "it is settled");
    let (second, tag) = take(&mut group);
    assert_eq!((second, offsets(&mut group), group.unsettled()), (1, vec![2], 3));
    assert!(!group.release(3));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(group.release(3) && next(&mut group, ANY).is_none(), "the second of its key is out");
    assert_eq!(settle(&mut group, tag), Some(1));
    assert_eq!(offsets(&mut group), [0]);
}

#[test]
fn settled_message_is_redelivered_in_order() {
    let mut group = group(&["a", "a", "a"]);
    for _ in 0..2 {
        let (_, tag) = take(&mut group);
        group.settle(tag);
    }
    assert_eq!(group.settled(0..3), [0, 1]);
    let third = next(&mut group, ANY).unwrap();
    group.give_back(third.tag, 3);
    for offset in [0, 1] {
        group.push_redelivered(offset, third.message.clone());
    }
    for expected in [0, 1, 2] {
        let again = next(&mut group, ANY).unwrap();
        assert_eq!((again.offset, again.attempt), (expected, 2));
        group.settle(again.tag);
    }
    assert_eq!(group.unsettled(), 0);
}

#[test]
fn order_keeping_member_takes_next_of_its_key() {
    let mut group = group(&["a", "a", "b", "a"]);
    let taken = [(); 3].map(|()| next(&mut group, KEEPER).unwrap());
    assert_eq!(taken.each_ref().map(|entry| entry.offset), [0, 1, 2]);
    assert!(next(&mut group, ANY).is_none(), "the third of its key is reserved");
    assert_eq!(push(&mut group, 4, Some(b"b")), ReadyFor::Holder);
    let [a0, a1, b] = taken;
    assert_eq!(settle(&mut group, b.tag), Some(2));
    assert_eq!(take(&mut group).0, 4, "no member has one of this key now");
    group.give_back(a1.tag, 5);
    assert!(next(&mut group, ANY).is_none());
    group.give_back(a0.tag, 5);
    assert_eq!(next(&mut group, ANY).unwrap().offset, 0, "the order is kept");
    assert!(next(&mut group, KEEPER).is_none());
}

#[test]
fn revoked_messages_of_member_keep_order() {
    let mut group = group(&["a", "a", "a", "b"]);
    for _ in 0..2 {
        next(&mut group, KEEPER);
    }
    group.revoke_from(KEEPER.id);
    let first = next(&mut group, ANY).unwrap();
    assert_eq!((first.offset, first.attempt, take(&mut group).0), (0, 2, 3));
    assert!(next(&mut group, ANY).is_none());
    group.settle(first.tag);
    let (second, tag) = take(&mut group);
    group.settle(tag);
    assert_eq!((second, take(&mut group).0), (1, 2));
    assert!(group.reserved.is_empty());
}

#[test]
fn only_member_that_keeps_order_needs_no_queues() {
    let mut group = group(&["a", "a", "b", "a", "c"]);
    let (mut taken, took) = take_for(&mut group, KEEPER, 2);
    assert_eq!(took, TakeResult { taken: 2, wakes_all: false });
    assert!(!group.has_queues && !group.settle(taken[0].tag).unwrap().wakes_one);
    let (others, took) = take_for(&mut group, ANY, 9);
    assert_eq!(
        took,
        TakeResult { taken: 2, wakes_all: true },
        "the last of key a is the first member's"
    );
    taken.extend(others);
    assert_eq!(taken.iter().map(|taken| taken.offset).collect::<Vec<_>>(), [0, 1, 2, 4]);
    let last = next(&mut group, KEEPER).unwrap();
    assert_eq!(last.offset, 3);
    for delivered in taken.into_iter().skip(1).chain([last]) {
        assert!(group.has_queues && group.settle(delivered.tag).is_some());
    }
    assert!(!group.has_queues && group.queues.is_empty());
}

#[test]
fn settled_message_wakes_member_for_next_of_its_key() {
    let mut group = group(&["a", "a"]);
    let (_, tag) = take(&mut group);
    assert!(group.settle(tag).unwrap().wakes_one);
    let (_, tag) = take(&mut group);
    assert!(!group.settle(tag).unwrap().wakes_one);
}

#[derive(Debug, Clone)]
enum Step {
    /// With this key; 0 is none.
    Push(u8),
    /// Members 1 and 2 keep order, 0 does not.
    Take(u64, usize),
    /// The message in flight at this index.
    Settle(usize),
    GiveBack(usize),
    Delay(usize),
    Leave(u64),
    Revoke,
    /// The settled message at this index.
    Redeliver(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_u8..4).prop_map(Step::Push),
        8 => (0_u64..3, 1..4_usize).prop_map(|(id, max)| Step::Take(id, max)),
        4 => any::<usize>().prop_map(Step::Settle),
        2 => any::<usize>().prop_map(Step::GiveBack),
        1 => any::<usize>().prop_map(Step::Delay),
        1 => (0_u64..3).prop_map(Step::Leave),
        1 => Just(Step::Revoke),
        1 => any::<usize>().prop_map(Step::Redeliver),
    ];
    proptest::collection::vec(step, 0..120)
}

impl Group {
    fn in_flight(&self) -> impl Iterator<Item = (EntryId, &Entry)> {
        self.entries.iter().filter(|(_, entry)| entry.number.is_some())
    }

    fn tags(&self) -> Vec<Tag> {
        let tag = |(id, entry): (EntryId, &Entry)| Tag { number: entry.number.unwrap(), entry: id };
        let mut tags: Vec<_> = self.in_flight().map(tag).collect();
        tags.sort_unstable();
        tags
    }

    fn check(&self) {
        let waiting = self.queues.iter().flat_map(|(_, queue)| queue.waiting.iter().copied());
        let ready = self.ready.iter().map(|(_, id)| *id);
        let in_flight = self.in_flight().map(|(id, _)| id);
        let mut places: Vec<_> =
            ready.chain(waiting).chain(in_flight).chain(self.delayed.values().copied()).collect();
        places.sort_unstable();
        let all: Vec<_> = self.entries.iter().map(|(id, _)| id).collect();
        assert_eq!(places, all, "each message is in one place");
        assert_eq!(self.in_flight().count(), self.in_flight);
        if !self.has_queues {
            assert!(self.queues.is_empty() && self.queue_of_key.is_empty());
            assert!(self.entries.iter().all(|(_, entry)| entry.queue.is_none()));
            let member = self.last_member;
            let alone =
                self.in_flight().all(|(_, entry)| Some(entry.member) == member.map(|m| m.id));
            assert!(alone && (self.in_flight == 0 || member.unwrap().keeps_order));
            let last_out = self.in_flight().map(|(_, entry)| entry.offset).max();
            let ready: Vec<_> = self.ready.iter().map(|(_, id)| self.entries[*id].offset).collect();
            assert!(
                ready.is_sorted() && last_out.is_none_or(|out| ready.iter().all(|at| *at > out))
            );
        }
        assert_eq!(self.queues.len(), self.queue_of_key.len());
        for (key, &id) in &self.queue_of_key {
            let queue = &self.queues[id];
            let is_of_key = |entry: &&Entry| entry.message.message().key.as_ref() == Some(key);
            let out: Vec<_> = self.in_flight().map(|(_, entry)| entry).filter(is_of_key).collect();
            let ready =
                self.ready.iter().map(|(_, id)| &self.entries[*id]).filter(is_of_key).count();
            let waiting = queue.waiting.iter().map(|id| &self.entries[*id]);
            assert!(out.iter().copied().chain(waiting).all(|entry| entry.queue == Some(id)));
            assert_eq!(queue.in_flight, out.len());
            assert_eq!(ready, usize::from(out.is_empty()), "one is ready, or some are out");
            if let Some(first) = out.first() {
                assert!(out.iter().all(|entry| entry.member == first.member), "one has them all");
                assert!(out.len() == 1 || queue.holder == Some(first.member));
            }
            let reserved = queue.holder.is_some() && !queue.waiting.is_empty();
            assert_eq!(queue.position.is_some(), reserved);
        }
        let reserved = self.queues.iter().filter(|(_, queue)| queue.position.is_some()).count();
        assert_eq!(self.reserved.iter().flat_map(|(_, ids)| ids.iter()).count(), reserved);
    }

    /// Checks that no earlier message of its key waits while one was delivered. Retry copies have no order.
    fn check_order(&self, taken: &Entry) {
        let key = taken.message.message().key.as_ref();
        let mut earlier = self.entries.iter().map(|(_, entry)| entry).filter(|entry| {
            key.is_some()
                && entry.message.message().key.as_ref() == key
                && entry.offset < taken.offset
        });
        assert!(taken.delayed || earlier.all(|entry| entry.delayed || entry.number.is_some()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn key_has_one_member_and_no_message_is_lost(steps in steps()) {
        let member = |id| Member { id, keeps_order: id > 0 };
        let mut group = Group::new(0, "g".into(), 0);
        let (mut stored, mut unsettled) = (Vec::new(), 0_usize);
        let due = Instant::now();
        for step in steps {
            let (tags, end) = (group.tags(), stored.len() as u64);
            let at = |which: usize| tags.get(which % tags.len().max(1)).copied();
            match step {
                Step::Push(key) => {
                    let mut message = Message::new("t", "");
                    message.key = (key > 0).then(|| Bytes::from(vec![key]));
                    let message = StoredMessage::new(message.into(), end);
                    group.push(end, message.clone());
                    stored.push(message);
                    unsettled += 1;
                }
                Step::Take(id, max) => {
                    let (taken, _) = take_for(&mut group, member(id), max);
                    taken.iter().for_each(|taken| group.check_order(taken));
                }
                Step::Settle(which) => {
                    unsettled -= at(which).map_or(0, |tag| usize::from(group.settle(tag).is_some()));
                }
                Step::GiveBack(which) => {
                    at(which).into_iter().for_each(|tag| group.give_back(tag, end));
                }
                Step::Delay(which) => {
                    if let Some(tag) = at(which) {
                        let Entry { offset, retry, .. } = group.entries[tag.entry];
                        assert_eq!(group.delay(tag, retry, due), Some(offset));
                        group.settle(tag);
                    }
                }
                Step::Leave(id) => group.revoke_from(id),
                Step::Revoke => drop(group.revoke_all()),
                Step::Redeliver(which) => {
                    let settled = group.settled(0..end);
                    if let Some(&offset) = settled.get(which % settled.len().max(1)) {
                        let message = stored[usize::try_from(offset).unwrap()].clone();
                        group.push_redelivered(offset, message);
                        unsettled += 1;
                    }
                }
            }
            group.release(stored.len() as u64);
            group.check();
        }
        group.revoke_all();
        while let Some(delivered) = next(&mut group, member(0)) {
            group.settle(delivered.tag);
            group.check();
            unsettled -= 1;
        }
        prop_assert_eq!((unsettled, group.unsettled(), group.queues.len()), (0, 0, 0));
    }
}
