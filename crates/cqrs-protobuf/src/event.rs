//! The Protobuf form of an event, and the frame that python-cqrs writes.

use std::borrow::Cow;
use std::fmt;

use cqrs_core::consume::Incoming;
use cqrs_core::{Notification, NotificationEvent};

/// The conversion between a notification event and its Protobuf message.
///
/// A payload that is a [`prost::Message`] has an impl: its message is the payload alone. Other payloads
/// implement it:
///
/// ```
/// # use std::borrow::Cow;
/// # use cqrs_core::consume::Incoming;
/// # use cqrs_core::NotificationEvent;
/// # use cqrs_macros::Notification;
/// # use cqrs_protobuf::{MappingError, ProtobufEvent, ProtobufSerializer};
/// # mod pb {
/// #     #[derive(Clone, PartialEq, prost::Message)]
/// #     pub struct UserJoinedNotification {
/// #         #[prost(string, tag = "1")]
/// #         pub event_id: String,
/// #         #[prost(string, tag = "2")]
/// #         pub event_timestamp: String,
/// #         #[prost(string, tag = "3")]
/// #         pub event_name: String,
/// #         #[prost(message, optional, tag = "6")]
/// #         pub payload: Option<UserJoinedPayload>,
/// #     }
/// #     #[derive(Clone, PartialEq, prost::Message)]
/// #     pub struct UserJoinedPayload {
/// #         #[prost(string, tag = "1")]
/// #         pub user_id: String,
/// #     }
/// # }
/// #[derive(Debug, Clone, Notification)]
/// #[cqrs(crate = "::cqrs_core", topic = "users", serializer = ProtobufSerializer)]
/// struct UserJoined {
///     user_id: String,
/// }
///
/// impl ProtobufEvent for UserJoined {
///     type Message = pb::UserJoinedNotification;
///
///     fn to_message(
///         event: &NotificationEvent<Self>,
///     ) -> Result<Cow<'_, Self::Message>, MappingError> {
///         Ok(Cow::Owned(pb::UserJoinedNotification {
///             event_id: event.event_id.to_string(),
///             event_timestamp: event.event_timestamp.to_string(),
///             event_name: event.event_name.to_string(),
///             payload: Some(pb::UserJoinedPayload { user_id: event.payload.user_id.clone() }),
///         }))
///     }
///
///     fn from_message(
///         message: Self::Message,
///         incoming: &Incoming,
///     ) -> Result<NotificationEvent<Self>, MappingError> {
///         let payload = message.payload.ok_or_else(|| MappingError::missing("payload"))?;
///         Ok(incoming
///             .to_event(UserJoined { user_id: payload.user_id })
///             .with_id(MappingError::parse("event_id", &message.event_id)?)
///             .with_timestamp(MappingError::parse("event_timestamp", &message.event_timestamp)?)
///             .with_name(message.event_name))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a Protobuf event: derive `prost::Message`, or write `impl ProtobufEvent for \
               {Self}`",
    label = "has no Protobuf message"
)]
pub trait ProtobufEvent: Notification {
    /// The message on the wire.
    type Message: prost::Message + Default + Clone;

    /// The message of an event.
    ///
    /// # Errors
    /// If the message cannot represent the event. Nothing is published then.
    fn to_message(event: &NotificationEvent<Self>) -> Result<Cow<'_, Self::Message>, MappingError>;

    /// The event of a message; `incoming` is its frame.
    ///
    /// # Errors
    /// If the message is not a valid event. The subscription's policy for decode errors applies then.
    fn from_message(
        message: Self::Message,
        incoming: &Incoming,
    ) -> Result<NotificationEvent<Self>, MappingError>;
}

#[diagnostic::do_not_recommend]
impl<P: Notification + prost::Message + Default + Clone> ProtobufEvent for P {
    type Message = P;

    fn to_message(event: &NotificationEvent<P>) -> Result<Cow<'_, P>, MappingError> {
        Ok(Cow::Borrowed(&event.payload))
    }

    fn from_message(message: P, incoming: &Incoming) -> Result<NotificationEvent<P>, MappingError> {
        Ok(incoming.to_event(message))
    }
}

/// The error of a message and an event that cannot be converted. It names fields, never values.
#[derive(Clone, PartialEq, Eq)]
pub struct MappingError(Cow<'static, str>);

impl MappingError {
    /// An error with its text, which is logged: it must not quote values of the message.
    pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self(text.into())
    }

    /// The message has no `field`.
    pub fn missing(field: &str) -> Self {
        Self(format!("missing field `{field}`").into())
    }

    /// Parses a text field: a UUID, hyphenated or not, a [`Timestamp`](cqrs_core::event::Timestamp), or a number.
    ///
    /// # Errors
    /// If the text cannot be parsed; the error names the field.
    pub fn parse<T: std::str::FromStr>(field: &str, text: &str) -> Result<T, Self> {
        text.parse().map_err(|_| {
            let name = std::any::type_name::<T>();
            let name = name.rsplit("::").next().unwrap_or(name);
            Self(format!("field `{field}` is no {name}").into())
        })
    }
}

impl fmt::Display for MappingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for MappingError {}

cqrs_core::error_debug!(MappingError);
