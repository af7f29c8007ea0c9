//! How a notification event becomes bytes, and bytes an event.

mod error;
mod json;

use bytes::Bytes;

use crate::event::{Notification, NotificationEvent};
use crate::message::Headers;

pub use error::{DeserializeError, DeserializeErrorKind, SerializeError};
pub use json::{JsonDeserializer, JsonSerializer};

/// Turns events with payload `P` into bytes.
pub trait Serializer<P: Notification>: Send + Sync + 'static {
    /// The wire form of `event`.
    ///
    /// # Errors
    /// When the payload cannot be written in this form. The message names the event, not its values.
    fn serialize(&self, event: &NotificationEvent<P>) -> Result<Encoded, SerializeError>;
}

/// Turns bytes into events with payload `P`.
pub trait Deserializer<P: Notification>: Send + Sync + 'static {
    /// The event that `body` holds.
    ///
    /// # Errors
    /// An error as a value: its kind, the decoder's words, and the raw bytes.
    fn deserialize(&self, body: &Bytes) -> Result<NotificationEvent<P>, DeserializeError>;
}

/// The wire form of one event.
#[derive(Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The message's body.
    pub body: Bytes,
    /// Its media type.
    pub content_type: &'static str,
    /// Headers that this form needs beside the body.
    pub headers: Headers,
}

impl std::fmt::Debug for Encoded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoded")
            .field("body_bytes", &self.body.len())
            .field("content_type", &self.content_type)
            .field("headers", &self.headers)
            .finish()
    }
}
