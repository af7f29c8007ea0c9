//! A consumed message before it is decoded, built by broker crates.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::message::{ByteString, Headers, Message, Name};

/// A message as the broker delivered it, before it is decoded.
///
/// `Debug` shows sizes, never the body or the key.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Incoming {
    /// The destination it was published to: Kafka's topic, RabbitMQ's routing key. A retry copy names the
    /// original topic.
    pub topic: Arc<str>,
    /// Messages of one topic with one key are handled in order. `None`: no order is kept.
    pub key: Option<Bytes>,
    /// The bytes. `None` is a Kafka tombstone; RabbitMQ and the memory broker have none.
    pub body: Option<Bytes>,
    /// The sender's id of the message, as text: RabbitMQ's `message_id` property or the header
    /// `message_id`.
    pub id: Option<ByteString>,
    /// The event's name, if the frame has it: RabbitMQ's `type` property or the header `event_name`.
    pub name: Option<ByteString>,
    /// The headers whose value is a text, a number, a flag or bytes. The others are kept by the broker
    /// for retry copies and dead letters.
    pub headers: Headers,
    /// Media type of the body: RabbitMQ's property or the header `content-type`.
    pub content_type: Option<ByteString>,
    /// The time of publishing, by the sender's or the broker's clock.
    pub timestamp: Option<SystemTime>,
    /// Kafka's partition.
    pub partition: Option<i32>,
    /// Its offset in the partition (Kafka), the topic (memory) or the stream (RabbitMQ).
    pub offset: Option<i64>,
    /// The queue that delivered it (RabbitMQ).
    pub queue: Option<Arc<str>>,
    /// Set if the broker reports an earlier delivery.
    pub redelivered: bool,
    /// The reason why the client could not read all of it (too many headers, say). Such a message is not
    /// decoded: the policy for decode errors applies.
    pub unreadable: Option<Arc<str>>,
}

impl Incoming {
    /// A message of `topic` with `body` and nothing else.
    pub fn new(topic: impl Into<Name>, body: impl Into<Bytes>) -> Self {
        Self { body: Some(body.into()), ..Self::empty(topic.into().0) }
    }

    /// A message of `topic` with nothing else. Not from the default, which allocates a topic.
    pub(crate) fn empty(topic: Arc<str>) -> Self {
        Self {
            topic,
            key: None,
            body: None,
            id: None,
            name: None,
            headers: Headers::default(),
            content_type: None,
            timestamp: None,
            partition: None,
            offset: None,
            queue: None,
            redelivered: false,
            unreadable: None,
        }
    }

    /// The bytes; none for a tombstone.
    pub fn bytes(&self) -> Bytes {
        self.body.clone().unwrap_or_default()
    }

    /// `true` if there is a body of zero bytes.
    pub fn is_empty(&self) -> bool {
        self.body.as_ref().is_some_and(Bytes::is_empty)
    }

    /// `true` if there is no body: in a compacted Kafka topic, the key is deleted.
    pub fn is_tombstone(&self) -> bool {
        self.body.is_none()
    }
}

impl Incoming {
    /// Drops all but the topic.
    pub(crate) fn clear(&mut self) {
        let Self {
            topic: _,
            key,
            body,
            id,
            name,
            headers,
            content_type,
            timestamp,
            partition,
            offset,
            queue,
            redelivered,
            unreadable,
        } = self;
        (*key, *body, *id, *name, *content_type) = (None, None, None, None, None);
        (*headers, *timestamp, *partition) = (Headers::new(), None, None);
        (*offset, *queue, *redelivered, *unreadable) = (None, None, false, None);
    }

    /// A published message as a consumer gets it, with the text of its id.
    pub(crate) fn with_id(message: &Message, id: ByteString) -> Self {
        Self {
            key: message.key.clone(),
            id: Some(id),
            name: (!message.name.is_empty()).then(|| message.name.clone()),
            headers: message.headers.clone(),
            content_type: message.content_type.clone(),
            timestamp: Some(message.timestamp),
            ..Self::new(&message.topic, message.body.clone())
        }
    }
}

/// A published message as a consumer gets it from a broker that keeps all of it.
impl From<&Message> for Incoming {
    fn from(message: &Message) -> Self {
        Self::with_id(message, message.id.to_string().into())
    }
}

crate::debug_fields!(Incoming { topic, partition, offset, id, name, headers, redelivered, unreadable }, |it|
    key_bytes: it.key.as_ref().map(Bytes::len), body_bytes: it.body.as_ref().map(Bytes::len));
