//! The quarantine of one channel: moves candidates into the quarantine queue and runs them one at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cqrs_core::consume::support::error_chain;
use lapin::options::BasicGetOptions;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::inspect::declare_passive;
use super::state::{UNAVAILABLE, WaitTimer};
use crate::connect::topology::short;
use crate::consumer::channel_epoch::ChannelEpoch;
use crate::consumer::context::SourceContext;
use crate::consumer::copies::{IfMissing, Target, Written};
use crate::consumer::copy_properties;
use crate::consumer::delivery_count::DeliveryCount;
use crate::consumer::in_flight::InFlight;
use crate::consumer::inbound::Inbound;
use crate::consumer::inbound_delivery::InboundDelivery;
use crate::error::{AmqpError, ErrorKind, from_lapin};

/// The longest time that the quarantine waits for the other messages of its source if none of them runs.
const STALLED: Duration = Duration::from_secs(10);
/// Interval of the search for messages that another process left in a quarantine queue.
pub(in crate::consumer) const INSPECT_INTERVAL: Duration = Duration::from_secs(10);
/// Interval of the search while another source of the process runs a quarantined message.
const BUSY: Duration = Duration::from_secs(3);

/// Locked while this process runs a quarantined message.
static RUNNING: Mutex<()> = Mutex::const_new(());

/// True if a delivery of a consumer has to be quarantined.
pub(in crate::consumer) fn is_candidate(
    delivery: &InboundDelivery,
    context: &SourceContext,
) -> bool {
    let state = &context.quarantine;
    context.plan.quarantine_name(delivery.queue).is_some()
        && DeliveryCount::of(&delivery.original).is_candidate(state.lost.load(Ordering::Relaxed))
        && state.takes_messages()
}

/// The quarantine of one channel.
pub(in crate::consumer) struct QuarantineRun {
    pub(in crate::consumer) channel: Arc<lapin::Channel>,
    pub(in crate::consumer) epoch: Arc<ChannelEpoch>,
    pub(in crate::consumer) context: Arc<SourceContext>,
    pub(in crate::consumer) inbound: Arc<Inbound>,
    /// For each queue, set if this channel may run its quarantined messages.
    pub(in crate::consumer) may_run: Vec<bool>,
}

/// The end of a run of a quarantine queue.
enum Drained {
    Empty {
        ran: bool,
    },
    /// Another source of the process runs a quarantined message.
    Busy,
    /// The quarantined message, or the messages before it, took too long.
    TimeUp,
}

impl QuarantineRun {
    /// Quarantines `candidate`, if any, and runs the messages of the quarantine queues, unless that is
    /// postponed. Returns the time of the next run.
    pub(in crate::consumer) async fn run(
        self,
        candidate: Option<Box<InboundDelivery>>,
    ) -> Result<Instant, AmqpError> {
        let state = &self.context.quarantine;
        let mut is_empty = candidate.is_none();
        let timer = WaitTimer { quarantine: state, since: Instant::now() };
        if let Some(candidate) = candidate
            && !self.store(&candidate, 0).await
        {
            self.inbound.push(candidate);
        }
        let end = match state.time_left() {
            Ok(left) => timer.since + left,
            Err(until) => return Ok(until),
        };
        for index in 0..self.context.plan.queues.len() {
            match self.drain(index, end).await? {
                Drained::Empty { ran } => is_empty &= !ran,
                Drained::Busy => return Ok(Instant::now() + BUSY),
                Drained::TimeUp => return Ok(state.postpone(&self.context.plan.name)),
            }
        }
        drop(timer);
        if is_empty {
            state.seen_empty();
        }
        Ok(Instant::now() + INSPECT_INTERVAL)
    }

    /// Stores a copy of `delivery` with its crash count in the quarantine queue, then acks the delivery. After an
    /// interruption between the two, both are handled. False: it is not stored.
    async fn store(&self, delivery: &InboundDelivery, crashes: u32) -> bool {
        let (plan, state) = (&self.context.plan, &self.context.quarantine);
        let Some(queue) = plan.queues.get(delivery.queue) else { return false };
        let Some(quarantine) = queue.quarantine.clone() else { return false };
        let (name, target) =
            (&plan.name, Target { queue: quarantine, if_missing: IfMissing::Ensure });
        let properties = copy_properties::quarantine(&delivery.original, crashes);
        let stored = self.context.copies.write(&target, &properties, &delivery.original.body).await;
        match stored {
            Ok(Written::Stored) => {}
            Ok(Written::TooLarge(error)) => {
                if let Some(left_out) = state.too_large.line() {
                    tracing::warn!(
                        subscription = %name, error = %error_chain(&error), left_out,
                        "a redelivered message is too large for its quarantine queue: it runs like \
                         others, its crashes are not counted"
                    );
                }
                return false;
            }
            Err(error) => {
                state.set_unavailable();
                tracing::warn!(
                    subscription = %name, error = %error_chain(&error),
                    "the quarantine queue takes no message: for {UNAVAILABLE:?} messages that were returned by \
                     lost consumers run like others, their crashes are not counted"
                );
                return false;
            }
        }
        // If the channel is gone, the original is redelivered as well.
        let _or_void = self.epoch.acks.record(delivery.tag);
        true
    }

    /// Runs the messages of one quarantine queue one at a time, until it is empty or `end`.
    async fn drain(&self, index: usize, end: Instant) -> Result<Drained, AmqpError> {
        let (plan, state) = (&self.context.plan, &self.context.quarantine);
        let may_run = self.may_run.get(index).copied().unwrap_or(false);
        let Some(name) = plan.quarantine_name(index).filter(|_| !state.is_off()) else {
            return Ok(Drained::Empty { ran: false });
        };
        let queue = declare_passive(&self.channel, name).await;
        let waiting = queue
            .map_err(|error| self.failed("reading the state of", name, &error))?
            .message_count();
        if waiting > 0
            && !may_run
            && let Some(left_out) = state.standing_by.line()
        {
            tracing::warn!(
                subscription = %plan.name, queue = name, messages = waiting, left_out,
                "messages in quarantine wait for the active consumer of the queue: this one runs them \
                 after the queue has delivered a message to it; if no other consumer is active, restart it"
            );
        }
        if waiting == 0 || !may_run {
            return Ok(Drained::Empty { ran: false });
        }
        let Ok(_running) = RUNNING.try_lock() else { return Ok(Drained::Busy) };
        let _others_are_held = self.inbound.hold();
        loop {
            if !others_settled(&self.context.handed_out, &self.context.running, end).await {
                return Ok(Drained::TimeUp);
            }
            // Those of the others first: a crash of the next message must not return them.
            self.epoch.acks.write(&self.channel);
            // From here on the server may have delivered a message, even if it is not received here.
            state.running.store(true, Ordering::Relaxed);
            let got = self.channel.basic_get(short(name)?, BasicGetOptions::default()).await;
            let got = got.map_err(|error| self.failed("taking a message from", name, &error))?;
            let Some(mut delivery) = got.and_then(|message| {
                InboundDelivery::new(index, message.delivery, &self.epoch, &self.context)
            }) else {
                state.running.store(false, Ordering::Relaxed);
                return Ok(Drained::Empty { ran: true });
            };
            let count = DeliveryCount::of(&delivery.original);
            let lost = state.lost_running.swap(0, Ordering::Relaxed);
            delivery.crashes = count.crashes(lost);
            // The copy starts with a count of 0: a later process does not count the loss either.
            if lost > 0 && count.returned > 0 && self.store(&delivery, delivery.crashes).await {
                continue;
            }
            (delivery.redelivered, delivery.quarantined) = (true, true);
            if let Some(left_out) = state.log.line() {
                tracing::info!(
                    subscription = %plan.name, queue = name, crashes = delivery.crashes, left_out,
                    "a message that was returned by lost consumers runs alone"
                );
            }
            delivery.handed_out = Some(self.context.handed_out.add());
            self.inbound.push(delivery);
            if timeout_at(end, self.context.handed_out.none()).await.is_err() {
                return Ok(Drained::TimeUp);
            }
            state.running.store(false, Ordering::Relaxed);
        }
    }

    fn failed(&self, doing: &str, queue: &str, error: &lapin::Error) -> AmqpError {
        let (state, name) = (&self.context.quarantine, &self.context.plan.name);
        let kind = match state.is_refused(queue, name, error) || error.is_amqp_error() {
            true => ErrorKind::Topology,
            false => ErrorKind::ConnectionLost,
        };
        from_lapin(kind, format!("{doing} queue {queue:?}"), error)
    }
}

/// Waits until the runtime has no other message. False at `end`, or earlier if none of them runs and none was
/// settled for [`STALLED`]: they wait for a key that is held.
async fn others_settled(handed_out: &InFlight, running: &InFlight, end: Instant) -> bool {
    loop {
        let (before, until) = (handed_out.count(), end.min(Instant::now() + STALLED));
        let none_left = timeout_at(until, handed_out.none()).await.is_ok();
        if Instant::now() >= end {
            return false;
        }
        if none_left {
            return true;
        }
        if running.count() == 0 && handed_out.count() >= before {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::MAX_WAIT;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn messages_of_a_held_key_are_awaited_for_10_s() {
        let (handed_out, running, start) = (InFlight::new(), InFlight::new(), Instant::now());
        let end = start + MAX_WAIT;
        assert!(others_settled(&handed_out, &running, end).await);
        let held_key = handed_out.add();
        assert!(!others_settled(&handed_out, &running, end).await);
        assert_eq!(start.elapsed(), STALLED);
        let runs = running.add();
        let ending = async {
            tokio::time::sleep(STALLED * 3).await;
            drop((held_key, runs));
        };
        let (ended, ()) = tokio::join!(others_settled(&handed_out, &running, end), ending);
        assert!(ended, "a slow handler is awaited");
        assert_eq!(start.elapsed(), STALLED * 4);
        let _runs = (handed_out.add(), running.add());
        assert!(!others_settled(&handed_out, &running, end).await);
        assert_eq!(start.elapsed(), MAX_WAIT);
    }
}
