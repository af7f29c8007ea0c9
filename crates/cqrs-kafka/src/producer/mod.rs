//! The producing half: from a message with a place in the window to librdkafka, and back as a verdict.
//!
//! [`Link`] is what the async side and the poll thread ([`Driver`]) share.

mod context;
mod driver;
mod lane;
mod record;
mod regroup;
mod resend;
mod verdict;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cqrs_core::broker::{
    Intake, PendingConfirm, PublishErrorKind, Receipt, ShutdownReport, Window,
};
use cqrs_core::{Message, PublishError};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::watch;

pub(crate) use self::driver::Driver;
use self::lane::Lane;
pub(crate) use self::resend::Resend;
use crate::config::{KafkaConfig, RecordHeaders};
use crate::error::KafkaError;
use crate::events::Events;
use crate::health::Health;

type Client = BaseProducer<Events>;

/// A message on its way to librdkafka.
pub(crate) struct Outgoing {
    pending: PendingConfirm,
    raw: Option<Raw>,
    /// Its place in the order of enqueueing.
    number: u64,
    /// The partition that librdkafka chose, of a record that is sent again.
    partition: Option<i32>,
}

impl Outgoing {
    /// Its bytes, without what librdkafka adds.
    fn size(&self) -> usize {
        let size = self.raw.as_ref().map(|raw| raw.size);
        size.unwrap_or_else(|| self.pending.message().size())
    }
}

/// What a copy of a consumed record has that a message cannot say.
#[derive(Debug)]
pub(crate) struct Raw {
    /// All its headers, in place of the message's.
    pub(crate) headers: Option<OwnedHeaders>,
    /// Bytes of the record, with the headers that can be read.
    pub(crate) size: usize,
    /// Whether the record has no value.
    pub(crate) is_tombstone: bool,
}

/// Longer than anybody waits, and far from the end of time.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

pub(crate) struct Link {
    pub(crate) intake: Intake,
    pub(crate) health: Arc<Health>,
    lane: Lane<Outgoing>,
    /// `None` while the producer is replaced. Held for reading while a message is given to librdkafka,
    /// which never blocks.
    client: RwLock<Option<Arc<Client>>>,
    resend: Arc<Resend>,
    /// How many messages were enqueued.
    enqueued: AtomicU64,
    max_bytes: usize,
    headers: RecordHeaders,
    /// Since when at the latest nothing may be in flight. `None`: open.
    closing: watch::Sender<Option<Instant>>,
    ended: watch::Sender<Option<ShutdownReport>>,
}

impl Link {
    fn new(config: &KafkaConfig) -> Self {
        let health = Arc::new(Health::new(config.publish_timeout));
        let window = Window::new(config.window_messages, config.window_bytes);
        let cause = Arc::clone(&health);
        let intake = Intake::new(window, config.publish_timeout)
            .with_cause(move || Some(cause.cause_of_silence().into()));
        Self {
            intake,
            health,
            lane: Lane::new(),
            client: RwLock::new(None),
            resend: Arc::default(),
            enqueued: AtomicU64::new(0),
            max_bytes: config.message_max_bytes,
            headers: config.record_headers,
            closing: watch::Sender::new(None),
            ended: watch::Sender::new(None),
        }
    }

    /// Refuses what cannot be a record, before it takes a place in the window.
    pub(crate) fn check(&self, message: Message) -> Result<Message, PublishError> {
        match record::check(&message, self.max_bytes) {
            Ok(()) => Ok(message),
            Err((kind, detail)) => Err(PublishError::new(kind, message, detail)),
        }
    }

    /// Gives an admitted message to librdkafka, or to the lane when that cannot take it now. Does not
    /// block. Its place in the order is fixed when this returns.
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

    fn number(&self, pending: PendingConfirm, raw: Option<Raw>) -> Outgoing {
        let number = self.enqueued.fetch_add(1, Ordering::Relaxed);
        Outgoing { pending, raw, number, partition: None }
    }

    fn send_outgoing(&self, outgoing: Outgoing, receipt: Receipt) -> Result<Receipt, PublishError> {
        let Some(outgoing) = self.lane.join(outgoing) else { return Ok(receipt) };
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner);
        let Some(client) = &*client else {
            self.lane.open(outgoing);
            return Ok(receipt);
        };
        match submit(client, outgoing, receipt.message(), self.headers) {
            Ok(()) => Ok(receipt),
            Err((outgoing, Code::QueueFull | Code::Fatal)) => {
                self.lane.open(outgoing);
                Ok(receipt)
            }
            Err((outgoing, code)) => {
                let (kind, detail) = verdict::refuse(code);
                Err(outgoing.pending.reject(kind, detail).with_source(verdict::answer(code)))
            }
        }
    }

    /// Refuses new messages; those in flight have until `within` from now, or an earlier call's time.
    pub(crate) fn close(&self, within: Duration) {
        self.intake.close();
        let end = Instant::now() + within.min(FAR);
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

    fn closes_at(&self) -> Option<Instant> {
        *self.closing.borrow()
    }

    fn set_client(&self, client: Option<Arc<Client>>) {
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = client;
    }

    /// Moves the lane on: sends what waits once there is contact, ends what waited too long.
    fn tend(&self, client: &Client) {
        if !self.lane.is_in_use() {
            return;
        }
        self.expire();
        // What was refused goes first.
        if self.health.is_connecting() || self.resend.is_active() {
            return;
        }
        self.lane.drain(|outgoing| {
            // A clone shares topic, key and body.
            let message = outgoing.pending.message().clone();
            match submit(client, outgoing, &message, self.headers) {
                Ok(()) => None,
                Err((outgoing, Code::QueueFull | Code::Fatal)) => Some(outgoing),
                Err((outgoing, code)) => {
                    let (kind, detail) = verdict::refuse(code);
                    outgoing.pending.fail(kind, detail, Some(verdict::answer(code).into()));
                    None
                }
            }
        });
    }

    /// Frees the window of what the lane holds past its deadline.
    fn expire(&self) {
        let now = tokio::time::Instant::now();
        for outgoing in self.lane.take(|outgoing| outgoing.pending.deadline() <= now) {
            outgoing.pending.expire(None);
        }
    }

    /// Ends what waits in the lane while the broker refuses the principal.
    fn refuse(&self, refusal: &KafkaError) {
        for Outgoing { pending, .. } in self.lane.take(|_| true) {
            verdict::refused(pending, refusal.clone());
        }
    }

    /// Ends what waits in the lane, or to be sent again, when there is no more time.
    fn abandon(&self) {
        for Outgoing { pending, .. } in self.resend.take().into_iter().flat_map(|all| all.records) {
            let detail = "its batch was refused as too large, and the shutdown ended before it was sent again";
            pending.fail(PublishErrorKind::NotSent, detail, None);
        }
        for Outgoing { pending, .. } in self.lane.take(|_| true) {
            let kind = match pending.is_sent() {
                true => PublishErrorKind::Unknown,
                false => PublishErrorKind::Closed,
            };
            let source = self.health.cause().map(Into::into);
            pending.fail(kind, "it waited for the broker until the end of the shutdown", source);
        }
    }
}

/// Gives a message to librdkafka, without a copy of topic or key (librdkafka copies the bytes itself).
/// Given back with why, when it was not taken.
fn submit(
    client: &Client,
    outgoing: Outgoing,
    message: &Message,
    headers: RecordHeaders,
) -> Result<(), (Outgoing, Code)> {
    if !outgoing.pending.start_sending() {
        // Its receipt already said that it was not sent.
        return Ok(());
    }
    let record = BaseRecord {
        topic: &message.topic,
        partition: outgoing.partition,
        payload: (!outgoing.raw.as_ref().is_some_and(|raw| raw.is_tombstone))
            .then_some(&*message.body),
        key: message.key.as_deref(),
        timestamp: Some(record::timestamp(message)),
        headers: match &outgoing.raw {
            Some(raw) => raw.headers.clone(),
            None => record::headers(message, headers),
        },
        delivery_opaque: Box::new(outgoing),
    };
    client.send(record).map_err(|(error, record)| {
        (*record.delivery_opaque, error.rdkafka_error_code().unwrap_or(Code::Unknown))
    })
}
