//! The queue from the task of a source's connection to the source.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use cqrs_core::consume::SourceError;
use futures_util::task::AtomicWaker;

use super::arrived::Arrived;
use super::in_flight::InFlight;

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
    /// A message of the quarantine. It is taken first, also while the others are held.
    alone: Option<Box<Arrived>>,
    /// Set while a message runs alone or waits for that: the others stay here.
    held: bool,
    end: Option<End>,
}

impl Queue {
    fn pop(&mut self) -> Option<Box<Arrived>> {
        self.alone.take().or_else(|| if self.held { None } else { self.arrived.pop_front() })
    }

    fn has_delivery(&self) -> bool {
        self.alone.is_some() || !(self.held || self.arrived.is_empty())
    }
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

/// Holds what arrives until it is dropped, except for the message that runs alone.
pub(super) struct Hold(Arc<Inbound>);

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
        match queue.has_delivery() {
            true => Poll::Ready(true),
            false if queue.end.is_some() => Poll::Ready(false),
            false => Poll::Pending,
        }
    }

    /// Takes the next one, and counts a delivery in `handed_on`: under the lock, so that none is on its way
    /// uncounted once [`hold`](Self::hold) returns.
    pub(super) fn take(&self, handed_on: &InFlight) -> Option<Received> {
        let mut queue = self.lock();
        if let Some(mut arrived) = queue.pop() {
            arrived.sent.get_or_insert_with(|| handed_on.add());
            return Some(Received::Arrived(arrived));
        }
        // What was ready can be cleared or held by now: then there is nothing to take, and no end.
        let end = queue.end.take()?;
        queue.end = Some(End::TaskEnded);
        match end {
            End::Failed(error) => Some(Received::Failed(error)),
            End::TaskEnded => Some(Received::TaskEnded),
        }
    }

    /// Drops all deliveries. They stay unsettled on their channel.
    pub(super) fn clear(&self) {
        let mut queue = self.lock();
        let dropped = (std::mem::take(&mut queue.arrived), queue.alone.take());
        drop(queue);
        // Dropped after the lock is released.
        drop(dropped);
    }

    /// Hands on nothing that arrives until the guard is dropped.
    pub(super) fn hold(self: &Arc<Self>) -> Hold {
        self.lock().held = true;
        Hold(Arc::clone(self))
    }

    /// Queues a message that runs alone, unless its channel is gone.
    pub(super) fn push_alone(&self, arrived: Box<Arrived>) {
        let mut queue = self.lock();
        if arrived.generation.is_over() {
            return;
        }
        let _none_before = queue.alone.replace(arrived);
        drop(queue);
        self.waker.wake();
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

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.lock().held = false;
        self.0.waker.wake();
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
        let handed_on = InFlight::new();
        assert!(inbound.poll_ready(&mut cx).is_pending() && inbound.take(&handed_on).is_none());
        drop(sender);
        assert!(matches!(inbound.take(&handed_on), Some(Received::TaskEnded)));
    }

    #[test]
    fn held_deliveries_wait_for_the_one_that_runs_alone() {
        let (inbound, handed_on) = (Arc::new(Inbound::default()), InFlight::new());
        let (generation, _returned) = Generation::new();
        let mut cx = Context::from_waker(Waker::noop());
        inbound.push(arrived(&generation));
        assert_eq!(handed_on.count(), 0, "what waits here is not handed on");
        let hold = inbound.hold();
        assert!(inbound.poll_ready(&mut cx).is_pending() && inbound.take(&handed_on).is_none());
        let mut alone = arrived(&generation);
        alone.crashes = 7;
        inbound.push_alone(alone);
        assert!(inbound.poll_ready(&mut cx).is_ready());
        let Some(Received::Arrived(alone)) = inbound.take(&handed_on) else {
            panic!("no delivery")
        };
        assert_eq!((alone.crashes, handed_on.count()), (7, 1));
        assert!(inbound.poll_ready(&mut cx).is_pending() && inbound.take(&handed_on).is_none());
        drop((alone, hold));
        assert!(matches!(inbound.take(&handed_on), Some(Received::Arrived(_))));
        assert_eq!(handed_on.count(), 0, "dropped");
    }

    #[test]
    fn failure_follows_what_arrived() {
        let inbound = Arc::new(Inbound::default());
        let sender = Sender::new(&inbound);
        let (generation, _returned) = Generation::new();
        inbound.push(arrived(&generation));
        sender.fail(SourceError::new("gone"));
        drop(sender);
        let handed_on = InFlight::new();
        assert!(matches!(inbound.take(&handed_on), Some(Received::Arrived(_))));
        assert!(matches!(inbound.take(&handed_on), Some(Received::Failed(_))));
        assert!(matches!(inbound.take(&handed_on), Some(Received::TaskEnded)));
    }
}
