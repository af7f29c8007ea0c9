//! The offsets of a source in its streams, over all channels; part of the consumer. Queues need none.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::plan::Plan;
use crate::config::StreamOffset;

/// The offset tracker of each stream of a source; empty if it consumes queues.
#[derive(Debug)]
pub(super) struct StreamOffsets(Vec<Mutex<OffsetTracker>>);

#[derive(Debug, Default)]
struct OffsetTracker {
    /// One more than the highest offset received.
    next: u64,
    /// Offsets received and not settled.
    unsettled: BTreeSet<u64>,
}

impl StreamOffsets {
    pub(super) fn new(plan: &Plan) -> Self {
        match plan.is_stream() {
            true => Self(plan.queues.iter().map(|_| Mutex::default()).collect()),
            false => Self(Vec::new()),
        }
    }

    fn tracker(&self, queue: usize) -> Option<MutexGuard<'_, OffsetTracker>> {
        let tracker = self.0.get(queue)?;
        Some(tracker.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The offset to continue from: that of the first unsettled message.
    pub(super) fn resume(&self, queue: usize) -> Option<StreamOffset> {
        let tracker = self.tracker(queue)?;
        let first = tracker.unsettled.first().copied();
        first.or((tracker.next > 0).then_some(tracker.next)).map(StreamOffset::Offset)
    }

    /// Records a received message. False if it is settled and not to be handed out again.
    pub(super) fn received(&self, queue: usize, offset: u64) -> bool {
        let Some(mut tracker) = self.tracker(queue) else { return true };
        if offset >= tracker.next {
            tracker.next = offset + 1;
            tracker.unsettled.insert(offset);
        }
        tracker.unsettled.contains(&offset)
    }

    pub(super) fn settled(&self, queue: usize, offset: u64) {
        if let Some(mut tracker) = self.tracker(queue) {
            tracker.unsettled.remove(&offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_resumes_with_the_first_unsettled() {
        let offsets = StreamOffsets(vec![Mutex::default()]);
        assert_eq!(offsets.resume(0), None);
        assert!((7..10).all(|offset| offsets.received(0, offset)));
        offsets.settled(0, 8);
        assert_eq!(offsets.resume(0), Some(StreamOffset::Offset(7)));
        let handed_out: Vec<_> = (7..11).filter(|offset| offsets.received(0, *offset)).collect();
        assert_eq!(handed_out, [7, 9, 10]);
        for offset in [7, 10, 9] {
            offsets.settled(0, offset);
        }
        assert_eq!(offsets.resume(0), Some(StreamOffset::Offset(11)));
    }

    #[test]
    fn queues_have_no_offsets() {
        let offsets = StreamOffsets(Vec::new());
        assert!(offsets.received(0, 1) && offsets.received(0, 1));
        assert_eq!(offsets.resume(0), None);
    }
}
