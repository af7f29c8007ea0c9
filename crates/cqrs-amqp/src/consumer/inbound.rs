//! The queue of deliveries from the supervisor to the source; part of the consumer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use cqrs_core::consume::SourceError;
use futures_util::task::AtomicWaker;

use super::in_flight::InFlight;
use super::inbound_delivery::InboundDelivery;

/// Deliveries of the open channel that wait for the source, and the error that ends it. Holds no delivery of
/// a lost channel.
#[derive(Default)]
pub(super) struct Inbound {
    queue: Mutex<Queue>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct Queue {
    deliveries: VecDeque<Box<InboundDelivery>>,
    /// The delivery in quarantine. It is taken first, even while the others are held.
    quarantined: Option<Box<InboundDelivery>>,
    /// Set while a delivery is in quarantine or waits for it: the others stay here.
    held: bool,
    /// The last event.
    end: Option<SourceEvent>,
}

impl Queue {
    fn has_delivery(&self) -> bool {
        self.quarantined.is_some() || !(self.held || self.deliveries.is_empty())
    }
}

/// An event for the source.
pub(super) enum SourceEvent {
    Delivery(Box<InboundDelivery>),
    /// The source cannot continue.
    Failed(SourceError),
    /// The supervisor ended.
    TaskEnded,
}

/// Holds all deliveries but the one in quarantine until it is dropped.
pub(super) struct Hold(Arc<Inbound>);

/// The supervisor's end. Dropped, it ends the queue.
pub(super) struct Sender(Arc<Inbound>);

impl Inbound {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready if there is an event: true if it is a delivery.
    pub(super) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<bool> {
        self.waker.register(cx.waker());
        let queue = self.lock();
        match queue.has_delivery() {
            true => Poll::Ready(true),
            false if queue.end.is_some() => Poll::Ready(false),
            false => Poll::Pending,
        }
    }

    /// Takes the next event, and counts a delivery in `handed_out`: under the lock, so that none is taken
    /// uncounted once [`hold`](Self::hold) returns.
    pub(super) fn take(&self, handed_out: &InFlight) -> Option<SourceEvent> {
        let mut queue = self.lock();
        let mut delivery = queue.quarantined.take();
        if delivery.is_none() && !queue.held {
            delivery = queue.deliveries.pop_front();
        }
        if let Some(mut delivery) = delivery {
            delivery.handed_out.get_or_insert_with(|| handed_out.add());
            return Some(SourceEvent::Delivery(delivery));
        }
        // `None` after a clear or a hold since `poll_ready`.
        let end = queue.end.take()?;
        queue.end = Some(SourceEvent::TaskEnded);
        Some(end)
    }

    /// Drops all deliveries. They stay unsettled on their channel.
    pub(super) fn clear(&self) {
        let mut queue = self.lock();
        let dropped = (std::mem::take(&mut queue.deliveries), queue.quarantined.take());
        drop(queue);
        // Dropped after the lock is released.
        drop(dropped);
    }

    /// Holds all deliveries but the one in quarantine until the guard is dropped.
    pub(super) fn hold(self: &Arc<Self>) -> Hold {
        self.lock().held = true;
        Hold(Arc::clone(self))
    }

    /// Queues a delivery, unless its channel is gone.
    pub(super) fn push(&self, delivery: Box<InboundDelivery>) {
        let mut queue = self.lock();
        // Under the lock: a channel ends first, then its deliveries are cleared.
        if delivery.epoch.is_over() {
            return;
        }
        match delivery.quarantined {
            true => queue.quarantined = Some(delivery),
            false => queue.deliveries.push_back(delivery),
        }
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

    /// Ends the queue with an error.
    pub(super) fn fail(&self, error: SourceError) {
        self.end(SourceEvent::Failed(error));
    }

    fn end(&self, event: SourceEvent) {
        self.0.lock().end.get_or_insert(event);
        self.0.waker.wake();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.end(SourceEvent::TaskEnded);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::super::channel_epoch::{ChannelEpoch, StreamMessage};
    use super::super::original::Original;
    use super::*;

    fn delivery(epoch: &Arc<ChannelEpoch>) -> Box<InboundDelivery> {
        let mock = lapin::message::Delivery::mock(1, "".into(), "".into(), false, Vec::new());
        let (acker, original) = (mock.acker, Original::default());
        InboundDelivery::of_stream(1, StreamMessage { queue: 0, acker, original }, epoch)
    }

    #[test]
    fn lost_channel_leaves_no_delivery() {
        let inbound = Arc::new(Inbound::default());
        let sender = Sender::new(&inbound);
        let (epoch, _dropped) = ChannelEpoch::new();
        let mut cx = Context::from_waker(Waker::noop());
        inbound.push(delivery(&epoch));
        assert!(inbound.poll_ready(&mut cx).is_ready());
        epoch.end();
        inbound.clear();
        inbound.push(delivery(&epoch));
        let handed_out = InFlight::new();
        assert!(inbound.poll_ready(&mut cx).is_pending() && inbound.take(&handed_out).is_none());
        drop(sender);
        assert!(matches!(inbound.take(&handed_out), Some(SourceEvent::TaskEnded)));
    }

    #[test]
    fn held_deliveries_wait_for_the_quarantined_one() {
        let (inbound, handed_out) = (Arc::new(Inbound::default()), InFlight::new());
        let (epoch, _dropped) = ChannelEpoch::new();
        let mut cx = Context::from_waker(Waker::noop());
        inbound.push(delivery(&epoch));
        assert_eq!(handed_out.count(), 0, "a queued delivery is not handed out");
        let hold = inbound.hold();
        assert!(inbound.poll_ready(&mut cx).is_pending() && inbound.take(&handed_out).is_none());
        let mut quarantined = delivery(&epoch);
        quarantined.quarantined = true;
        inbound.push(quarantined);
        assert!(inbound.poll_ready(&mut cx).is_ready());
        let Some(SourceEvent::Delivery(quarantined)) = inbound.take(&handed_out) else {
            panic!("no delivery")
        };
        assert_eq!((quarantined.quarantined, handed_out.count()), (true, 1));
        assert!(inbound.poll_ready(&mut cx).is_pending() && inbound.take(&handed_out).is_none());
        drop((quarantined, hold));
        assert!(matches!(inbound.take(&handed_out), Some(SourceEvent::Delivery(_))));
        assert_eq!(handed_out.count(), 0, "dropped");
    }

    #[test]
    fn failure_follows_the_deliveries() {
        let inbound = Arc::new(Inbound::default());
        let sender = Sender::new(&inbound);
        let (epoch, _dropped) = ChannelEpoch::new();
        inbound.push(delivery(&epoch));
        sender.fail(SourceError::new("gone"));
        drop(sender);
        let handed_out = InFlight::new();
        assert!(matches!(inbound.take(&handed_out), Some(SourceEvent::Delivery(_))));
        assert!(matches!(inbound.take(&handed_out), Some(SourceEvent::Failed(_))));
        assert!(matches!(inbound.take(&handed_out), Some(SourceEvent::TaskEnded)));
    }
}
