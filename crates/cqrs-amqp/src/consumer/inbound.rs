//! The queue from the task of a source's connection to the source.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use cqrs_core::consume::SourceError;
use futures_util::task::AtomicWaker;

use super::arrived::Arrived;

/// Deliveries of the open channel that wait for the source, and the error that ends it. Holds no delivery of
/// a lost channel.
#[derive(Default)]
pub(super) struct Inbound {
    queue: Mutex<Queue>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct Queue {
    arrived: VecDeque<Box<Arrived>>,
    end: Option<End>,
}

enum End {
    Failed(SourceError),
    /// The task that fills the queue is gone.
    TaskEnded,
}

/// What the source receives.
pub(super) enum Received {
    Arrived(Box<Arrived>),
    /// The last one: the source cannot go on.
    Failed(SourceError),
    TaskEnded,
}

/// The end that fills the queue. Dropped, the source learns that nothing follows.
pub(super) struct Sender(Arc<Inbound>);

impl Inbound {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready when there is something to take: true if that is a delivery.
    pub(super) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<bool> {
        self.waker.register(cx.waker());
        let queue = self.lock();
        match queue.arrived.is_empty() && queue.end.is_none() {
            true => Poll::Pending,
            false => Poll::Ready(!queue.arrived.is_empty()),
        }
    }

    pub(super) fn take(&self) -> Option<Received> {
        let mut queue = self.lock();
        if let Some(arrived) = queue.arrived.pop_front() {
            return Some(Received::Arrived(arrived));
        }
        match queue.end.replace(End::TaskEnded)? {
            End::Failed(error) => Some(Received::Failed(error)),
            End::TaskEnded => Some(Received::TaskEnded),
        }
    }

    /// Drops all deliveries. They stay unsettled on their channel.
    pub(super) fn clear(&self) {
        let dropped = std::mem::take(&mut self.lock().arrived);
        // Dropped after the lock is released.
        drop(dropped);
    }

    /// Queues a delivery, unless its channel is gone.
    pub(super) fn push(&self, arrived: Box<Arrived>) {
        let mut queue = self.lock();
        // Under the lock: a channel ends first, then its deliveries are cleared.
        if arrived.generation.is_over() {
            return;
        }
        queue.arrived.push_back(arrived);
        drop(queue);
        self.waker.wake();
    }
}

impl Sender {
    pub(super) fn new(inbound: &Arc<Inbound>) -> Self {
        Self(Arc::clone(inbound))
    }

    /// The queue.
    pub(super) fn queue(&self) -> &Arc<Inbound> {
        &self.0
    }

    pub(super) fn fail(&self, error: SourceError) {
        self.0.lock().end.get_or_insert(End::Failed(error));
        self.0.waker.wake();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.lock().end.get_or_insert(End::TaskEnded);
        self.0.waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::super::generation::Generation;
    use super::super::incoming::Original;
    use super::*;

    fn arrived(generation: &Arc<Generation>) -> Box<Arrived> {
        let delivery = lapin::message::Delivery::mock(1, "".into(), "".into(), false, Vec::new());
        Arrived::again(0, 1, delivery.acker, Original::default(), generation)
    }

    #[test]
    fn lost_channel_leaves_no_delivery() {
        let inbound = Arc::new(Inbound::default());
        let sender = Sender::new(&inbound);
        let (generation, _returned) = Generation::new();
        let mut cx = Context::from_waker(Waker::noop());
        inbound.push(arrived(&generation));
        assert!(inbound.poll_ready(&mut cx).is_ready());
        generation.end();
        inbound.clear();
        inbound.push(arrived(&generation));
        assert!(inbound.poll_ready(&mut cx).is_pending() && inbound.take().is_none());
        drop(sender);
        assert!(matches!(inbound.take(), Some(Received::TaskEnded)));
    }

    #[test]
    fn failure_follows_what_arrived() {
        let inbound = Arc::new(Inbound::default());
        let sender = Sender::new(&inbound);
        let (generation, _returned) = Generation::new();
        inbound.push(arrived(&generation));
        sender.fail(SourceError::new("gone"));
        drop(sender);
        assert!(matches!(inbound.take(), Some(Received::Arrived(_))));
        assert!(matches!(inbound.take(), Some(Received::Failed(_))));
        assert!(matches!(inbound.take(), Some(Received::TaskEnded)));
    }
}
