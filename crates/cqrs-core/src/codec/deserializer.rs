//! The contract of a deserializer, which turns consumed messages into events.

use std::borrow::Cow;

use super::error::DeserializeError;
use crate::consume::Incoming;
use crate::event::{Notification, NotificationEvent};

/// Turns messages into events with payload `P`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not deserialize `{P}`: write `impl Deserializer<{P}> for {Self}`",
    label = "not a deserializer of `{P}`"
)]
pub trait Deserializer<P: Notification>: Send + Sync + 'static {
    /// The event that `message` holds. It has a body, which may be empty: the format decides whether that
    /// is an event.
    ///
    /// # Errors
    /// An error with its kind, the decoder's text, and the raw bytes.
    /// [`DeserializeErrorKind::Empty`](super::DeserializeErrorKind::Empty) applies the policy of
    /// [`on_empty`](crate::Subscription::on_empty).
    fn deserialize(&self, message: &Incoming) -> Result<NotificationEvent<P>, DeserializeError>;

    /// The name of the event in `message`, found without decoding all of it; `None` if it has no readable
    /// name. A subscription to several event types chooses by it.
    fn event_name<'m>(&self, message: &'m Incoming) -> Option<Cow<'m, str>>;
}
