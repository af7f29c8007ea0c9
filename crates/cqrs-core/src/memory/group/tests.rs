//! Tests of the order and ownership of a group's messages.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::Message;

const ANY: Member = Member { id: 0, keeps_order: false };
const KEEPER: Member = Member { id: 1, keeps_order: true };

fn group(keys: &[&'static str]) -> Group {
    let mut group = Group::new(0, "g".into(), 0);
    for (offset, key) in (0..).zip(keys) {
        let mut message = Message::new("t", "");
        message.key = Some(*key).filter(|key| !key.is_empty()).map(Bytes::from);
        group.push(offset, StoredMessage::new(Arc::new(message)));
    }
    group
}

/// Takes one message: its offset and its delivery tag.
fn take(group: &mut Group) -> (u64, Tag) {
    let entry = group.take(ANY).unwrap();
    (entry.offset, entry.tag)
}

fn offsets(group: &mut Group) -> Vec<u64> {
    std::iter::from_fn(|| group.take(ANY)).map(|entry| entry.offset).collect()
}

#[test]
fn key_in_flight_blocks_only_its_own_messages() {
    let mut group = group(&["a", "a", "b", "", ""]);
    let (first, a) = take(&mut group);
    assert_eq!((first, offsets(&mut group)), (0, vec![2, 3, 4]));
    assert_eq!(group.settle(a), Some(0));
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
    assert!(group.in_flight.is_empty());
}

#[test]
fn given_back_precedes_its_key_and_follows_others() {
    let mut group = group(&["a", "a", "b"]);
    let (_, a) = take(&mut group);
    group.give_back(a, 3);
    let (b_offset, b) = take(&mut group);
    group.give_back(b, 3);
    let a = group.take(ANY).unwrap();
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
    let again = group.take(ANY).unwrap();
    assert_eq!((again.offset, again.retry.attempts, again.attempt), (0, 3, 2));
    assert_eq!((take(&mut group).0, group.unsettled()), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn delayed_copy_queues_last_and_blocks_no_key() {
    let mut group = group(&["a", "a", "b"]);
    let first = group.take(ANY).unwrap();
    group.delay(first.clone(), Instant::now() + Duration::from_secs(1));
    group.settle(first.tag);
    let (second, tag) = take(&mut group);
    assert_eq!((second, offsets(&mut group), group.unsettled()), (1, vec![2], 3));
    assert!(!group.release(3));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(group.release(3) && group.take(ANY).is_none(), "the second of its key is out");
    assert_eq!(group.settle(tag), Some(1));
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
    let third = group.take(ANY).unwrap();
    group.give_back(third.tag, 3);
    for offset in [0, 1] {
        group.push_redelivered(offset, Arc::clone(&third.message));
    }
    for expected in [0, 1, 2] {
        let again = group.take(ANY).unwrap();
        assert_eq!((again.offset, again.attempt), (expected, 2));
        group.settle(again.tag);
    }
    assert_eq!(group.unsettled(), 0);
}

#[test]
fn order_keeping_member_takes_next_of_its_key() {
    let mut group = group(&["a", "a", "b", "a"]);
    let taken = [(); 3].map(|()| group.take(KEEPER).unwrap());
    assert_eq!(taken.each_ref().map(|entry| entry.offset), [0, 1, 2]);
    assert!(group.take(ANY).is_none(), "the third of its key is reserved");
    let mut message = Message::new("t", "");
    message.key = Some("b".into());
    assert_eq!(group.push(4, StoredMessage::new(Arc::new(message))), ReadyFor::Holder);
    let [a0, a1, b] = taken;
    assert_eq!(group.settle(b.tag), Some(2));
    assert_eq!(take(&mut group).0, 4, "no member has one of this key now");
    group.give_back(a1.tag, 5);
    assert!(group.take(ANY).is_none());
    group.give_back(a0.tag, 5);
    assert_eq!(group.take(ANY).unwrap().offset, 0, "the order is kept");
    assert!(group.take(KEEPER).is_none());
}

#[test]
fn revoked_messages_of_member_keep_order() {
    let mut group = group(&["a", "a", "a", "b"]);
    for _ in 0..2 {
        group.take(KEEPER);
    }
    group.revoke_from(KEEPER.id);
    let first = group.take(ANY).unwrap();
    assert_eq!((first.offset, first.attempt, take(&mut group).0), (0, 2, 3));
    assert!(group.take(ANY).is_none());
    group.settle(first.tag);
    let (second, tag) = take(&mut group);
    group.settle(tag);
    assert_eq!((second, take(&mut group).0), (1, 2));
    assert!(group.reserved.is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    /// With this key; 0 is none.
    Push(u8),
    /// Members 1 and 2 keep order, 0 does not.
    Take(u64),
    /// The message in flight at this index.
    Settle(usize),
    GiveBack(usize),
    Delay(usize),
    Leave(u64),
    Revoke,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_u8..4).prop_map(Step::Push),
        8 => (0_u64..3).prop_map(Step::Take),
        4 => any::<usize>().prop_map(Step::Settle),
        2 => any::<usize>().prop_map(Step::GiveBack),
        1 => any::<usize>().prop_map(Step::Delay),
        1 => (0_u64..3).prop_map(Step::Leave),
        1 => Just(Step::Revoke),
    ];
    proptest::collection::vec(step, 0..120)
}

impl Group {
    fn check(&self) {
        assert_eq!(self.queues.len(), self.queue_of_key.len());
        for (key, &id) in &self.queue_of_key {
            let queue = &self.queues[id];
            let is_of_key = |entry: &&Entry| entry.message.message().key.as_ref() == Some(key);
            let in_flight = self.in_flight.iter().map(|(_, entry)| entry);
            let out: Vec<_> = in_flight.filter(is_of_key).collect();
            let ready = self.ready.iter().map(|(_, entry)| entry).filter(is_of_key).count();
            let entries = out.iter().copied().chain(&queue.waiting);
            assert!(entries.into_iter().all(|entry| entry.queue == Some(id)));
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
        assert_eq!(self.unsettled_offsets().count(), self.unsettled);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn key_has_one_member_and_no_message_is_lost(steps in steps()) {
        let member = |id| Member { id, keeps_order: id > 0 };
        let mut group = Group::new(0, "g".into(), 0);
        let (mut end, mut unsettled) = (0, 0_usize);
        let due = Instant::now();
        for step in steps {
            let mut tags: Vec<Tag> = group.in_flight.iter().map(|(_, entry)| entry.tag).collect();
            tags.sort_unstable();
            let at = |which: usize| tags.get(which % tags.len().max(1)).copied();
            match step {
                Step::Push(key) => {
                    let mut message = Message::new("t", "");
                    message.key = (key > 0).then(|| Bytes::from(vec![key]));
                    group.push(end, StoredMessage::new(Arc::new(message)));
                    (end, unsettled) = (end + 1, unsettled + 1);
                }
                Step::Take(id) => drop(group.take(member(id))),
                Step::Settle(which) => {
                    unsettled -= at(which).map_or(0, |tag| usize::from(group.settle(tag).is_some()));
                }
                Step::GiveBack(which) => {
                    at(which).into_iter().for_each(|tag| group.give_back(tag, end));
                }
                Step::Delay(which) => {
                    if let Some(tag) = at(which) {
                        group.delay(group.in_flight[tag.place].clone(), due);
                        group.settle(tag);
                    }
                }
                Step::Leave(id) => group.revoke_from(id),
                Step::Revoke => drop(group.revoke_all()),
            }
            group.release(end);
            group.check();
        }
        group.revoke_all();
        while let Some(entry) = group.take(member(0)) {
            group.settle(entry.tag);
            group.check();
            unsettled -= 1;
        }
        prop_assert_eq!((unsettled, group.unsettled(), group.queues.len()), (0, 0, 0));
    }
}
