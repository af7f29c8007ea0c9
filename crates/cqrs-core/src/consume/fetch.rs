//! [`Fetch`]: the deliveries that a source gives to the runtime at once, and what is left of settled ones.

use std::any::Any;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::contract::{Settle, Source, SourceDelivery};
use super::error::SourceError;
use super::incoming::Incoming;
use super::received::SpareReceived;

/// Deliveries on their way from a [`Source`] to the runtime, which passes it to
/// [`poll_fetch`](Source::poll_fetch).
///
/// It has the allocations of settled deliveries, too: a source that makes its messages with
/// [`message_of`](Self::message_of) and their settlements from [`spare_settle`](Self::spare_settle) takes nearly none.
pub struct Fetch {
    deliveries: Vec<SourceDelivery>,
    max: usize,
    pub(crate) spare: Spare,
}

impl Fetch {
    /// The room of the default.
    pub(crate) const MOST: usize = 128;

    /// An empty one with room for `max` deliveries.
    pub fn new(max: usize) -> Self {
        Self { deliveries: Vec::new(), max, spare: Spare::default() }
    }

    /// The number of deliveries that can be added.
    pub fn room(&self) -> usize {
        self.max.saturating_sub(self.deliveries.len())
    }

    /// `true` if there is no delivery.
    pub fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    /// Adds a delivery, behind the others.
    pub fn push(&mut self, delivery: SourceDelivery) {
        self.deliveries.push(delivery);
    }

    /// Adds the deliveries of `next` until it has none, or there is no room: for a source that makes them one by one.
    /// The result is that of [`poll_fetch`](Source::poll_fetch).
    pub fn poll_fill(
        &mut self,
        mut next: impl FnMut(&mut Self) -> Poll<Option<Result<SourceDelivery, SourceError>>>,
    ) -> Poll<Option<Result<(), SourceError>>> {
        while self.room() > 0 {
            match next(self) {
                Poll::Ready(Some(Ok(delivery))) => self.push(delivery),
                Poll::Ready(end) => return Poll::Ready(end.map(|end| end.map(drop))),
                Poll::Pending if self.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Some(Ok(())))
    }

    /// `message` in the allocation of a settled one, if there is one.
    pub fn message(&mut self, message: Incoming) -> Arc<Incoming> {
        if let Some(mut spare) = self.spare.messages.pop()
            && let Some(place) = Arc::get_mut(&mut spare)
        {
            *place = message;
            return spare;
        }
        Arc::new(message)
    }

    /// A message of `topic`, in the allocation of a settled one if there is one. `fill` is called once, with a message
    /// that has the topic and nothing else.
    #[inline]
    pub fn message_of(
        &mut self,
        topic: &Arc<str>,
        fill: impl FnOnce(&mut Incoming),
    ) -> Arc<Incoming> {
        let mut spare = match self.spare.messages.pop() {
            Some(spare) => spare,
            None => Arc::new(Incoming::empty(Arc::clone(topic))),
        };
        match Arc::get_mut(&mut spare) {
            Some(place) => {
                // So that no count changes that many messages share.
                if !Arc::ptr_eq(&place.topic, topic) {
                    place.topic.clone_from(topic);
                }
                fill(place);
                spare
            }
            None => {
                let mut message = Incoming::empty(Arc::clone(topic));
                fill(&mut message);
                Arc::new(message)
            }
        }
    }

    /// The settlement of an acked delivery, to be used for another one, if there is one of this type. From the first
    /// call on acked ones are kept for it: see [`Settle::poll_ack`].
    #[inline]
    pub fn spare_settle<S: Settle>(&mut self) -> Option<Box<S>> {
        self.spare.wants_settles = true;
        (self.spare.settles.pop()? as Box<dyn Any>).downcast().ok()
    }

    /// Polls `source`, which may break its contract: it is ready if it added a delivery, and polled again later if
    /// it is ready with nothing.
    pub(crate) fn poll(
        &mut self,
        source: &mut dyn Source,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(), SourceError>>> {
        match source.poll_fetch(cx, self) {
            Poll::Pending if !self.is_empty() => Poll::Ready(Some(Ok(()))),
            Poll::Ready(Some(Ok(()))) if self.is_empty() => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            polled => polled,
        }
    }

    /// The deliveries, in their order, which are removed: for a test that polls a source itself.
    pub fn drain(&mut self) -> impl Iterator<Item = SourceDelivery> {
        self.deliveries.drain(..)
    }

    /// The deliveries, which are removed, and the spare parts.
    pub(crate) fn parts(&mut self) -> (impl ExactSizeIterator<Item = SourceDelivery>, &mut Spare) {
        (self.deliveries.drain(..), &mut self.spare)
    }

    /// The first delivery. The others are given back.
    pub(crate) fn into_first(self) -> Option<SourceDelivery> {
        self.deliveries.into_iter().next()
    }
}

impl Default for Fetch {
    fn default() -> Self {
        Self::new(Self::MOST)
    }
}

crate::debug_fields!(Fetch { deliveries, max });

/// The allocations of deliveries that are acked, for new ones. New allocations cost more than the fast path of the
/// allocator, because many deliveries are fetched before the first is settled.
#[derive(Default)]
pub(crate) struct Spare {
    pub(crate) received: SpareReceived,
    messages: Vec<Arc<Incoming>>,
    settles: Vec<Box<dyn Settle>>,
    /// Set if the source uses the settlements of acked deliveries.
    pub(crate) wants_settles: bool,
}

impl Spare {
    /// Keeps an acked settlement, if the source uses it, and a message, without its content, that nobody else has.
    #[inline]
    pub(crate) fn keep(&mut self, message: Option<Arc<Incoming>>, settle: Box<dyn Settle>) {
        if self.wants_settles && self.settles.len() < Fetch::MOST {
            self.settles.push(settle);
        }
        if let Some(mut message) = message
            && self.messages.len() < Fetch::MOST
            && let Some(content) = Arc::get_mut(&mut message)
        {
            content.clear();
            self.messages.push(message);
        }
    }

    /// Takes the parts of `other`, as far as there is room, and tells it what to keep from now on. The others stay,
    /// to be dropped without a lock.
    pub(crate) fn append(&mut self, other: &mut Self) {
        self.received.append(&mut other.received);
        append(&mut self.messages, &mut other.messages);
        if self.wants_settles {
            append(&mut self.settles, &mut other.settles);
        }
        other.wants_settles = self.wants_settles;
    }

    /// Drops what [`append`](Self::append) left.
    pub(crate) fn clear(&mut self) {
        self.received.clear();
        self.messages.clear();
        self.settles.clear();
    }
}

fn append<T>(spare: &mut Vec<T>, other: &mut Vec<T>) {
    let room = Fetch::MOST.saturating_sub(spare.len());
    spare.extend(other.drain(..room.min(other.len())));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use std::time::SystemTime;

    use super::*;
    use crate::broker::BoxFuture;
    use crate::consume::{DeadLetter, Delayed, RetryState, SettleError};
    use crate::message::Headers;

    struct Numbered(u32);

    impl Settle for Numbered {
        fn begin(&mut self) -> bool {
            true
        }
        fn postpone(&mut self) {}
        fn note_attempt(&mut self, _: &RetryState) {}
        fn is_revoked(&self) -> bool {
            false
        }
        fn poll_ack(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SettleError>> {
            Poll::Ready(Ok(()))
        }
        fn retry_later(
            &mut self,
            _: Duration,
            _: &RetryState,
        ) -> BoxFuture<'_, Result<Delayed, SettleError>> {
            Box::pin(async { Ok(Delayed::Hold) })
        }
        fn dead_letter(&mut self, _: &DeadLetter) -> BoxFuture<'_, Result<(), SettleError>> {
            Box::pin(async { Ok(()) })
        }
    }

    fn message(body: &'static str) -> Incoming {
        let mut headers = Headers::new();
        headers.insert("a", "1").unwrap();
        Incoming {
            key: Some("k".into()),
            id: Some("id".into()),
            name: Some("Name".into()),
            headers,
            content_type: Some("text/plain".into()),
            timestamp: Some(SystemTime::UNIX_EPOCH),
            partition: Some(1),
            offset: Some(2),
            queue: Some("q".into()),
            redelivered: true,
            unreadable: Some("too many headers".into()),
            ..Incoming::new("t", body)
        }
    }

    #[test]
    fn settled_allocations_are_used_again_without_content() {
        let mut fetch = Fetch::default();
        assert!(fetch.spare_settle::<Numbered>().is_none());
        let first = fetch.message(message("first"));
        let at = Arc::as_ptr(&first);
        fetch.spare.keep(Some(first), Box::new(Numbered(1)));
        assert_eq!(*fetch.spare.messages[0], Incoming::empty("t".into()));
        let second = fetch.message(Incoming::new("u", "second"));
        assert_eq!((Arc::as_ptr(&second), &*second), (at, &Incoming::new("u", "second")));
        assert_eq!(fetch.spare_settle().map(|spare: Box<Numbered>| spare.0), Some(1));
        assert!(fetch.spare.settles.is_empty() && fetch.spare.messages.is_empty());
    }

    #[test]
    fn message_is_filled_in_its_place() {
        let (mut fetch, body) = (Fetch::default(), Some("body".into()));
        let topics: [Arc<str>; 2] = ["t".into(), "u".into()];
        for (topic, spares) in [(0, 0), (0, 1), (1, 1), (1, 0)] {
            fetch.spare.messages.truncate(spares);
            let filled = fetch.message_of(&topics[topic], |place| {
                assert_eq!(*place, Incoming::empty(Arc::clone(&topics[topic])));
                place.body.clone_from(&body);
            });
            assert_eq!(*filled, Incoming::new(&topics[topic], "body"));
            assert!(Arc::ptr_eq(&filled.topic, &topics[topic]));
            fetch.spare.keep(Some(filled), Box::new(Numbered(1)));
        }
    }

    #[test]
    fn message_that_is_shared_is_no_spare() {
        let (mut fetch, kept) = (Fetch::default(), Arc::new(message("kept")));
        fetch.spare.keep(Some(Arc::clone(&kept)), Box::new(Numbered(1)));
        assert!(fetch.spare.messages.is_empty());
        assert_eq!(*kept, message("kept"));
    }

    #[test]
    fn settlements_are_kept_only_for_a_source_that_uses_them() {
        let (mut fetch, mut of_worker) = (Fetch::default(), Spare::default());
        // A worker knows it after its first run.
        for kept in [0, 0, 1] {
            of_worker.keep(None, Box::new(Numbered(1)));
            assert_eq!(of_worker.settles.len(), kept);
            fetch.spare.append(&mut of_worker);
            assert_eq!((of_worker.settles.len(), fetch.spare.settles.len()), (0, kept));
            drop(fetch.spare_settle::<Numbered>());
        }
    }

    #[test]
    fn fill_ends_at_its_room_or_with_the_source() {
        let delivery = || SourceDelivery::new(message("one"), Numbered(1));
        let mut fetch = Fetch::new(3);
        assert!(fetch.poll_fill(|_| Poll::Pending).is_pending());
        let mut left = 2;
        let mut next = |_: &mut Fetch| match left {
            0 => Poll::Pending,
            _ => {
                left -= 1;
                Poll::Ready(Some(Ok(delivery())))
            }
        };
        assert!(matches!(fetch.poll_fill(&mut next), Poll::Ready(Some(Ok(())))));
        assert_eq!(fetch.room(), 1);
        let polled = fetch.poll_fill(|_| Poll::Ready(Some(Err(SourceError::new("it failed")))));
        assert!(matches!(polled, Poll::Ready(Some(Err(_)))));
        assert_eq!(fetch.room(), 1, "what was added counts");
        let polled = fetch.poll_fill(|_| Poll::Ready(Some(Ok(delivery()))));
        assert!(matches!(polled, Poll::Ready(Some(Ok(())))) && fetch.room() == 0);
    }
}
