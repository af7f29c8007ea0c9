//! The lifetime of one channel, shared with its deliveries: after its end none of them can be settled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lapin::Acker;
use tokio::sync::mpsc;

use super::acks::Acks;
use super::original::Original;

/// The state that a channel shares with its deliveries.
pub(super) struct ChannelEpoch {
    is_over: AtomicBool,
    pub(super) acks: Acks,
    dropped: mpsc::UnboundedSender<DroppedDelivery>,
}

impl ChannelEpoch {
    pub(super) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<DroppedDelivery>) {
        let (dropped, receiver) = mpsc::unbounded_channel();
        let epoch = Self { is_over: AtomicBool::new(false), acks: Acks::default(), dropped };
        (Arc::new(epoch), receiver)
    }

    /// True if the channel is gone: its deliveries cannot be settled.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Ends the epoch.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.acks.close();
    }

    /// Passes a dropped delivery to the supervisor for redelivery. Never blocks.
    pub(super) fn redeliver(&self, delivery: DroppedDelivery) {
        let _or_requeued_with_the_channel = self.dropped.send(delivery);
    }
}

/// A delivery that was dropped unsettled.
pub(super) struct DroppedDelivery {
    pub(super) tag: u64,
    /// Set for a delivery of a stream, which takes nothing back: it is redelivered from here.
    pub(super) of_stream: Option<StreamMessage>,
}

/// A message of a stream.
pub(super) struct StreamMessage {
    /// The number of its queue in the plan.
    pub(super) queue: usize,
    pub(super) acker: Acker,
    pub(super) original: Original,
}
