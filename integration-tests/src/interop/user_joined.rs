//! python-cqrs's example event `UserJoined` with its Protobuf schema, as in `peers/protobuf.py`; used by
//! the interop tests.

use std::borrow::Cow;

use cqrs_core::consume::Incoming;
use cqrs_core::event::Timestamp;
use cqrs_core::message::CorrelationId;
use cqrs_core::{Mediator, MessageBroker, NotificationEvent, Scope};
use cqrs_macros::Notification;
use cqrs_protobuf::{MappingError, ProtobufEvent, ProtobufSerializer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{CORRELATION, TIMEOUT, TIMES};

/// The whole event on the wire.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UserJoinedNotification {
    /// With hyphens.
    #[prost(string, tag = "1")]
    pub event_id: String,
    /// RFC 3339.
    #[prost(string, tag = "2")]
    pub event_timestamp: String,
    /// `UserJoined`.
    #[prost(string, tag = "3")]
    pub event_name: String,
    /// The payload.
    #[prost(message, optional, tag = "6")]
    pub payload: Option<UserJoinedPayload>,
}

/// The payload of the event.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UserJoinedPayload {
    /// The user's id.
    #[prost(string, tag = "1")]
    pub user_id: String,
    /// The meeting's id.
    #[prost(string, tag = "2")]
    pub meeting_id: String,
}

/// The payload, which is no Protobuf message itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "meetings", serializer = ProtobufSerializer)]
pub struct UserJoined {
    /// The user's id.
    pub user_id: String,
    /// The meeting's id.
    pub meeting_id: String,
}

impl ProtobufEvent for UserJoined {
    type Message = UserJoinedNotification;

    fn to_message(event: &NotificationEvent<Self>) -> Result<Cow<'_, Self::Message>, MappingError> {
        let UserJoined { user_id, meeting_id } = event.payload.clone();
        Ok(Cow::Owned(UserJoinedNotification {
            event_id: event.event_id.to_string(),
            event_timestamp: event.event_timestamp.to_string(),
            event_name: event.event_name.to_string(),
            payload: Some(UserJoinedPayload { user_id, meeting_id }),
        }))
    }

    fn from_message(
        message: Self::Message,
        incoming: &Incoming,
    ) -> Result<NotificationEvent<Self>, MappingError> {
        let payload = message.payload.ok_or_else(|| MappingError::missing("payload"))?;
        let UserJoinedPayload { user_id, meeting_id } = payload;
        Ok(incoming
            .to_event(UserJoined { user_id, meeting_id })
            .with_id(MappingError::parse("event_id", &message.event_id)?)
            .with_timestamp(MappingError::parse("event_timestamp", &message.event_timestamp)?)
            .with_name(message.event_name))
    }
}

/// Events for `topic`: with text beyond ASCII, and with nothing in their payload.
pub fn joined_events(topic: &str) -> Vec<NotificationEvent<UserJoined>> {
    let users = [("1", "m-1"), ("\u{43a}\u{43b}\u{44e}\u{447}", "\u{1f980}"), ("", "")];
    let events = users.into_iter().zip(TIMES).map(|((user_id, meeting_id), micros)| {
        let payload = UserJoined { user_id: user_id.into(), meeting_id: meeting_id.into() };
        NotificationEvent::new(payload)
            .with_topic(topic.to_owned())
            .with_timestamp(Timestamp::from_unix_micros(micros))
    });
    events.collect()
}

/// Publishes them, one after the other.
pub async fn publish_events(broker: impl MessageBroker, events: &[NotificationEvent<UserJoined>]) {
    let mediator = Mediator::builder().broker(broker).build().unwrap();
    for event in events {
        let scope = Scope::new().with(CorrelationId::new(CORRELATION));
        mediator.emitter().emit_in(scope, event.clone()).await.unwrap();
    }
    assert_eq!(mediator.shutdown(TIMEOUT).await.undelivered, 0);
}

/// `event` in the form of a request to a peer.
pub fn spec(event: &NotificationEvent<UserJoined>) -> Value {
    json!({
        "payload": event.payload,
        "event_id": event.event_id,
        "event_timestamp": event.event_timestamp,
    })
}

/// Checks that a peer describes `event`, whose topic is not in the message.
#[track_caller]
pub fn assert_same(described: &Value, event: &NotificationEvent<UserJoined>) {
    assert_eq!(described["is"], "UserJoined");
    let expected = json!({
        "event_id": event.event_id,
        "event_name": "UserJoined",
        "micros": event.event_timestamp.unix_micros(),
        "payload": event.payload,
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&described[field], value, "{field} in {described}");
    }
}
