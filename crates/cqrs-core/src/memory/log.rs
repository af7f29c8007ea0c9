//! The log of one topic: its kept messages by offset. Used by the topic's state.

use std::collections::BTreeSet;

use super::stored::StoredMessage;
use crate::broker::NumberRing;

/// The kept messages of a topic by offset, at most `capacity`.
#[derive(Debug)]
pub(super) struct Log {
    capacity: usize,
    kept: NumberRing<Kept>,
    /// The number of messages that all groups have settled: they are evicted for new ones.
    settled: usize,
    /// All below are unsettled, but those in `late`.
    searched: u64,
    /// Offsets that were settled after the search for the oldest settled one had passed them.
    late: BTreeSet<u64>,
}

#[derive(Debug)]
struct Kept {
    message: StoredMessage,
    /// The number of groups that did not settle it; a group counts once more for each retry copy.
    unsettled_by: usize,
}

impl Log {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, kept: NumberRing::new(), settled: 0, searched: 0, late: BTreeSet::new() }
    }

    /// The offset of the next message.
    pub(super) fn end(&self) -> u64 {
        self.kept.next_number()
    }

    pub(super) fn has_room(&self) -> bool {
        self.kept.len() < self.capacity || self.settled > 0
    }

    /// Adds a message, for which there is room, and returns its offset. The oldest message that all groups
    /// have settled is evicted, if the log is full.
    pub(super) fn append(&mut self, message: StoredMessage, unsettled_by: usize) -> u64 {
        if self.kept.len() >= self.capacity
            && let Some(oldest) = self.oldest_settled()
        {
            self.kept.remove(oldest);
            self.settled -= 1;
        }
        self.settled += usize::from(unsettled_by == 0);
        self.kept.push(Kept { message, unsettled_by })
    }

    /// Takes the oldest settled message from the search. Each message is passed once, whatever the order of acks.
    fn oldest_settled(&mut self) -> Option<u64> {
        if let Some(late) = self.late.pop_first() {
            return Some(late);
        }
        while self.searched < self.end() {
            let offset = self.searched;
            self.searched += 1;
            if self.kept.get(offset).is_some_and(|kept| kept.unsettled_by == 0) {
                return Some(offset);
            }
        }
        None
    }

    /// The messages from an offset on.
    pub(super) fn since(&self, start: u64) -> impl Iterator<Item = (u64, &StoredMessage)> {
        self.kept.range(start..).map(|(offset, kept)| (offset, &kept.message))
    }

    pub(super) fn get(&self, offset: u64) -> Option<&StoredMessage> {
        self.kept.get(offset).map(|kept| &kept.message)
    }

    /// The message at `offset` must be settled once more.
    pub(super) fn add_unsettled(&mut self, offset: u64) {
        let Some(kept) = self.kept.get_mut(offset) else { return };
        kept.unsettled_by += 1;
        if kept.unsettled_by == 1 {
            self.settled -= 1;
            if offset < self.searched {
                self.late.remove(&offset);
            }
        }
    }

    /// The message at `offset` must be settled once less.
    #[inline]
    pub(super) fn settle(&mut self, offset: u64) {
        let Some(kept) = self.kept.get_mut(offset) else { return };
        kept.unsettled_by -= 1;
        if kept.unsettled_by == 0 {
            self.settled += 1;
            if offset < self.searched {
                self.late.insert(offset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::Message;

    const CAPACITY: usize = 8;

    #[derive(Debug, Clone)]
    enum Step {
        /// With this number of groups.
        Append(usize),
        /// One of the kept messages.
        Settle(usize),
        AddUnsettled(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..3_usize).prop_map(Step::Append),
            4 => any::<usize>().prop_map(Step::Settle),
            1 => any::<usize>().prop_map(Step::AddUnsettled),
        ];
        proptest::collection::vec(step, 0..300)
    }

    fn stored(body: u64) -> StoredMessage {
        StoredMessage::new(Message::new("t", body.to_string()).into(), body)
    }

    proptest! {
        #[test]
        fn keeps_the_unsettled_and_the_newest(steps in steps()) {
            let (mut log, mut model) = (Log::new(CAPACITY), BTreeMap::<u64, usize>::new());
            for step in steps {
                let at = |which: usize| model.keys().nth(which % model.len().max(1)).copied();
                match step {
                    Step::Append(groups) => {
                        let settled = model.iter().find(|(_, unsettled)| **unsettled == 0);
                        let settled = settled.map(|(offset, _)| *offset);
                        let has_room = model.len() < CAPACITY || settled.is_some();
                        prop_assert_eq!(log.has_room(), has_room);
                        if has_room {
                            if model.len() == CAPACITY {
                                settled.and_then(|settled| model.remove(&settled));
                            }
                            let offset = log.append(stored(log.end()), groups);
                            model.insert(offset, groups);
                        }
                    }
                    Step::Settle(which) => {
                        if let Some(offset) = at(which).filter(|offset| model[offset] > 0) {
                            log.settle(offset);
                            model.entry(offset).and_modify(|unsettled| *unsettled -= 1);
                        }
                    }
                    Step::AddUnsettled(which) => {
                        if let Some(offset) = at(which) {
                            log.add_unsettled(offset);
                            model.entry(offset).and_modify(|unsettled| *unsettled += 1);
                        }
                    }
                }
                let settled = model.values().filter(|unsettled| **unsettled == 0).count();
                prop_assert_eq!(log.settled, settled);
                let kept: Vec<_> = log.since(0).map(|(offset, _)| offset).collect();
                prop_assert_eq!(&kept, &model.keys().copied().collect::<Vec<_>>());
                for offset in 0..log.end() {
                    let body = log.get(offset).map(|stored| stored.message().body.clone());
                    let expected = model.get(&offset).map(|_| offset.to_string().into());
                    prop_assert_eq!(body, expected);
                }
            }
        }
    }
}
