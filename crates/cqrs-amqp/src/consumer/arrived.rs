//! A delivery between its channel and the runtime.

use std::sync::Arc;

use futures_util::FutureExt;
use lapin::Acker;
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;

use super::context::Desk;
use super::generation::Generation;
use super::in_flight::Permit;
use super::incoming::Original;

/// A delivery on its way from the channel to the runtime. Dropped, it stays unsettled on its channel.
pub(super) struct Arrived {
    /// The number of its queue in the plan.
    pub(super) queue: usize,
    pub(super) tag: u64,
    pub(super) acker: Acker,
    pub(super) original: Original,
    pub(super) redelivered: bool,
    /// Processes that died while it ran alone.
    pub(super) crashes: u32,
    /// It comes from the quarantine queue.
    pub(super) alone: bool,
    pub(super) generation: Arc<Generation>,
    /// Set when it is handed on to the runtime, or before that if it runs alone.
    pub(super) sent: Option<Permit>,
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
        let generation = Arc::clone(generation);
        let sent = None;
        Some(Box::new(Self {
            queue,
            tag,
            acker,
            original,
            redelivered,
            crashes: 0,
            alone: false,
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
            crashes: 0,
            alone: false,
            generation: Arc::clone(generation),
            sent: None,
        })
    }
}
