use std::sync::Arc;

use futures_util::FutureExt;
use lapin::Acker;
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;

use super::generation::{Generation, Sent};
use super::incoming::Original;
use super::settle::Desk;
use super::suspicion::{Judgement, Suspect};

/// A delivery on its way from the channel to the runtime. Dropped, it stays unsettled on its channel.
pub(super) struct Arrived {
    /// The number of its queue in the plan.
    pub(super) queue: usize,
    pub(super) tag: u64,
    pub(super) acker: Acker,
    pub(super) original: Original,
    pub(super) redelivered: bool,
    pub(super) judgement: Judgement,
    pub(super) generation: Arc<Generation>,
    /// Since it was handed on.
    pub(super) sent: Option<Sent>,
}

impl Arrived {
    /// Takes a delivery apart. None when it was settled before its stream was opened anew.
    pub(super) fn new(
        queue: usize,
        delivery: Delivery,
        generation: &Arc<Generation>,
        desk: &Desk,
    ) -> Option<Box<Self>> {
        let plan = desk.plan.queues.get(queue)?;
        let (tag, acker, redelivered) =
            (delivery.delivery_tag, delivery.acker.clone(), delivery.redelivered);
        let original = Original::new(delivery, &plan.name);
        if let Some(offset) = original.stream_offset()
            && !desk.places.came(queue, offset)
        {
            // Only for the credit.
            let _or_void = acker.ack(BasicAckOptions::default()).now_or_never();
            return None;
        }
        let judgement = desk.suspicion.judge(&original);
        let generation = Arc::clone(generation);
        let sent = None;
        Some(Box::new(Self {
            queue,
            tag,
            acker,
            original,
            redelivered,
            judgement,
            generation,
            sent,
        }))
    }

    /// One that was dropped and comes again without the server.
    pub(super) fn again(
        queue: usize,
        tag: u64,
        acker: Acker,
        original: Original,
        generation: &Arc<Generation>,
    ) -> Box<Self> {
        Box::new(Self {
            queue,
            tag,
            acker,
            original,
            redelivered: true,
            judgement: Judgement { crashes: 0, suspect: Suspect::No },
            generation: Arc::clone(generation),
            sent: None,
        })
    }
}
