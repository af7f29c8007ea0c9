//! Settles one delivery (ack, retry copy, dead letter); part of the consumer, used by the runtime.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use cqrs_core::broker::BoxFuture;
use cqrs_core::consume::{DeadLetter, Delayed, RetryState, Settle, SettleError};

use super::channel_epoch::{DroppedDelivery, StreamMessage};
use super::context::SourceContext;
use super::copies::{IfMissing, Target, Written};
use super::copy_properties;
use super::in_flight::Permit;
use super::inbound_delivery::InboundDelivery;
use super::plan::QueuePlan;
use crate::error::{AmqpError, ErrorKind};

/// A delivery that the runtime has. Dropped unsettled, it is redelivered.
pub(super) struct AmqpSettle {
    delivery: Box<InboundDelivery>,
    context: Arc<SourceContext>,
    settled: bool,
    /// Held until it is settled.
    in_flight: Option<Permit>,
    running: Option<Permit>,
}

impl Drop for AmqpSettle {
    fn drop(&mut self) {
        let InboundDelivery { queue, tag, acker, original, epoch, .. } = &mut *self.delivery;
        if self.settled || epoch.is_over() {
            return;
        }
        let of_stream = self.context.plan.is_stream().then(|| StreamMessage {
            queue: *queue,
            acker: acker.clone(),
            original: std::mem::take(original),
        });
        epoch.redeliver(DroppedDelivery { tag: *tag, of_stream });
    }
}

impl AmqpSettle {
    pub(super) fn new(
        delivery: Box<InboundDelivery>,
        context: Arc<SourceContext>,
        in_flight: Permit,
    ) -> Self {
        Self { delivery, context, settled: false, in_flight: Some(in_flight), running: None }
    }

    fn unacked(&self) -> SettleError {
        SettleError::new(format!(
            "queue {:?}: the channel that delivered the message is gone; it is redelivered",
            &*self.queue_name()
        ))
    }

    fn queue(&self) -> Option<&QueuePlan> {
        self.context.plan.queues.get(self.delivery.queue)
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
        let if_missing = match (self.context.plan.declares_own, queue.config.exclusive) {
            (true, false) => IfMissing::Declare,
            _ => IfMissing::Leave,
        };
        let target = Target { queue: queue.retry_queue(delay), if_missing };
        let properties = copy_properties::retry(&self.delivery.original, state);
        match self.context.copies.write(&target, &properties, &self.delivery.original.body).await {
            Ok(Written::Stored) => Ok(Delayed::Scheduled),
            Ok(Written::TooLarge(error)) => {
                let name = &self.context.plan.name;
                if let Some(left_out) = self.context.logs.held.line() {
                    tracing::warn!(subscription = %name, %error, left_out, "no retry copy: the message is held here");
                }
                Ok(Delayed::Hold)
            }
            Err(error) => Err(self.failed("its retry copy was not stored", error)),
        }
    }

    fn failed(&self, what: &str, error: AmqpError) -> SettleError {
        let detail = format!("queue {:?}: {what}", &*self.queue_name());
        let is_permanent = is_permanent(&error);
        let error = SettleError::new(detail).with_source(error);
        if is_permanent { error.permanent() } else { error }
    }
}

/// True if retrying cannot fix a copy that was not stored: its queue is missing and not ours to declare, or
/// the user lacks a right. It concerns this queue only: other messages continue.
fn is_permanent(error: &AmqpError) -> bool {
    match error.kind() {
        // Other replies about a queue can be transient.
        ErrorKind::Topology => matches!(error.code(), None | Some(403 | 405 | 406)),
        ErrorKind::ChannelClosed => error.code() == Some(403),
        _ => false,
    }
}

impl Settle for AmqpSettle {
    fn begin(&mut self) -> bool {
        if self.is_revoked() {
            return false;
        }
        self.delivery.handed_out.get_or_insert_with(|| self.context.handed_out.add());
        self.running.get_or_insert_with(|| self.context.running.add());
        true
    }

    /// RabbitMQ does not know which deliveries run; the quarantine does. A quarantined delivery keeps its
    /// place also while it is held: the next one waits for it, and a connection lost meanwhile is no crash.
    fn postpone(&mut self) {
        self.running = None;
        if !self.delivery.quarantined {
            self.delivery.handed_out = None;
        }
    }

    /// RabbitMQ keeps no state of a message in a queue: only retry copies carry their failed attempts.
    fn note_attempt(&mut self, _: &RetryState) {}

    fn is_revoked(&self) -> bool {
        self.settled || self.delivery.epoch.is_over() || !self.delivery.acker.usable()
    }

    /// Records the ack, which the supervisor writes; ready at once.
    fn poll_ack(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SettleError>> {
        if self.is_revoked() || !self.delivery.epoch.acks.record(self.delivery.tag) {
            return Poll::Ready(Err(self.unacked()));
        }
        let InboundDelivery { handed_out, original, queue, .. } = &mut *self.delivery;
        self.settled = true;
        (self.in_flight, *handed_out, self.running) = (None, None, None);
        let original = std::mem::take(original);
        if self.context.plan.is_stream()
            && let Some(offset) = original.stream_offset()
        {
            self.context.stream_offsets.settled(*queue, offset);
        }
        Poll::Ready(Ok(()))
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
                self.postpone();
            }
            Ok(delayed)
        })
    }

    fn dead_letter(&mut self, letter: &DeadLetter) -> BoxFuture<'_, Result<(), SettleError>> {
        let properties = copy_properties::dead_letter(&self.delivery.original, letter);
        let minimal = [true, false]
            .map(|key| copy_properties::minimal_dead_letter(&self.delivery.original, letter, key));
        Box::pin(async move {
            // The subscription discards dead letters.
            let Some(dead) = self.queue().and_then(|queue| queue.dead.clone()) else {
                return Ok(());
            };
            let if_missing = match self.context.plan.declares_own {
                true => IfMissing::Ensure,
                false => IfMissing::Leave,
            };
            let target = Target { queue: dead, if_missing };
            let (copies, body) = (&self.context.copies, &self.delivery.original.body);
            let mut written = copies.write(&target, &properties, body).await;
            if let Ok(Written::TooLarge(error)) = &written {
                let (name, logs) = (&self.context.plan.name, &self.context.logs);
                if let Some(left_out) = logs.minimal.line() {
                    let text = "its dead letter goes without its headers";
                    tracing::warn!(subscription = %name, %error, left_out, "{text}");
                }
                for minimal in minimal {
                    written = copies.write(&target, &minimal, body).await;
                    if !matches!(written, Ok(Written::TooLarge(_))) {
                        break;
                    }
                }
            }
            let what = "its dead letter was not stored";
            match written {
                Ok(Written::Stored) => Ok(()),
                Ok(Written::TooLarge(error)) => Err(self.failed(what, error).permanent()),
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

    use super::super::channel_epoch::ChannelEpoch;
    use super::super::copies::Copies;
    use super::super::in_flight::InFlight;
    use super::super::plan::Plan;
    use super::*;
    use crate::config::AmqpConfig;

    /// A delivery whose acker is lapin's own, without a connection.
    fn delivery() -> (AmqpSettle, Arc<ChannelEpoch>) {
        let config = AmqpConfig::default();
        let topics = TopicSet::Named(vec!["t".into()]);
        let request = SubscribeRequest::new(topics, "g", StatusReporter::new().0);
        let plan = Plan::new(&request, &config).unwrap();
        let copies = Arc::new(Copies::new(&config).unwrap());
        let context = Arc::new(SourceContext::new(plan, copies));
        let delivery = Delivery::mock(1, "e".into(), "t".into(), false, b"{}".to_vec());
        let (epoch, _dropped) = ChannelEpoch::new();
        let delivery = InboundDelivery::new(0, delivery, &epoch, &context).unwrap();
        (AmqpSettle::new(delivery, context, InFlight::new().add()), epoch)
    }

    fn ack(settle: &mut AmqpSettle) -> Result<(), SettleError> {
        let settle: &mut dyn Settle = settle;
        settle.ack().now_or_never().expect("nothing to wait for")
    }

    #[test]
    fn refused_copy_is_permanent() {
        use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};
        let said = |kind, reply| {
            let error = lapin::ErrorKind::ProtocolError(AMQPError::new(reply, "no".into()));
            crate::error::from_lapin(kind, "publishing", &error.into())
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
            (said(ErrorKind::Connection, soft(AMQPSoftError::ACCESSREFUSED)), false),
            (said(ErrorKind::Topology, hard(AMQPHardError::CONNECTIONFORCED)), false),
        ] {
            let text = format!("{error:?}");
            assert_eq!(settle.failed("not stored", error).is_permanent(), permanent, "{text}");
        }
    }

    #[tokio::test]
    async fn held_delivery_counts_only_while_it_runs() {
        for (quarantined, held) in [(false, 0), (true, 1)] {
            let (mut settle, _epoch) = delivery();
            let context = Arc::clone(&settle.context);
            let counts = || (context.handed_out.count(), context.running.count());
            settle.delivery.quarantined = quarantined;
            settle.delivery.handed_out = Some(context.handed_out.add());
            assert_eq!(counts(), (1, 0), "it waits for a worker");
            assert!(settle.begin() && settle.begin());
            assert_eq!(counts(), (1, 1));
            settle.postpone();
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
        let (mut settle, epoch) = delivery();
        assert!(settle.begin());
        ack(&mut settle).unwrap();
        assert_eq!(epoch.acks.count(), 1);
        assert!(settle.settled && settle.is_revoked());
        assert!(
            settle.delivery.original.body.is_empty(),
            "it may live until its worker's run ends"
        );
        ack(&mut settle).unwrap_err();
        assert_eq!(epoch.acks.count(), 1);
    }

    #[tokio::test]
    async fn ack_on_a_closed_channel_is_an_error() {
        let (mut settle, epoch) = delivery();
        // lapin's mark of a delivery that cannot be acked any more.
        let acker = settle.delivery.acker.clone();
        assert!(acker.ack(lapin::options::BasicAckOptions::default()).await.unwrap());
        assert!(!acker.usable());
        let error = ack(&mut settle).unwrap_err();
        assert!(error.to_string().contains("queue \"t.g\""), "{error}");
        assert_eq!(epoch.acks.count(), 0);
    }

    #[tokio::test]
    async fn ack_after_its_channel_ended_is_an_error() {
        let (mut settle, epoch) = delivery();
        epoch.end();
        ack(&mut settle).unwrap_err();
        assert_eq!(epoch.acks.count(), 0);
        assert!(settle.is_revoked() && !settle.begin());
        assert!(settle.delivery.acker.usable(), "lapin wrote nothing");
    }
}
