//! The outgoing message, its headers and media types, for mediators and brokers.

mod correlation;
mod headers;
mod name;
pub(crate) mod packed;
mod trace_context;

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use uuid::Uuid;

pub use bytestring::ByteString;
pub use correlation::CorrelationId;
pub use headers::{Headers, InvalidHeader, header};
pub use name::Name;
pub use trace_context::{InvalidTraceContext, TraceContext};

/// Media types of message bodies.
pub mod content_type {
    /// `application/json`, [RFC 8259](https://www.rfc-editor.org/rfc/rfc8259).
    pub const JSON: &str = "application/json";
    /// `application/x-protobuf`, as python-cqrs writes it on RabbitMQ.
    pub const PROTOBUF: &str = "application/x-protobuf";

    /// The media type without its parameters: `application/json` of `application/json; charset=utf-8`.
    pub fn essence(media_type: &str) -> &str {
        media_type.split(';').next().unwrap_or_default().trim()
    }

    /// `true` for `application/json`, with or without parameters, and for `application/*+json` ([RFC
    /// 6839](https://www.rfc-editor.org/rfc/rfc6839)).
    pub fn is_json(media_type: &str) -> bool {
        if media_type == JSON {
            return true;
        }
        let essence = essence(media_type);
        let end = essence.get(essence.len().saturating_sub(5)..);
        essence.eq_ignore_ascii_case(JSON)
            || end.is_some_and(|end| end.eq_ignore_ascii_case("+json"))
    }
}

/// An outgoing message: its topic and key, its body, and its id.
///
/// Cloning is cheap for topic, key and body (shared), linear in the headers.
///
/// `Debug` shows sizes, never the body: payloads do not belong in logs.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Kafka: the topic. RabbitMQ: the routing key (and the queue in the python-compatible mode).
    pub topic: Arc<str>,
    /// Messages of one topic with one key keep their order. `None`: no order is promised.
    pub key: Option<Bytes>,
    /// The event's id. Stays the same when the message is sent again.
    pub id: Uuid,
    /// The event's name, such as `UserCreated`. RabbitMQ carries it as the `type` property.
    pub name: ByteString,
    /// Text headers. See [`header`] for the names this framework writes.
    pub headers: Headers,
    /// Media type of the body. RabbitMQ carries it as a property. Kafka does not carry it for JSON,
    /// because FastStream decodes such a record twice.
    pub content_type: Option<ByteString>,
    /// The time of the event. RabbitMQ carries whole seconds, Kafka milliseconds.
    pub timestamp: SystemTime,
    /// Set if a broker that can detect it must report a message without a receiver as [`Unroutable`]. On by
    /// default.
    ///
    /// [`Unroutable`]: crate::PublishErrorKind::Unroutable
    pub mandatory: bool,
    /// The bytes, exactly as they are sent.
    pub body: Bytes,
}

impl Message {
    /// A message for `topic` with a new id (UUID version 7), the present time, and nothing else.
    pub fn new(topic: impl Into<Name>, body: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into().0,
            key: None,
            id: Uuid::now_v7(),
            name: ByteString::new(),
            headers: Headers::new(),
            content_type: None,
            timestamp: SystemTime::now(),
            mandatory: true,
            body: body.into(),
        }
    }

    crate::setters! {
        /// Sets the key. Messages of one topic with one key keep their order.
        pub fn with_key(key: impl Into<Bytes>) { self.key = Some(key.into()) }

        /// Sets the id.
        pub fn with_id(id: Uuid) { self.id = id }

        /// Sets the event name.
        pub fn with_name(name: impl Into<ByteString>) { self.name = name.into() }

        /// Sets the media type of the body.
        pub fn with_content_type(content_type: impl Into<ByteString>) {
            self.content_type = Some(content_type.into())
        }

        /// Replaces the headers.
        pub fn with_headers(headers: Headers) { self.headers = headers }

        /// Sets the time of the event.
        pub fn with_timestamp(timestamp: SystemTime) { self.timestamp = timestamp }

        /// Sets if an unroutable message is an error (the default) or silently dropped by the broker.
        pub fn with_mandatory(mandatory: bool) { self.mandatory = mandatory }
    }

    /// The bytes that this message takes in a [`Window`](crate::broker::Window): body, key, topic and
    /// headers.
    pub fn size(&self) -> usize {
        self.content_size() + self.topic.len()
    }

    /// Bytes of body, key and headers: the size that `max_message_size` of a broker value limits.
    pub fn content_size(&self) -> usize {
        self.body.len() + self.key.as_ref().map_or(0, Bytes::len) + self.headers.size()
    }
}

crate::debug_fields!(Message { topic, id, name, content_type, headers }, |it|
    key_bytes: it.key.as_ref().map(Bytes::len), body_bytes: it.body.len());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_body_or_the_key() {
        let message = Message::new("cards", "4111-1111").with_key("holder-7");
        let shown = format!("{message:?}");
        assert!(!shown.contains("4111") && !shown.contains("holder"), "{shown}");
        assert!(shown.contains("body_bytes: 9"), "{shown}");
    }

    #[test]
    fn size_counts_what_goes_over_the_wire() {
        let mut message = Message::new("abc", "12345").with_key("k");
        message.headers.insert("h", "vv").unwrap();
        assert_eq!(message.size(), 5 + 1 + 3 + 3);
        assert_eq!(message.content_size(), 5 + 1 + 3);
    }
}
