//! A queue in the order of its keys, used by the groups of a topic.

use std::collections::{BTreeMap, VecDeque};

/// Values by key, the least key first. Keys are unique.
///
/// Nearly all keys are inserted in ascending order: they are in a ring. A key that is less than the last one
/// of the ring is in a tree, so that no insertion moves others.
#[derive(Debug)]
pub(super) struct OrderedQueue<K, V> {
    ring: VecDeque<(K, V)>,
    late: BTreeMap<K, V>,
}

impl<K, V> Default for OrderedQueue<K, V> {
    fn default() -> Self {
        Self { ring: VecDeque::new(), late: BTreeMap::new() }
    }
}

impl<K: Ord + Copy, V> OrderedQueue<K, V> {
    pub(super) fn insert(&mut self, key: K, value: V) {
        match self.ring.back() {
            Some((last, _)) if *last > key => drop(self.late.insert(key, value)),
            _ => self.ring.push_back((key, value)),
        }
    }

    pub(super) fn first_key(&self) -> Option<K> {
        let first = self.ring.front().map(|(key, _)| *key);
        match self.late.first_key_value() {
            Some((late, _)) if first.is_none_or(|first| *late < first) => Some(*late),
            _ => first,
        }
    }

    #[inline]
    pub(super) fn pop_first(&mut self) -> Option<(K, V)> {
        match self.late.is_empty() {
            true => self.ring.pop_front(),
            false => self.pop_first_of_both(),
        }
    }

    #[cold]
    fn pop_first_of_both(&mut self) -> Option<(K, V)> {
        let first = self.ring.front().map(|(key, _)| *key);
        match self.late.first_entry() {
            Some(late) if first.is_none_or(|first| *late.key() < first) => {
                Some(late.remove_entry())
            }
            _ => self.ring.pop_front(),
        }
    }

    /// Takes linear time if the key is in the ring and not near one of its ends.
    pub(super) fn remove(&mut self, key: K) -> Option<V> {
        if self.ring.front().is_some_and(|(first, _)| *first == key) {
            return self.ring.pop_front().map(|(_, value)| value);
        }
        match self.ring.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(place) => self.ring.remove(place).map(|(_, value)| value),
            Err(_) => self.late.remove(&key),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ring.is_empty() && self.late.is_empty()
    }

    /// All values, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        let ring = self.ring.iter().map(|(key, value)| (*key, value));
        ring.chain(self.late.iter().map(|(key, value)| (*key, value)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u8),
        Pop,
        Remove(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => any::<u8>().prop_map(Step::Insert),
            3 => Just(Step::Pop),
            1 => any::<u8>().prop_map(Step::Remove),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn behaves_as_a_sorted_map(steps in steps()) {
            let (mut queue, mut model) = (OrderedQueue::default(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Insert(key) if !model.contains_key(&key) => {
                        queue.insert(key, i32::from(key));
                        model.insert(key, i32::from(key));
                    }
                    Step::Insert(_) => {}
                    Step::Pop => prop_assert_eq!(queue.pop_first(), model.pop_first()),
                    Step::Remove(key) => prop_assert_eq!(queue.remove(key), model.remove(&key)),
                }
                prop_assert_eq!(queue.first_key(), model.keys().next().copied());
                prop_assert_eq!(queue.is_empty(), model.is_empty());
                let all: BTreeMap<_, _> = queue.iter().map(|(key, value)| (key, *value)).collect();
                prop_assert_eq!(&all, &model);
            }
        }
    }

    #[test]
    fn ascending_keys_stay_in_the_ring() {
        let mut queue = OrderedQueue::default();
        (0..9).for_each(|key| queue.insert(key, ()));
        queue.pop_first();
        queue.insert(9, ());
        queue.insert(0, ());
        assert_eq!((queue.ring.len(), queue.late.len()), (9, 1));
    }
}
