//! The contract of a deserializer: from a consumed message to an event.

use std::borrow::Cow;

use super::error::DeserializeError;
use crate::consume::Incoming;
use crate::event::{Notification, NotificationEvent};

/// Turns messages into events with payload `P`.
pub trait Deserializer<P: Notification>: Send + Sync + 'static {
    /// The event that `message` holds. It has a body, which may be empty: whether no bytes are an event
    /// is for the format to say.
    ///
    /// # Errors
    /// An error as a value: its kind, the decoder's words, and the raw bytes.
    /// [`DeserializeErrorKind::Empty`](super::DeserializeErrorKind::Empty) makes the message a case for
    /// [`on_empty`](crate::Subscription::on_empty).
    fn deserialize(&self, message: &Incoming) -> Result<NotificationEvent<P>, DeserializeError>;

    /// The name of the event in `message`, found without decoding all of it; `None` when it has none
    /// that can be read. A subscription to several types of events chooses by it.
    fn event_name<'m>(&self, message: &'m Incoming) -> Option<Cow<'m, str>>;
}
