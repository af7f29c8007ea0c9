//! The Protobuf deserializer.

use std::borrow::Cow;

use cqrs_core::NotificationEvent;
use cqrs_core::codec::{DeserializeError, DeserializeErrorKind as Kind, Deserializer};
use cqrs_core::consume::Incoming;
use prost::Message as _;

use crate::event::ProtobufEvent;

/// Reads events from their Protobuf messages.
///
/// * An empty body is a message of defaults, as Protobuf defines it: never an empty message.
/// * Unknown fields are ignored; bytes that end within a field are [`Kind::Syntax`], a message that
///   [`ProtobufEvent`] rejects is [`Kind::Shape`].
/// * Bodies larger than [`with_max_size`](Self::with_max_size) are [`Kind::TooLarge`], and not decoded.
/// * Messages nested deeper than 100 are an error (prost's limit, and that of Google's own decoders), and
///   memory grows with the received bytes, not with the lengths in them.
///
/// A subscription to several types needs the event's name in the frame: a Protobuf message has none.
#[derive(Debug, Clone, Copy)]
pub struct ProtobufDeserializer {
    max_size: usize,
}

impl ProtobufDeserializer {
    /// Takes bodies of any size.
    pub const fn new() -> Self {
        Self { max_size: usize::MAX }
    }

    /// Refuses bodies of more than `bytes` bytes.
    #[must_use]
    pub const fn with_max_size(mut self, bytes: usize) -> Self {
        self.max_size = bytes;
        self
    }

    fn decode<P: ProtobufEvent>(
        &self,
        message: &Incoming,
    ) -> Result<NotificationEvent<P>, (Kind, String)> {
        let Some(body) = message.body.as_deref() else {
            return Err((Kind::Empty, "a tombstone has no body".into()));
        };
        if body.len() > self.max_size {
            let text = format!("{} bytes, at most {} are decoded", body.len(), self.max_size);
            return Err((Kind::TooLarge, text));
        }
        let decoded = P::Message::decode(body);
        let decoded = decoded.map_err(|error| (Kind::Syntax, error.to_string()))?;
        P::from_message(decoded, message).map_err(|error| (Kind::Shape, error.to_string()))
    }
}

impl Default for ProtobufDeserializer {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: ProtobufEvent> Deserializer<P> for ProtobufDeserializer {
    fn deserialize(&self, message: &Incoming) -> Result<NotificationEvent<P>, DeserializeError> {
        self.decode(message)
            .map_err(|(kind, text)| DeserializeError::new(kind, text, message.bytes()))
    }

    fn event_name<'m>(&self, message: &'m Incoming) -> Option<Cow<'m, str>> {
        message.event_name().map(Cow::Borrowed)
    }
}
