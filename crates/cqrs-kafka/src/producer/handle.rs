//! The handle of a producer, shared by the async side (the broker value, the copies of consumed records) and the
//! poll thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cqrs_core::broker::{
    Intake, PendingConfirm, PublishErrorKind, Receipt, ShutdownReport, Window,
};
use cqrs_core::consume::support::far_deadline;
use cqrs_core::{Message, PublishError};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::watch;

use super::client::{Client, submit};
use super::outgoing::{Outgoing, Raw};
use super::overflow::Overflow;
use super::oversized::OversizedBatches;
use super::{delivery_error, record};
use crate::config::{KafkaConfig, RecordHeaders};
use crate::error::KafkaError;
use crate::health::Health;

pub(crate) struct ProducerHandle {
    pub(crate) intake: Intake,
    pub(crate) health: Arc<Health>,
    pub(super) overflow: Overflow<Outgoing>,
    /// `None` while the producer is replaced. Locked for reading while a message is given to librdkafka,
    /// which never blocks.
    client: RwLock<Option<Arc<Client>>>,
    pub(super) oversized: Arc<OversizedBatches>,
    /// The number of messages enqueued so far.
    enqueued: AtomicU64,
    max_bytes: usize,
    pub(super) headers: RecordHeaders,
    /// The deadline of the shutdown. `None`: open.
    closing: watch::Sender<Option<Instant>>,
    pub(super) ended: watch::Sender<Option<ShutdownReport>>,
}

impl ProducerHandle {
    pub(super) fn new(config: &KafkaConfig) -> Self {
        let health = Arc::new(Health::new(config.publish_timeout));
        let window = Window::new(config.window_messages, config.window_bytes);
        let cause = Arc::clone(&health);
        let intake = Intake::new(window, config.publish_timeout)
            .with_cause(move || Some(cause.cause_of_timeout().into()));
        Self {
            intake,
            health,
            overflow: Overflow::new(),
            client: RwLock::new(None),
            oversized: Arc::default(),
            enqueued: AtomicU64::new(0),
            max_bytes: config.max_message_size,
            headers: config.record_headers,
            closing: watch::Sender::new(None),
            ended: watch::Sender::new(None),
        }
    }

    /// Waits for a slot of the window, unless the message cannot be a record.
    pub(crate) async fn admit(
        &self,
        message: Message,
    ) -> Result<(PendingConfirm, Receipt), PublishError> {
        if let Err((kind, detail)) = record::check(&message, self.max_bytes) {
            return Err(PublishError::new(kind, message, detail));
        }
        self.intake.admit(message).await
    }

    /// As [`admit`](Self::admit), without waiting.
    pub(crate) fn try_admit(
        &self,
        message: Message,
    ) -> Result<(PendingConfirm, Receipt), PublishError> {
        if let Err((kind, detail)) = record::check(&message, self.max_bytes) {
            return Err(PublishError::new(kind, message, detail));
        }
        self.intake.try_admit(message)
    }

    /// Gives an admitted message to librdkafka, or to the overflow queue when librdkafka cannot take it now. Does
    /// not block. The message's position in the order is fixed when this returns.
    pub(crate) fn send(
        &self,
        pending: PendingConfirm,
        receipt: Receipt,
    ) -> Result<Receipt, PublishError> {
        self.send_outgoing(self.number(pending, None), receipt)
    }

    /// As [`send`](Self::send), for a copy of a consumed record.
    pub(crate) fn send_raw(
        &self,
        pending: PendingConfirm,
        receipt: Receipt,
        raw: Raw,
    ) -> Result<Receipt, PublishError> {
        self.send_outgoing(self.number(pending, Some(raw)), receipt)
    }

    pub(super) fn number(&self, pending: PendingConfirm, raw: Option<Raw>) -> Outgoing {
        let number = self.enqueued.fetch_add(1, Ordering::Relaxed);
        Outgoing { pending, raw, number, partition: None }
    }

    pub(super) fn send_outgoing(
        &self,
        outgoing: Outgoing,
        receipt: Receipt,
    ) -> Result<Receipt, PublishError> {
        let Some(outgoing) = self.overflow.join(outgoing) else { return Ok(receipt) };
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner);
        let Some(client) = &*client else {
            self.overflow.open(outgoing);
            return Ok(receipt);
        };
        match submit(client, outgoing, receipt.message(), self.headers) {
            Ok(()) => Ok(receipt),
            Err((outgoing, Code::QueueFull | Code::Fatal)) => {
                self.overflow.open(outgoing);
                Ok(receipt)
            }
            Err((outgoing, code)) => {
                let (kind, detail) = delivery_error::not_accepted(code);
                let source = delivery_error::to_error(code);
                Err(outgoing.pending.reject(kind, detail).with_source(source))
            }
        }
    }

    /// Refuses new messages. Those in flight have until `within` from now, or until the deadline of an earlier
    /// call.
    pub(crate) fn close(&self, within: Duration) {
        self.intake.close();
        let end = far_deadline(within).into_std();
        self.closing.send_modify(|closing| {
            *closing = Some(closing.map_or(end, |earlier| earlier.min(end)));
        });
    }

    /// Waits for the end after [`close`](Self::close).
    pub(crate) fn ended(&self) -> impl Future<Output = ShutdownReport> + Send + use<> {
        let mut ended = self.ended.subscribe();
        async move {
            let report = ended.wait_for(Option::is_some).await.ok().and_then(|report| *report);
            report.unwrap_or_default()
        }
    }

    pub(super) fn closes_at(&self) -> Option<Instant> {
        *self.closing.borrow()
    }

    /// Returns whether the shutdown's deadline is over.
    pub(super) fn is_past_end(&self) -> bool {
        self.closes_at().is_some_and(|end| end <= Instant::now())
    }

    pub(super) fn set_client(&self, client: Option<Arc<Client>>) {
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = client;
    }

    /// From here on new messages go to the overflow queue, not to the client.
    pub(super) fn pause(&self) {
        self.overflow.block();
        self.set_client(None);
    }

    /// Sends the messages of the overflow queue once the cluster is connected, and expires those past their
    /// deadline.
    pub(super) fn drain_overflow(&self, client: &Client) {
        if !self.overflow.is_in_use() {
            return;
        }
        self.expire();
        // Records of refused batches are sent first.
        if self.health.is_connecting() || self.oversized.is_active() {
            return;
        }
        self.overflow.drain(|outgoing| self.submit_queued(client, outgoing));
    }

    /// Gives a message whose receipt is out to librdkafka. Returns it when it has to wait.
    pub(super) fn submit_queued(&self, client: &Client, outgoing: Outgoing) -> Option<Outgoing> {
        let message = outgoing.pending.shared_message();
        match submit(client, outgoing, &message, self.headers) {
            Ok(()) => None,
            Err((outgoing, Code::QueueFull | Code::Fatal)) => Some(outgoing),
            Err((outgoing, code)) => {
                let (kind, detail) = delivery_error::not_accepted(code);
                let source = delivery_error::to_error(code);
                outgoing.pending.fail(kind, detail, Some(source.into()));
                None
            }
        }
    }

    /// Expires messages of the overflow queue past their deadline, which frees their slots of the window.
    pub(super) fn expire(&self) {
        let now = tokio::time::Instant::now();
        for outgoing in self.overflow.take(|outgoing| outgoing.pending.deadline() <= now) {
            outgoing.pending.expire(None);
        }
    }

    /// Fails the messages of the overflow queue while the broker refuses the principal.
    pub(super) fn refuse(&self, refusal: &KafkaError) {
        for Outgoing { pending, .. } in self.overflow.take(|_| true) {
            delivery_error::fail_unauthorized(pending, refusal.clone());
        }
    }

    /// Fails the messages that wait in the overflow queue or to be sent again, at the end of the shutdown.
    pub(super) fn abandon(&self) {
        for Outgoing { pending, .. } in
            self.oversized.take().into_iter().flat_map(|all| all.records)
        {
            let detail = "its batch was refused as too large, and the shutdown ended before it was sent again";
            pending.fail(PublishErrorKind::NotSent, detail, None);
        }
        for Outgoing { pending, .. } in self.overflow.take(|_| true) {
            let kind = match pending.is_sent() {
                true => PublishErrorKind::Unknown,
                false => PublishErrorKind::Closed,
            };
            let source = self.health.cause().map(Into::into);
            pending.fail(kind, "it waited for the broker until the end of the shutdown", source);
        }
    }
}
