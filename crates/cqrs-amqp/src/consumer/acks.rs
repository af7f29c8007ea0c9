//! The acknowledgements of one channel: recorded by deliveries, written by the supervisor, many with one frame.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::task::AtomicWaker;
use lapin::options::BasicAckOptions;

/// The acknowledgements of one channel.
///
/// A delivery records its ack and does not wait. The supervisor writes what was recorded since it ran last: one
/// frame acknowledges all deliveries up to its tag (`multiple`), and each recorded ack behind the first unsettled
/// delivery gets a frame of its own, so that a slow handler does not keep other acks from the server.
///
/// # Invariants
/// * A frame with `multiple` covers settled deliveries only: acknowledged ones, and requeued ones whose nack was
///   written before. RabbitMQ counts the deliveries of a channel from 1, so a tag that nobody settled, received
///   or not, ends what such a frame may cover.
/// * Its tag is one that was just recorded, because the server closes the channel over a tag that is not
///   unacknowledged (RabbitMQ manual, "Consumer Acknowledgements": `PRECONDITION_FAILED`, unknown delivery tag).
/// * Once [`close`](Self::close) has returned, nothing is recorded: what was recorded before is written by the next
///   [`write`](Self::write), or lost with the channel.
#[derive(Debug, Default)]
pub(super) struct Acks {
    recorded: Mutex<Recorded>,
    writer: AtomicWaker,
    /// Locked by the supervisor alone.
    settled: Mutex<SettledTags>,
    /// Acknowledgements written.
    written: AtomicU64,
}

#[derive(Debug, Default)]
struct Recorded {
    /// Not written yet.
    tags: Vec<u64>,
    /// All of the channel.
    count: u64,
    is_closed: bool,
}

/// A `basic.ack` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct AckFrame {
    tag: u64,
    multiple: bool,
}

impl Acks {
    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settled(&self) -> MutexGuard<'_, SettledTags> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the ack of a delivery. False if the channel is gone.
    pub(super) fn record(&self, tag: u64) -> bool {
        let mut recorded = self.recorded();
        if recorded.is_closed {
            return false;
        }
        recorded.tags.push(tag);
        recorded.count += 1;
        let is_first = recorded.tags.len() == 1;
        drop(recorded);
        // The writer takes all of them at once.
        if is_first {
            self.writer.wake();
        }
        true
    }

    /// Refuses further acks.
    pub(super) fn close(&self) {
        self.recorded().is_closed = true;
    }

    /// The number of recorded acks.
    pub(super) fn count(&self) -> u64 {
        self.recorded().count
    }

    /// The number of written acks.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// To be called when the nack of a delivery was written.
    pub(super) fn requeued(&self, tag: u64) {
        self.settled().insert(tag);
    }

    /// Writes recorded acks, now and whenever it is woken. Never ready.
    pub(super) fn poll_write(
        &self,
        channel: &lapin::Channel,
        cx: &mut Context<'_>,
    ) -> Poll<Infallible> {
        self.writer.register(cx.waker());
        self.write(channel);
        Poll::Pending
    }

    /// Hands all recorded acks to lapin, before any frame that is sent later. Does not wait: acks that the server
    /// does not read are lost with the channel, and their messages are redelivered.
    pub(super) fn write(&self, channel: &lapin::Channel) {
        self.take(|AckFrame { tag, multiple }| {
            // One poll gives the frame to lapin. An error is a lost channel, which is seen elsewhere.
            let _or_lost = channel.basic_ack(tag, BasicAckOptions { multiple }).now_or_never();
        });
    }

    /// Takes all recorded acks, as frames.
    fn take(&self, mut write: impl FnMut(AckFrame)) {
        let mut settled = self.settled();
        let mut tags = std::mem::take(&mut self.recorded().tags);
        tags.sort_unstable();
        for tag in &tags {
            settled.insert(*tag);
        }
        let covered = tags.partition_point(|tag| *tag <= settled.through);
        let (covered, single) = tags.split_at(covered);
        if let Some(tag) = covered.last() {
            write(AckFrame { tag: *tag, multiple: covered.len() > 1 });
        }
        for tag in single {
            write(AckFrame { tag: *tag, multiple: false });
        }
        self.written.fetch_add(tags.len() as u64, Ordering::Relaxed);
        // Its memory serves the next ones.
        tags.clear();
        let mut recorded = self.recorded();
        if recorded.tags.is_empty() {
            recorded.tags = tags;
        }
    }
}

/// The settled deliveries of a channel by tag: all up to one, and ranges behind it. There are no more ranges than
/// unsettled deliveries.
#[derive(Debug, Default)]
struct SettledTags {
    /// All tags from 1 to this one are settled.
    through: u64,
    /// First and last tags of the ranges behind.
    ranges: BTreeMap<u64, u64>,
}

impl SettledTags {
    fn insert(&mut self, tag: u64) {
        if tag == self.through + 1 {
            self.through = tag;
            while let Some(range) = self.ranges.first_entry()
                && *range.key() == self.through + 1
            {
                self.through = range.remove();
            }
        } else if tag > self.through {
            let last = self.ranges.remove(&(tag + 1)).unwrap_or(tag);
            match self.ranges.range_mut(..tag).next_back() {
                Some((_, before)) if *before + 1 == tag => *before = last,
                _ => {
                    self.ranges.insert(tag, last);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    use proptest::prelude::*;

    use super::*;

    fn frames(acks: &Acks) -> Vec<(u64, bool)> {
        let mut frames = Vec::new();
        acks.take(|frame| frames.push((frame.tag, frame.multiple)));
        frames
    }

    fn record(acks: &Acks, tags: impl IntoIterator<Item = u64>) {
        assert!(tags.into_iter().all(|tag| acks.record(tag)));
    }

    #[test]
    fn one_frame_acks_all_before_an_unsettled_delivery() {
        let acks = Acks::default();
        assert_eq!(frames(&acks), []);
        record(&acks, [1]);
        assert_eq!(frames(&acks), [(1, false)]);
        record(&acks, [3, 2, 4, 7, 6]);
        assert_eq!(frames(&acks), [(4, true), (6, false), (7, false)]);
        assert_eq!(frames(&acks), []);
        record(&acks, [8]);
        assert_eq!(frames(&acks), [(8, false)], "5 is unsettled");
        record(&acks, [5]);
        assert_eq!(frames(&acks), [(5, false)]);
        record(&acks, [9, 10]);
        assert_eq!(frames(&acks), [(10, true)]);
        assert_eq!((acks.count(), acks.written()), (10, 10));
    }

    #[test]
    fn requeued_delivery_is_settled_by_its_nack() {
        let acks = Acks::default();
        record(&acks, [1, 3]);
        assert_eq!(frames(&acks), [(1, false), (3, false)]);
        acks.requeued(2);
        assert_eq!(frames(&acks), []);
        record(&acks, [4, 5]);
        assert_eq!(frames(&acks), [(5, true)]);
    }

    #[test]
    fn closed_acks_keep_what_was_recorded() {
        let acks = Acks::default();
        record(&acks, [1, 2]);
        acks.close();
        assert!(!acks.record(3));
        assert_eq!((frames(&acks), acks.count()), (vec![(2, true)], 2));
    }

    #[test]
    fn first_recorded_ack_wakes_the_writer() {
        struct Wakes(AtomicUsize);
        impl Wake for Wakes {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let (acks, wakes) = (Acks::default(), Arc::new(Wakes(AtomicUsize::new(0))));
        for round in 0..3 {
            acks.writer.register(&Waker::from(Arc::clone(&wakes)));
            record(&acks, [3 * round + 1, 3 * round + 2, 3 * round + 3]);
            assert_eq!(wakes.0.load(Ordering::SeqCst) as u64, round + 1);
            assert_eq!(frames(&acks), [(3 * round + 3, true)]);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Deliver,
        Ack(usize),
        Requeue(usize),
        Write,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            40 => Just(Step::Deliver),
            30 => any::<usize>().prop_map(Step::Ack),
            3 => any::<usize>().prop_map(Step::Requeue),
            10 => Just(Step::Write),
        ];
        proptest::collection::vec(step, 0..300)
    }

    proptest! {
        /// The server as the RabbitMQ manual describes it ("Consumer Acknowledgements and Publisher Confirms").
        #[test]
        fn server_acks_what_was_recorded_and_nothing_else(steps in steps()) {
            let acks = Acks::default();
            let (mut next, mut running) = (1, Vec::new());
            let (mut unacked, mut recorded) = (BTreeSet::new(), BTreeSet::new());
            for step in steps.into_iter().chain([Step::Write]) {
                match step {
                    Step::Deliver => {
                        running.push(next);
                        unacked.insert(next);
                        next += 1;
                    }
                    Step::Ack(_) | Step::Requeue(_) if running.is_empty() => {}
                    Step::Ack(at) => {
                        let tag = running.swap_remove(at % running.len());
                        recorded.insert(tag);
                        prop_assert!(acks.record(tag));
                    }
                    Step::Requeue(at) => {
                        let tag = running.swap_remove(at % running.len());
                        unacked.remove(&tag);
                        acks.requeued(tag);
                    }
                    Step::Write => {
                        for (tag, multiple) in frames(&acks) {
                            prop_assert!(unacked.contains(&tag), "unknown delivery tag {}", tag);
                            match multiple {
                                true => unacked = unacked.split_off(&(tag + 1)),
                                false => drop(unacked.remove(&tag)),
                            }
                        }
                        let left: BTreeSet<_> = running.iter().copied().collect();
                        prop_assert_eq!(&unacked, &left);
                        prop_assert!(acks.settled().ranges.len() <= left.len());
                    }
                }
            }
        }
    }
}
