//! How a notification event becomes bytes, and bytes an event.

mod error;
mod json;
mod negotiate;
mod non_finite;
mod unicode;

use std::borrow::Cow;

use bytes::Bytes;

use crate::consume::Incoming;
use crate::event::{Notification, NotificationEvent};
use crate::message::Headers;

pub use error::{DeserializeError, DeserializeErrorKind, SerializeError};
pub use json::{JsonDeserializer, JsonSerializer};
pub use negotiate::ByContentType;

/// Turns events with payload `P` into bytes.
pub trait Serializer<P: Notification>: Send + Sync + 'static {
    /// The wire form of `event`.
    ///
    /// # Errors
    /// When the payload cannot be written in this form. The message names the event, not its values.
    fn serialize(&self, event: &NotificationEvent<P>) -> Result<Encoded, SerializeError>;
}

/// Turns messages into events with payload `P`.
pub trait Deserializer<P: Notification>: Send + Sync + 'static {
    /// The event that `message` holds. It has a body, which may be empty: whether no bytes are an event
    /// is for the format to say.
    ///
    /// # Errors
    /// An error as a value: its kind, the decoder's words, and the raw bytes.
    /// [`DeserializeErrorKind::Empty`] makes the message a case for
    /// [`on_empty`](crate::Subscription::on_empty).
    fn deserialize(&self, message: &Incoming) -> Result<NotificationEvent<P>, DeserializeError>;

    /// The name of the event in `message`, found without decoding all of it; `None` when it has none
    /// that can be read. A subscription to several types of events chooses by it.
    fn event_name<'m>(&self, message: &'m Incoming) -> Option<Cow<'m, str>>;
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
