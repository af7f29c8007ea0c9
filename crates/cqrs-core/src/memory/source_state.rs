//! The state that a memory source shares with its deliveries.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::task::AtomicWaker;

use super::broker::MemoryBroker;
use crate::consume::SubscribeRequest;

/// State that a source shares with its deliveries.
pub(super) struct SourceState {
    pub(super) broker: MemoryBroker,
    pub(super) request: SubscribeRequest,
    unsettled: AtomicUsize,
    /// Woken when a delivery is settled or requeued.
    waker: AtomicWaker,
}

impl SourceState {
    pub(super) fn new(broker: MemoryBroker, request: SubscribeRequest) -> Self {
        Self { broker, request, unsettled: AtomicUsize::new(0), waker: AtomicWaker::new() }
    }

    pub(super) fn unsettled(&self) -> usize {
        self.unsettled.load(Ordering::Acquire)
    }

    pub(super) fn delivered(&self) {
        self.unsettled.fetch_add(1, Ordering::AcqRel);
    }

    /// A delivery was settled or requeued.
    pub(super) fn end_in_flight(&self) {
        self.unsettled.fetch_sub(1, Ordering::AcqRel);
        self.waker.wake();
    }

    pub(super) fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }
}
