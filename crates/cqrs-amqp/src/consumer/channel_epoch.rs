//! The lifetime of one channel, shared with its deliveries: after its end none of them can be settled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lapin::Acker;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, mpsc};

use super::original::Original;

/// The state that a channel shares with its deliveries.
pub(super) struct ChannelEpoch {
    is_over: AtomicBool,
    ended: Notify,
    acked: AtomicU64,
    dropped: mpsc::UnboundedSender<DroppedDelivery>,
}

impl ChannelEpoch {
    pub(super) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<DroppedDelivery>) {
        let (dropped, receiver) = mpsc::unbounded_channel();
        let epoch = Self {
            is_over: AtomicBool::new(false),
            ended: Notify::new(),
            acked: AtomicU64::new(0),
            dropped,
        };
        (Arc::new(epoch), receiver)
    }

    /// True if the channel is gone: its deliveries cannot be settled.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Ready when the epoch ends. To be created before [`is_over`](Self::is_over) is read.
    pub(super) fn ended(&self) -> Notified<'_> {
        self.ended.notified()
    }

    /// Ends the epoch.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.ended.notify_waiters();
    }

    /// Passes a dropped delivery to the supervisor for redelivery. Never blocks.
    pub(super) fn redeliver(&self, delivery: DroppedDelivery) {
        let _or_requeued_with_the_channel = self.dropped.send(delivery);
    }

    /// Acknowledgements written.
    pub(super) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    pub(super) fn count_ack(&self) {
        self.acked.fetch_add(1, Ordering::Relaxed);
    }
}

/// A delivery that was dropped unsettled.
pub(super) struct DroppedDelivery {
    pub(super) tag: u64,
    pub(super) acker: Acker,
    /// Set for a delivery of a stream, which takes nothing back: it is redelivered from here.
    pub(super) of_stream: Option<StreamMessage>,
}

/// A message of a stream.
pub(super) struct StreamMessage {
    /// The number of its queue in the plan.
    pub(super) queue: usize,
    pub(super) original: Original,
}
