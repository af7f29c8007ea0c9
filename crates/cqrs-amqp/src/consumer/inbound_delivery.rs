//! A delivery on its way from the channel to the runtime; part of the consumer, queued in `inbound`.

use std::sync::Arc;

use lapin::Acker;
use lapin::message::Delivery;

use super::channel_epoch::{ChannelEpoch, StreamMessage};
use super::context::SourceContext;
use super::in_flight::Permit;
use super::original::Original;

/// A delivery that the runtime does not have yet. Dropped, it stays unsettled on its channel.
pub(super) struct InboundDelivery {
    /// The number of its queue in the plan.
    pub(super) queue: usize,
    pub(super) tag: u64,
    /// Tells if lapin closed the channel.
    pub(super) acker: Acker,
    pub(super) original: Original,
    pub(super) redelivered: bool,
    /// Crashes counted while it was in quarantine.
    pub(super) crashes: u32,
    /// Set if it was delivered from the quarantine queue.
    pub(super) quarantined: bool,
    pub(super) epoch: Arc<ChannelEpoch>,
    /// Set when it is handed out to the runtime, or before that if it is quarantined.
    pub(super) handed_out: Option<Permit>,
}

impl InboundDelivery {
    /// Takes a delivery apart. `None` if it is of a stream and was settled on an earlier channel.
    pub(super) fn new(
        queue: usize,
        delivery: Delivery,
        epoch: &Arc<ChannelEpoch>,
        context: &SourceContext,
    ) -> Option<Box<Self>> {
        let plan = context.plan.queues.get(queue)?;
        let (tag, redelivered) = (delivery.delivery_tag, delivery.redelivered);
        let (acker, original) = Original::new(delivery, &plan.name);
        if context.plan.is_stream()
            && let Some(offset) = original.stream_offset()
            && !context.stream_offsets.received(queue, offset)
        {
            // Acked for the credit only.
            let _or_void = epoch.acks.record(tag);
            return None;
        }
        let mut new = Self::of_stream(tag, StreamMessage { queue, acker, original }, epoch);
        new.redelivered = redelivered;
        Some(new)
    }

    /// A delivery of a stream that was dropped and is redelivered without the server.
    pub(super) fn of_stream(
        tag: u64,
        StreamMessage { queue, acker, original }: StreamMessage,
        epoch: &Arc<ChannelEpoch>,
    ) -> Box<Self> {
        Box::new(Self {
            queue,
            tag,
            acker,
            original,
            redelivered: true,
            crashes: 0,
            quarantined: false,
            epoch: Arc::clone(epoch),
            handed_out: None,
        })
    }
}
