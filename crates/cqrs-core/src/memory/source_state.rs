//! The state that a memory source shares with its deliveries.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::task::AtomicWaker;

use super::broker::MemoryBroker;
use crate::consume::SubscribeRequest;

/// State that a source shares with its deliveries.
pub(super) struct SourceState {
    pub(super) broker: MemoryBroker,
    pub(super) request: SubscribeRequest,
    /// The most deliveries in flight.
    max: usize,
    /// At most `max`: only the source adds to it.
    unsettled: AtomicUsize,
    /// Woken when a delivery of a full source is settled or requeued.
    waker: AtomicWaker,
}

impl SourceState {
    pub(super) fn new(broker: MemoryBroker, request: SubscribeRequest) -> Self {
        let max = request.max_unsettled.unwrap_or_else(|| (3 * request.concurrency).clamp(16, 300));
        let (unsettled, waker) = (AtomicUsize::new(0), AtomicWaker::new());
        Self { broker, request, max, unsettled, waker }
    }

    pub(super) fn unsettled(&self) -> usize {
        self.unsettled.load(Ordering::Acquire)
    }

    /// The number of messages that may be delivered now.
    pub(super) fn room(&self) -> usize {
        self.max.saturating_sub(self.unsettled())
    }

    pub(super) fn delivered(&self, messages: usize) {
        self.unsettled.fetch_add(messages, Ordering::AcqRel);
    }

    /// A delivery was settled or requeued.
    pub(super) fn end_in_flight(&self) {
        // Only a full source waits for it.
        if self.unsettled.fetch_sub(1, Ordering::AcqRel) == self.max {
            self.waker.wake();
        }
    }

    pub(super) fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }
}
