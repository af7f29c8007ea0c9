//! [`Probe`]: reads the messages of a broker with a plain client, to check what was published.

#[cfg(feature = "amqp")]
mod amqp;
#[cfg(feature = "kafka")]
mod kafka;
mod memory;

use std::error::Error;
use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cqrs_core::MemoryBroker;
use cqrs_core::broker::BoxFuture;
use cqrs_core::message::{Headers, header};
use tokio::time::Instant;
use uuid::Uuid;

/// Receives the messages of one topic, from the oldest that it can read: on RabbitMQ, from when its queue is bound.
///
/// ```
/// use std::time::Duration;
/// use cqrs_core::{MemoryBroker, Message, MessageBrokerExt};
/// use cqrs_testkit::Probe;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = MemoryBroker::new();
/// broker.publish(Message::new("user_events", "{}").with_key("user-7")).await?;
///
/// let mut probe = Probe::memory(&broker, "user_events");
/// let received = probe.next(Duration::from_secs(5)).await.expect("it was published");
/// assert_eq!(received.key.as_deref(), Some(b"user-7".as_slice()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Probe(Box<dyn ProbeSource>);

/// The client of a [`Probe`]. Implement it to read from another broker.
pub trait ProbeSource: fmt::Debug + Send + Sync + 'static {
    /// The next message, or `None` when none came within `deadline`.
    ///
    /// Cancel safe: a cancelled call loses nothing.
    fn next(&mut self, deadline: Duration) -> BoxFuture<'_, Option<StoredMessage>>;
}

/// A message as the broker holds it.
///
/// The parts that the broker's message carries in a header of its own (id, name, key, content type) are in their fields
/// and not among the `headers`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredMessage {
    /// The topic; on RabbitMQ the routing key.
    pub topic: String,
    /// The key.
    pub key: Option<Bytes>,
    /// The event's id, if the message carries it.
    pub id: Option<Uuid>,
    /// The event's name, if the message carries it.
    pub name: Option<String>,
    /// All other headers. Values that are not text are shown as text.
    pub headers: Headers,
    /// Media type of the body, if the message carries it.
    pub content_type: Option<String>,
    /// The bytes.
    pub body: Bytes,
    /// The partition, on brokers that have them.
    pub partition: Option<i32>,
    /// The offset in the partition, on brokers that have them.
    pub offset: Option<i64>,
    /// When the event happened, as far as the message carries it.
    pub timestamp: Option<SystemTime>,
}

impl StoredMessage {
    /// A message with nothing but a topic and a body, to be filled in by a [`ProbeSource`].
    pub fn new(topic: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            key: None,
            id: None,
            name: None,
            headers: Headers::new(),
            content_type: None,
            body: body.into(),
            partition: None,
            offset: None,
            timestamp: None,
        }
    }

    /// Adds a header of the message: to its field, or to the headers.
    pub fn add_header(&mut self, name: &str, value: &str) {
        match name {
            header::MESSAGE_ID => self.id = value.parse().ok(),
            header::EVENT_NAME => self.name = Some(value.to_owned()),
            header::KEY => self.key = Some(Bytes::copy_from_slice(value.as_bytes())),
            "content-type" => self.content_type = Some(value.to_owned()),
            // An invalid name is dropped; this framework writes none.
            _ => drop(self.headers.insert(name, value)),
        }
    }

    /// Adds a header whose value is no text.
    pub fn add_bytes_header(&mut self, name: &str, value: &[u8]) {
        drop(self.headers.insert_bytes(name, Bytes::copy_from_slice(value)));
    }

    /// The body as text, with what is not UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Probe {
    /// Reads from a custom source.
    pub fn new(source: impl ProbeSource) -> Self {
        Self(Box::new(source))
    }

    /// Reads `topic` of the in-memory broker, in a group of its own, which is deleted with the probe.
    ///
    /// Until then the topic keeps the messages that the probe did not read.
    pub fn memory(broker: &MemoryBroker, topic: &str) -> Self {
        Self::new(memory::MemoryProbe::new(broker, topic))
    }

    /// Reads all partitions of `topic`, from their beginning. A topic that does not exist yet is waited
    /// for; partitions that are added later are not read. Commits nothing.
    ///
    /// # Errors
    /// When no broker of `bootstrap_servers` (`host:port`, separated by commas) answers within 10 s.
    #[cfg(feature = "kafka")]
    #[cfg_attr(docsrs, doc(cfg(feature = "kafka")))]
    pub async fn kafka(bootstrap_servers: &str, topic: &str) -> Result<Self, ProbeError> {
        Ok(Self::new(kafka::KafkaProbe::open(bootstrap_servers, topic).await?))
    }

    /// Reads the queue named `topic` and takes from it what it reads. The queue is declared (durable)
    /// when there is none, and bound to `exchange` with the topic as routing key; not with an empty
    /// `exchange`, which is the default one.
    ///
    /// A lost connection is made again.
    ///
    /// # Errors
    /// When the server does not answer within 10 s or refuses: because `exchange` does not exist, say;
    /// connect the broker first, it declares it.
    #[cfg(feature = "amqp")]
    #[cfg_attr(docsrs, doc(cfg(feature = "amqp")))]
    pub async fn amqp(dsn: &str, exchange: &str, topic: &str) -> Result<Self, ProbeError> {
        Ok(Self::new(amqp::AmqpProbe::open(dsn, exchange, topic).await?))
    }

    /// The next message, or `None` when none came within `deadline`.
    ///
    /// Cancel safe: a cancelled call loses nothing.
    ///
    /// # Panics
    /// When the deadline passed without a connection to the broker: `None` would be misleading then.
    pub async fn next(&mut self, deadline: Duration) -> Option<StoredMessage> {
        self.0.next(deadline).await
    }

    /// The next `count` messages; fewer when `deadline` passed before.
    pub async fn take(&mut self, count: usize, deadline: Duration) -> Vec<StoredMessage> {
        let end = Instant::now() + deadline;
        let mut received = Vec::with_capacity(count);
        while received.len() < count {
            match self.next(end.saturating_duration_since(Instant::now())).await {
                Some(message) => received.push(message),
                None => break,
            }
        }
        received
    }
}

/// A probe could not be opened.
#[derive(thiserror::Error)]
#[error("no probe of {what}")]
pub struct ProbeError {
    what: String,
    source: Box<dyn Error + Send + Sync>,
}

cqrs_core::error_debug!(ProbeError);

#[cfg(any(feature = "kafka", feature = "amqp"))]
impl ProbeError {
    fn new(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { what: what.into(), source: source.into() }
    }
}
