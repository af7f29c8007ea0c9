use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::options::StreamOffset;
use super::plan::Plan;

/// How far each stream of a source has been read. Queues know that themselves: no place is kept for them.
#[derive(Debug)]
pub(super) struct Places(Vec<Mutex<Place>>);

#[derive(Debug, Default)]
struct Place {
    /// Beyond all that came.
    next: u64,
    /// What came and is not settled.
    unsettled: BTreeSet<u64>,
}

impl Places {
    pub(super) fn new(plan: &Plan) -> Self {
        match plan.is_stream() {
            true => Self(plan.queues.iter().map(|_| Mutex::default()).collect()),
            false => Self(Vec::new()),
        }
    }

    fn place(&self, queue: usize) -> Option<MutexGuard<'_, Place>> {
        let place = self.0.get(queue)?;
        Some(place.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where reading goes on: with the first message that came and is not settled.
    pub(super) fn resume(&self, queue: usize) -> Option<StreamOffset> {
        let place = self.place(queue)?;
        let first = place.unsettled.first().copied();
        first.or((place.next > 0).then_some(place.next)).map(StreamOffset::Offset)
    }

    /// A message came; whether it is to be handed out, because it was not settled before.
    pub(super) fn came(&self, queue: usize, offset: u64) -> bool {
        let Some(mut place) = self.place(queue) else { return true };
        if offset >= place.next {
            place.next = offset + 1;
            place.unsettled.insert(offset);
        }
        place.unsettled.contains(&offset)
    }

    pub(super) fn settled(&self, queue: usize, offset: u64) {
        if let Some(mut place) = self.place(queue) {
            place.unsettled.remove(&offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_goes_on_with_the_first_unsettled_and_skips_the_settled() {
        let places = Places(vec![Mutex::default()]);
        assert_eq!(places.resume(0), None);
        assert!((7..10).all(|offset| places.came(0, offset)));
        places.settled(0, 8);
        assert_eq!(places.resume(0), Some(StreamOffset::Offset(7)));
        let again: Vec<_> = (7..11).filter(|offset| places.came(0, *offset)).collect();
        assert_eq!(again, [7, 9, 10]);
        for offset in [7, 10, 9] {
            places.settled(0, offset);
        }
        assert_eq!(places.resume(0), Some(StreamOffset::Offset(11)));
    }

    #[test]
    fn queues_have_no_places() {
        let places = Places(Vec::new());
        assert!(places.came(0, 1) && places.came(0, 1));
        assert_eq!(places.resume(0), None);
    }
}
