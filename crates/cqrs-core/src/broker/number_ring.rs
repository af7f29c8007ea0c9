//! Values by ascending number, for a topic's log and for the unconfirmed messages of a channel.

use std::collections::VecDeque;
use std::ops::RangeFrom;

/// Values that are numbered as they are added, and found and removed by their number.
///
/// A ring: adding takes no allocation once it is large enough, and a value is found in constant time while most
/// values are removed in order of their numbers, in logarithmic time otherwise.
///
/// Invariants: places are in the order of their numbers, and the first one is not empty. Empty places are
/// removed once they are more than the others, so that one old value does not make the ring grow.
#[derive(Debug, Clone)]
pub struct NumberRing<T> {
    places: VecDeque<Place<T>>,
    /// Places with a value.
    len: usize,
    next: u64,
}

#[derive(Debug, Clone)]
struct Place<T> {
    number: u64,
    /// `None` once it is removed.
    value: Option<T>,
}

/// The number of empty places that are kept anyway.
const FEW: usize = 32;

impl<T> NumberRing<T> {
    /// A ring without values, whose first number is 0.
    pub fn new() -> Self {
        Self { places: VecDeque::new(), len: 0, next: 0 }
    }

    /// The number of the next value. A number is not used again.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// Adds a value and returns its number.
    pub fn push(&mut self, value: T) -> u64 {
        let number = self.next;
        self.next += 1;
        self.places.push_back(Place { number, value: Some(value) });
        self.len += 1;
        number
    }

    /// The value of `number`, unless it is removed.
    pub fn get(&self, number: u64) -> Option<&T> {
        self.places.get(self.index(number)?)?.value.as_ref()
    }

    /// As [`get`](Self::get), to change it.
    #[inline]
    pub fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let index = self.index(number)?;
        self.places.get_mut(index)?.value.as_mut()
    }

    /// Removes the value of `number`.
    pub fn remove(&mut self, number: u64) -> Option<T> {
        let index = self.index(number)?;
        let removed = self.places.get_mut(index)?.value.take()?;
        self.len -= 1;
        while self.places.front().is_some_and(|first| first.value.is_none()) {
            self.places.pop_front();
        }
        if self.places.len() > 2 * self.len + FEW {
            self.places.retain(|place| place.value.is_some());
        }
        Some(removed)
    }

    /// Removes all values and returns them, in order.
    pub fn take_all(&mut self) -> impl DoubleEndedIterator<Item = T> + use<T> {
        self.len = 0;
        std::mem::take(&mut self.places).into_iter().filter_map(|place| place.value)
    }

    /// The values and their numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.range(0..)
    }

    /// As [`iter`](Self::iter), to change the values.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        self.places.iter_mut().filter_map(|place| Some((place.number, place.value.as_mut()?)))
    }

    /// The values from a number on, in order.
    pub fn range(&self, numbers: RangeFrom<u64>) -> impl Iterator<Item = (u64, &T)> {
        let first = self.places.partition_point(|place| place.number < numbers.start);
        let places = self.places.range(first..);
        places.filter_map(|place| Some((place.number, place.value.as_ref()?)))
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// `true` if there is no value.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn index(&self, number: u64) -> Option<usize> {
        let first = self.places.front()?.number;
        // True unless empty places between the two were removed.
        let guess = usize::try_from(number.checked_sub(first)?).ok()?;
        if self.places.get(guess).is_some_and(|place| place.number == number) {
            return Some(guess);
        }
        self.places.binary_search_by_key(&number, |place| place.number).ok()
    }
}

impl<T> Default for NumberRing<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Push,
        /// The value at this index.
        Remove(usize),
        RemoveFirst,
        TakeAll,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            60 => Just(Step::Push),
            30 => any::<usize>().prop_map(Step::Remove),
            30 => Just(Step::RemoveFirst),
            1 => Just(Step::TakeAll),
        ];
        proptest::collection::vec(step, 0..400)
    }

    proptest! {
        #[test]
        fn behaves_as_a_map_of_numbers(steps in steps()) {
            let (mut ring, mut model) = (NumberRing::new(), BTreeMap::new());
            for step in steps {
                let removed = match step {
                    Step::Push => {
                        let number = ring.next_number();
                        prop_assert_eq!(ring.push(number * 2), number);
                        model.insert(number, number * 2);
                        None
                    }
                    Step::Remove(at) => model.keys().nth(at % model.len().max(1)).copied(),
                    Step::RemoveFirst => model.keys().next().copied(),
                    Step::TakeAll => {
                        let all: Vec<_> = ring.take_all().collect();
                        prop_assert_eq!(all, model.values().copied().collect::<Vec<_>>());
                        model.clear();
                        None
                    }
                };
                if let Some(number) = removed {
                    prop_assert_eq!(ring.remove(number), model.remove(&number));
                    prop_assert_eq!(ring.remove(number), None);
                }
                for number in 0..=ring.next_number() {
                    prop_assert_eq!(ring.get(number), model.get(&number));
                }
                let all: BTreeMap<_, _> = ring.iter_mut().map(|(key, value)| (key, *value)).collect();
                prop_assert_eq!(&all, &model);
                let start = ring.next_number() / 2;
                let rest: Vec<_> = ring.range(start..).map(|(number, _)| number).collect();
                prop_assert_eq!(rest, model.range(start..).map(|(key, _)| *key).collect::<Vec<_>>());
                prop_assert_eq!((ring.len(), ring.is_empty()), (model.len(), model.is_empty()));
            }
        }
    }

    #[test]
    fn old_value_does_not_make_the_ring_grow() {
        let mut ring = NumberRing::new();
        ring.push(0);
        for value in 1..10_000 {
            let number = ring.push(value);
            assert_eq!(ring.get(number), Some(&value));
            assert_eq!(ring.remove(number), Some(value));
            assert!(ring.places.len() <= FEW + 3);
        }
        assert_eq!(ring.iter().map(|(_, value)| *value).collect::<Vec<_>>(), [0]);
    }
}
