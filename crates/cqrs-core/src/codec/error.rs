//! The errors of serializing an event and of deserializing a message.

use std::error::Error;
use std::fmt;

use bytes::Bytes;

use crate::error_debug;

/// An event that could not be turned into bytes.
#[derive(thiserror::Error)]
#[error("{event} could not be serialized")]
pub struct SerializeError {
    event: String,
    source: Box<dyn Error + Send + Sync>,
}

error_debug!(SerializeError, event);

impl SerializeError {
    /// An error about the event named `event`.
    pub fn new(event: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { event: event.into(), source: source.into() }
    }

    /// The event's name.
    pub fn event(&self) -> &str {
        &self.event
    }
}

/// The reason why bytes are not an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeserializeErrorKind {
    /// There are no bytes at all.
    Empty,
    /// The bytes are not of the format: broken or cut off.
    Syntax,
    /// The bytes are of the format, but not of this event's shape.
    Shape,
    /// There are more bytes than the limit of the subscription.
    TooLarge,
}

/// The error of bytes that are not an event: its kind, the decoder's text, and the bytes.
///
/// `Debug` and `Display` show no bytes, and the decoder's text names fields and types, not values.
#[derive(Clone, PartialEq, Eq)]
pub struct DeserializeError {
    kind: DeserializeErrorKind,
    message: String,
    bytes: Bytes,
}

impl DeserializeError {
    /// An error about `bytes`.
    pub fn new(kind: DeserializeErrorKind, message: impl Into<String>, bytes: Bytes) -> Self {
        Self { kind, message: message.into(), bytes }
    }

    /// The kind of error.
    pub fn kind(&self) -> DeserializeErrorKind {
        self.kind
    }

    /// The decoder's text.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The bytes, as they came.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl fmt::Display for DeserializeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            DeserializeErrorKind::Empty => f.write_str("the message is empty"),
            DeserializeErrorKind::Syntax => write!(f, "malformed message: {}", self.message),
            DeserializeErrorKind::Shape => write!(f, "not this event: {}", self.message),
            DeserializeErrorKind::TooLarge => write!(f, "too large: {}", self.message),
        }
    }
}

impl Error for DeserializeError {}

error_debug!(DeserializeError, kind);
