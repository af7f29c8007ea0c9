//! The notification trait, its event with id and time, and the serializer contract.

use std::borrow::Cow;
use std::env;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use super::Event;
use super::timestamp::Timestamp;
use crate::codec::{Encoded, SerializeError};
use crate::message::{ByteString, Message};

/// The payload of an event that is published to other services.
///
/// `#[derive(Notification)]` writes this impl:
/// `#[cqrs(name = "UserCreated", topic = "user_events", key = "user_id")]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a notification: add `#[derive(Notification)]`",
    label = "not a notification"
)]
pub trait Notification: Event {
    /// The serializer of the event; [`JsonSerializer`](crate::codec::JsonSerializer) by default.
    type Serializer: Serializer<Self> + Default;

    /// Set if a publish without a receiver is an error.
    const MANDATORY: bool = true;

    /// The topic, unless the event or the mediator has another one.
    fn topic() -> Cow<'static, str> {
        default_topic()
    }

    /// Events of one topic with one key keep their order. `None`: no order is promised.
    fn key(&self) -> Option<Bytes> {
        None
    }
}

/// Turns events with payload `P` into bytes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not serialize `{P}`: write `impl Serializer<{P}> for {Self}`",
    label = "not a serializer of `{P}`"
)]
pub trait Serializer<P: Notification>: Send + Sync + 'static {
    /// The wire form of `event`.
    ///
    /// # Errors
    /// If the payload cannot be written in this form. The message names the event, not its values.
    fn serialize(&self, event: &NotificationEvent<P>) -> Result<Encoded, SerializeError>;
}

/// The topic of notifications without one, if the variable of the same name is not set (python-cqrs's
/// default).
pub const DEFAULT_OUTPUT_TOPIC: &str = "output_topic";

/// The environment variable `DEFAULT_OUTPUT_TOPIC`, read once, or [`DEFAULT_OUTPUT_TOPIC`].
pub fn default_topic() -> Cow<'static, str> {
    static TOPIC: OnceLock<String> = OnceLock::new();
    let topic = TOPIC.get_or_init(|| {
        env::var("DEFAULT_OUTPUT_TOPIC")
            .ok()
            .filter(|topic| !topic.is_empty())
            .unwrap_or_else(|| DEFAULT_OUTPUT_TOPIC.to_owned())
    });
    Cow::Borrowed(topic.as_str())
}

/// A notification with its id, time, name and topic.
///
/// Serialized in python-cqrs's snake form, fields in this order. Read in its snake and its camel form;
/// a missing id, time or topic gets its default, and unknown fields are ignored.
///
/// `Debug` shows the frame, not the payload.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NotificationEvent<P> {
    /// The payload.
    pub payload: P,
    /// The event's id; it stays the same when the event is sent again.
    pub event_id: Uuid,
    /// The time at which it happened.
    pub event_timestamp: Timestamp,
    /// The name of the event's type across services.
    pub event_name: Cow<'static, str>,
    /// The topic it is published to, or was received from.
    pub topic: Cow<'static, str>,
}

impl<P: Notification> NotificationEvent<P> {
    /// An event with the current time, a new id (UUID version 7), and the payload type's name and topic.
    pub fn new(payload: P) -> Self {
        Self {
            payload,
            event_id: Uuid::now_v7(),
            event_timestamp: Timestamp::now(),
            event_name: Cow::Borrowed(P::NAME),
            topic: P::topic(),
        }
    }

    /// An event from its parts, without defaults.
    pub fn from_parts(
        payload: P,
        event_id: Uuid,
        event_timestamp: Timestamp,
        event_name: impl Into<Cow<'static, str>>,
        topic: impl Into<Cow<'static, str>>,
    ) -> Self {
        let (event_name, topic) = (event_name.into(), topic.into());
        Self { payload, event_id, event_timestamp, event_name, topic }
    }

    crate::setters! {
        /// Sends this event to `topic` instead of its type's.
        pub fn with_topic(topic: impl Into<Cow<'static, str>>) { self.topic = topic.into() }

        /// Gives this event the id `event_id`.
        pub fn with_id(event_id: Uuid) { self.event_id = event_id }

        /// Gives this event another name than its type's.
        pub fn with_name(event_name: impl Into<Cow<'static, str>>) {
            self.event_name = event_name.into()
        }

        /// Sets the time at which this event happened.
        pub fn with_timestamp(event_timestamp: Timestamp) { self.event_timestamp = event_timestamp }
    }

    /// The message that a broker publishes for this event: its topic, key, id, name and time, and the body
    /// and headers of its type's [`Serializer`](Notification::Serializer).
    ///
    /// # Errors
    /// If the serializer cannot write the payload.
    pub fn to_message(&self) -> Result<Message, SerializeError> {
        let encoded = P::Serializer::default().serialize(self)?;
        // Not from `Message::new`, which makes an id and reads the clock.
        Ok(Message {
            topic: Arc::from(&*self.topic),
            key: self.payload.key(),
            id: self.event_id,
            name: match &self.event_name {
                Cow::Borrowed(name) => ByteString::from_static(name),
                Cow::Owned(name) => name.as_str().into(),
            },
            headers: encoded.headers,
            content_type: Some(ByteString::from_static(encoded.content_type)),
            timestamp: self.event_timestamp.into(),
            mandatory: P::MANDATORY,
            body: encoded.body,
        })
    }
}

impl<P: Notification> From<P> for NotificationEvent<P> {
    fn from(payload: P) -> Self {
        Self::new(payload)
    }
}

crate::debug_fields!(NotificationEvent<P> { event_id, event_timestamp, event_name, topic });

impl<'de, P: Notification + Deserialize<'de>> Deserialize<'de> for NotificationEvent<P> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// The field names of both forms; id, time and topic may be absent or null.
        #[derive(Deserialize)]
        struct Frame<'f, P> {
            payload: P,
            #[serde(alias = "eventId", default)]
            event_id: Option<Uuid>,
            #[serde(alias = "eventTimestamp", default)]
            event_timestamp: Option<Timestamp>,
            #[serde(alias = "eventName", borrow)]
            event_name: Text<'f>,
            #[serde(borrow, default)]
            topic: Option<Text<'f>>,
        }

        let frame = Frame::<P>::deserialize(deserializer)?;
        Ok(Self {
            payload: frame.payload,
            event_id: frame.event_id.unwrap_or_else(Uuid::now_v7),
            event_timestamp: frame.event_timestamp.unwrap_or_else(Timestamp::now),
            event_name: frame.event_name.unless_known(Cow::Borrowed(P::NAME)),
            topic: match frame.topic {
                Some(topic) => topic.unless_known(P::topic()),
                None => P::topic(),
            },
        })
    }
}

/// A text that is borrowed where the format allows it.
///
/// It asks the format for `deserialize_string`, as `String` does: some formats answer `deserialize_str` for
/// fewer of their texts.
struct Text<'t>(Cow<'t, str>);

impl Text<'_> {
    /// `known` if this is the same text, which is not copied then.
    fn unless_known(self, known: Cow<'static, str>) -> Cow<'static, str> {
        match self.0 == known {
            true => known,
            false => Cow::Owned(self.0.into_owned()),
        }
    }
}

impl<'de: 't, 't> Deserialize<'de> for Text<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_string<E>(self, text: String) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text)))
            }
        }

        deserializer.deserialize_string(TextVisitor)
    }
}
