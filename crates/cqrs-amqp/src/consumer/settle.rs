//! Settles one delivery (ack, retry copy, dead letter), part of the consumer, used by the runtime.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::broker::BoxFuture;
use cqrs_core::consume::{DeadLetter, Delayed, RetryState, Settle, SettleError};
use lapin::Acker;
use lapin::options::BasicAckOptions;

use super::context::Desk;
use super::copies::{Missing, Published, Target};
use super::copy;
use super::generation::{Again, Generation, Returned};
use super::in_flight::Permit;
use super::incoming::Original;
use super::plan::QueuePlan;
use crate::{AmqpError, ErrorKind};

/// One delivery in the runtime's hands.
pub(super) struct AmqpSettle {
    pub(super) original: Original,
    /// The number of its queue in the plan.
    pub(super) queue: usize,
    pub(super) desk: Arc<Desk>,
    pub(super) handle: Handle,
}

/// The delivery as the server knows it.
pub(super) struct Handle {
    pub(super) tag: u64,
    /// Taken when it is settled.
    pub(super) acker: Option<Acker>,
    pub(super) generation: Arc<Generation>,
    /// Held until it is settled.
    pub(super) permits: Option<Permits>,
}

/// Where a delivery counts.
pub(super) struct Permits {
    pub(super) _in_flight: Permit,
    /// None while the runtime holds it to run it later.
    pub(super) handed_on: Option<Permit>,
    pub(super) running: Option<Permit>,
    /// It comes from the quarantine queue. The next one waits for it, also while it is held: a connection
    /// lost meanwhile is no crash.
    pub(super) alone: bool,
}

impl Permits {
    fn begin(&mut self, desk: &Desk) {
        self.handed_on.get_or_insert_with(|| desk.handed_on.add());
        self.running.get_or_insert_with(|| desk.running.add());
    }

    fn rest(&mut self) {
        self.running = None;
        if !self.alone {
            self.handed_on = None;
        }
    }
}

impl Handle {
    /// Acknowledged means: written to the channel that delivered it, which was open.
    async fn ack(&mut self) -> Result<(), Option<lapin::Error>> {
        let ended = self.generation.ended();
        let acker = self.acker.as_ref().filter(|_| !self.generation.is_over()).ok_or(None)?;
        let acked = tokio::select! {
            biased;
            acked = acker.ack(BasicAckOptions::default()) => acked,
            () = ended => return Err(None),
        };
        match acked {
            Ok(true) => {
                self.generation.count_ack();
                (self.acker, self.permits) = (None, None);
                Ok(())
            }
            // The channel is gone; lapin calls that no error.
            Ok(false) => Err(None),
            Err(error) => Err(Some(error)),
        }
    }
}

/// Dropped unsettled, it is given back.
impl Drop for AmqpSettle {
    fn drop(&mut self) {
        let Handle { tag, acker, generation, .. } = &mut self.handle;
        let Some(acker) = acker.take() else { return };
        if !generation.is_over() {
            let again = self
                .desk
                .plan
                .is_stream()
                .then(|| Again { queue: self.queue, original: std::mem::take(&mut self.original) });
            generation.give_back(Returned { tag: *tag, acker, again });
        }
    }
}

impl AmqpSettle {
    fn queue(&self) -> Option<&QueuePlan> {
        self.desk.plan.queues.get(self.queue)
    }

    fn queue_name(&self) -> Arc<str> {
        self.queue().map_or_else(|| Arc::from(""), |queue| Arc::clone(&queue.name))
    }

    async fn store_retry(
        &self,
        delay: Duration,
        state: &RetryState,
    ) -> Result<Delayed, SettleError> {
        let Some(queue) = self.queue() else { return Ok(Delayed::Hold) };
        let Some(delay) = queue.retry.delay_at_least(delay)? else { return Ok(Delayed::Hold) };
        let missing = match (self.desk.plan.declares_own, queue.config.exclusive) {
            (true, false) => Missing::Declare,
            _ => Missing::Leave,
        };
        let target = Target { queue: queue.retry_queue(delay), missing };
        let properties = copy::retry(&self.original, state);
        match self.desk.copies.publish(&target, &properties, &self.original.body).await {
            Ok(Published::Stored) => Ok(Delayed::Scheduled),
            Ok(Published::TooLarge(error)) => {
                let name = &self.desk.plan.name;
                if let Some(left_out) = self.desk.logs.held.line() {
                    tracing::warn!(subscription = %name, %error, left_out, "no retry copy; it is held here");
                }
                Ok(Delayed::Hold)
            }
            Err(error) => Err(self.failed("its retry copy was not stored", error)),
        }
    }

    fn failed(&self, what: &str, error: AmqpError) -> SettleError {
        let detail = format!("queue {:?}: {what}: {}", &*self.queue_name(), error.chain());
        let is_permanent = is_permanent(&error);
        let error = SettleError::new(detail).with_source(error);
        if is_permanent { error.permanent() } else { error }
    }
}

/// Whether retrying cannot fix a copy that was not stored: its queue is missing and not ours to declare, or
/// the user lacks a right. It is about this queue: other messages go on.
fn is_permanent(error: &AmqpError) -> bool {
    match error.kind() {
        // What else the server says of a queue can be its state of the moment.
        ErrorKind::Topology => matches!(error.reply_code(), None | Some(403 | 405 | 406)),
        ErrorKind::ChannelClosed => error.reply_code() == Some(403),
        _ => false,
    }
}

impl Settle for AmqpSettle {
    fn begin(&mut self) -> bool {
        if self.is_revoked() {
            return false;
        }
        if let Some(permits) = &mut self.handle.permits {
            permits.begin(&self.desk);
        }
        true
    }

    /// RabbitMQ does not know which deliveries run; the quarantine does.
    fn rest(&mut self) {
        if let Some(permits) = &mut self.handle.permits {
            permits.rest();
        }
    }

    /// RabbitMQ keeps no state of a message in a queue: only retry copies carry their failed attempts.
    fn note_attempt(&mut self, _: &RetryState) {}

    fn is_revoked(&self) -> bool {
        self.handle.generation.is_over() || !self.handle.acker.as_ref().is_some_and(Acker::usable)
    }

    fn ack(&mut self) -> BoxFuture<'_, Result<(), SettleError>> {
        Box::pin(async move {
            let acked = self.handle.ack().await;
            if acked.is_ok()
                && let Some(offset) = self.original.stream_offset()
            {
                self.desk.places.settled(self.queue, offset);
            }
            acked.map_err(|cause| {
                let detail = format!(
                    "queue {:?}: the channel that delivered the message is gone; it comes again",
                    &*self.queue_name()
                );
                match cause {
                    Some(cause) => SettleError::new(detail).with_source(cause),
                    None => SettleError::new(detail),
                }
            })
        })
    }

    fn retry_later(
        &mut self,
        delay: Duration,
        state: &RetryState,
    ) -> BoxFuture<'_, Result<Delayed, SettleError>> {
        let state = *state;
        Box::pin(async move {
            let delayed = self.store_retry(delay, &state).await?;
            if delayed == Delayed::Hold {
                self.rest();
            }
            Ok(delayed)
        })
    }

    fn dead_letter(&mut self, letter: &DeadLetter) -> BoxFuture<'_, Result<(), SettleError>> {
        let properties = copy::dead_letter(&self.original, letter);
        let bare = [true, false].map(|key| copy::bare_dead_letter(&self.original, letter, key));
        Box::pin(async move {
            // Discarded ones are not ours to store.
            let Some(dead) = self.queue().and_then(|queue| queue.dead.clone()) else {
                return Ok(());
            };
            let missing = match self.desk.plan.declares_own {
                true => Missing::Ensure,
                false => Missing::Leave,
            };
            let target = Target { queue: dead, missing };
            let (copies, body) = (&self.desk.copies, &self.original.body);
            let mut published = copies.publish(&target, &properties, body).await;
            if let Ok(Published::TooLarge(error)) = &published {
                let (name, logs) = (&self.desk.plan.name, &self.desk.logs);
                if let Some(left_out) = logs.bare.line() {
                    let text = "its dead letter goes without its headers";
                    tracing::warn!(subscription = %name, %error, left_out, "{text}");
                }
                for bare in bare {
                    published = copies.publish(&target, &bare, body).await;
                    if !matches!(published, Ok(Published::TooLarge(_))) {
                        break;
                    }
                }
            }
            let what = "its dead letter was not stored";
            match published {
                Ok(Published::Stored) => Ok(()),
                Ok(Published::TooLarge(error)) => Err(self.failed(what, error).permanent()),
                Err(error) => Err(self.failed(what, error)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use cqrs_core::consume::{StatusReporter, SubscribeRequest, TopicSet};
    use futures_util::FutureExt;
    use lapin::message::Delivery;

    use super::super::context::Logs;
    use super::super::copies::Copies;
    use super::super::in_flight::InFlight;
    use super::super::places::Places;
    use super::super::plan::Plan;
    use super::super::quarantine::state::Quarantine;
    use super::*;
    use crate::AmqpConfig;

    /// A delivery whose acker is lapin's own, without a connection.
    fn delivery() -> (AmqpSettle, Arc<Generation>) {
        let config = AmqpConfig::default();
        let topics = TopicSet::Named(vec!["t".into()]);
        let request = SubscribeRequest::new(topics, "g", StatusReporter::new().0);
        let plan = Plan::new(&request, &config).unwrap();
        let (places, quarantine) = (Places::new(&plan), Quarantine::default());
        let (copies, handed_on) = (Arc::new(Copies::new(&config).unwrap()), InFlight::new());
        let logs = Logs::default();
        let running = InFlight::new();
        let desk = Arc::new(Desk { plan, places, quarantine, handed_on, running, copies, logs });
        let delivery = Delivery::mock(1, "e".into(), "t".into(), false, b"{}".to_vec());
        let (generation, _returned) = Generation::new();
        let acker = Some(delivery.acker.clone());
        let original = Original::new(delivery, "t.g");
        let handle = Handle { tag: 1, acker, generation: Arc::clone(&generation), permits: None };
        (AmqpSettle { original, queue: 0, desk, handle }, generation)
    }

    fn ack(settle: &mut AmqpSettle) -> Result<(), SettleError> {
        settle.ack().now_or_never().expect("nothing to wait for")
    }

    #[test]
    fn refused_copy_is_permanent() {
        use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};
        let said = |kind, reply| {
            let error = lapin::ErrorKind::ProtocolError(AMQPError::new(reply, "no".into()));
            AmqpError::from_lapin(kind, "publishing", &error.into())
        };
        let (soft, hard) = (AMQPErrorKind::Soft, AMQPErrorKind::Hard);
        let (settle, _generation) = delivery();
        let not_found = AmqpError::new(ErrorKind::Topology, "no such queue");
        let no_confirm = AmqpError::new(ErrorKind::ConnectionLost, "no confirm");
        for (error, permanent) in [
            (said(ErrorKind::ChannelClosed, soft(AMQPSoftError::ACCESSREFUSED)), true),
            (said(ErrorKind::Topology, soft(AMQPSoftError::ACCESSREFUSED)), true),
            (said(ErrorKind::Topology, soft(AMQPSoftError::PRECONDITIONFAILED)), true),
            (not_found, true),
            (no_confirm, false),
            (said(ErrorKind::Connect, soft(AMQPSoftError::ACCESSREFUSED)), false),
            (said(ErrorKind::Topology, hard(AMQPHardError::CONNECTIONFORCED)), false),
        ] {
            let text = format!("{error:?}");
            assert_eq!(settle.failed("not stored", error).is_permanent(), permanent, "{text}");
        }
    }

    #[tokio::test]
    async fn held_delivery_counts_only_while_it_runs() {
        for (alone, held) in [(false, 0), (true, 1)] {
            let (mut settle, _generation) = delivery();
            let desk = Arc::clone(&settle.desk);
            let counts = || (desk.handed_on.count(), desk.running.count());
            let (_in_flight, handed_on) = (InFlight::new().add(), Some(desk.handed_on.add()));
            let permits = Permits { _in_flight, handed_on, running: None, alone };
            settle.handle.permits = Some(permits);
            assert_eq!(counts(), (1, 0), "it waits for a worker");
            assert!(settle.begin() && settle.begin());
            assert_eq!(counts(), (1, 1));
            settle.rest();
            assert_eq!(counts(), (held, 0));
            assert!(settle.begin());
            assert_eq!(counts(), (1, 1));
            ack(&mut settle).unwrap();
            assert_eq!(counts(), (0, 0));
            assert!(!settle.begin());
            assert_eq!(counts(), (0, 0));
        }
    }

    #[tokio::test]
    async fn ack_settles_exactly_once() {
        let (mut settle, generation) = delivery();
        assert!(settle.begin());
        ack(&mut settle).unwrap();
        assert_eq!(generation.acked(), 1);
        assert!(settle.handle.acker.is_none() && settle.is_revoked());
        ack(&mut settle).unwrap_err();
        assert_eq!(generation.acked(), 1);
    }

    #[tokio::test]
    async fn ack_on_a_closed_channel_is_an_error() {
        let (mut settle, generation) = delivery();
        // What lapin answers on a closed channel: it wrote nothing, and calls that no error.
        let acker = settle.handle.acker.clone().unwrap();
        assert!(acker.ack(BasicAckOptions::default()).await.unwrap());
        assert!(!acker.ack(BasicAckOptions::default()).await.unwrap());
        let error = ack(&mut settle).unwrap_err();
        assert!(error.to_string().contains("queue \"t.g\""), "{error}");
        assert_eq!(generation.acked(), 0);
    }

    #[tokio::test]
    async fn ack_after_its_channel_ended_is_an_error() {
        let (mut settle, generation) = delivery();
        generation.end();
        ack(&mut settle).unwrap_err();
        assert_eq!(generation.acked(), 0);
        assert!(settle.is_revoked() && !settle.begin());
        let acker = settle.handle.acker.as_ref().unwrap();
        assert!(acker.usable(), "lapin wrote nothing");
    }
}
