//! Property tests of random sequences of operations against the invariants of the module.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;

use crate::memory::{MemoryDelivery, MemorySubscriber};
use crate::{MemoryBroker, Message, MessageBroker, PublishErrorKind};

const GROUPS: usize = 3;
const CAPACITY: usize = 12;

#[derive(Debug, Clone)]
enum Step {
    /// With this key; 0 is none.
    Publish(u8),
    Receive(usize),
    /// The delivery in flight at this index.
    Settle(usize, usize, How),
    Resubscribe(usize),
}

#[derive(Debug, Clone, Copy)]
enum How {
    Ack,
    Nack,
    Drop,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let how = prop_oneof![4 => Just(How::Ack), 1 => Just(How::Nack), 1 => Just(How::Drop)];
    let step = prop_oneof![
        4 => (0u8..4).prop_map(Step::Publish),
        5 => (0..GROUPS).prop_map(Step::Receive),
        4 => (0..GROUPS, 0usize..8, how).prop_map(|(group, at, how)| Step::Settle(group, at, how)),
        1 => (0..GROUPS).prop_map(Step::Resubscribe),
    ];
    proptest::collection::vec(step, 0..200)
}

/// The deliveries of one group.
struct Reader {
    subscriber: MemorySubscriber,
    held: Vec<MemoryDelivery>,
    first_seen: Vec<(Option<Bytes>, u64)>,
    settled: BTreeSet<u64>,
}

impl Reader {
    fn new(broker: &MemoryBroker, group: usize) -> Self {
        let subscriber = broker.subscriber("t", &format!("g{group}"));
        Self { subscriber, held: Vec::new(), first_seen: Vec::new(), settled: BTreeSet::new() }
    }

    fn receive(&mut self) -> bool {
        let Some(delivery) = self.subscriber.try_recv() else { return false };
        let (key, offset) = (delivery.message().key.clone(), delivery.offset());
        assert!(!self.settled.contains(&offset), "settled {offset} came again");
        if key.is_some() {
            let rival = self.held.iter().find(|held| held.message().key == key);
            assert!(rival.is_none(), "two of one key are out");
        }
        assert_eq!(delivery.redelivered(), self.first_seen.contains(&(key.clone(), offset)));
        if !delivery.redelivered() {
            self.first_seen.push((key, offset));
        }
        self.held.push(delivery);
        true
    }

    fn settle(&mut self, at: usize, how: How) {
        if self.held.is_empty() {
            return;
        }
        let delivery = self.held.swap_remove(at % self.held.len());
        match how {
            How::Ack => {
                self.settled.insert(delivery.offset());
                delivery.ack();
            }
            How::Nack => delivery.nack(),
            How::Drop => drop(delivery),
        }
    }

    fn check_order(&self) {
        let mut last = BTreeMap::new();
        for (key, offset) in self.first_seen.iter().filter(|(key, _)| key.is_some()) {
            let before = last.insert(key, offset);
            assert!(before < Some(offset), "first deliveries of a key out of order");
        }
    }
}

fn run(steps: Vec<Step>) {
    let broker = MemoryBroker::builder().capacity(CAPACITY).build();
    let mut readers: Vec<_> = (0..GROUPS).map(|group| Reader::new(&broker, group)).collect();
    let mut published = BTreeSet::new();
    for step in steps {
        match step {
            Step::Publish(key) => {
                let mut message = Message::new("t", "");
                message.key = (key > 0).then(|| Bytes::from(vec![key]));
                match broker.try_enqueue(message) {
                    Ok(_receipt) => drop(published.insert(published.len() as u64)),
                    Err(error) => {
                        assert_eq!(error.kind(), PublishErrorKind::Full);
                        let all = |offset| readers.iter().all(|r| r.settled.contains(offset));
                        let owed = published.iter().filter(|offset| !all(offset)).count();
                        assert_eq!(owed, CAPACITY, "full only of the unsettled");
                    }
                }
            }
            Step::Receive(group) => drop(readers[group].receive()),
            Step::Settle(group, at, how) => readers[group].settle(at, how),
            Step::Resubscribe(group) => {
                readers[group].subscriber = broker.subscriber("t", &format!("g{group}"));
            }
        }
        assert!(broker.messages("t").len() <= CAPACITY);
    }
    for mut reader in readers {
        while reader.receive() || !reader.held.is_empty() {
            reader.settle(0, How::Ack);
        }
        reader.check_order();
        assert_eq!(reader.settled, published, "nothing is lost");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_interleaving_keeps_the_invariants(steps in steps()) {
        run(steps);
    }
}
