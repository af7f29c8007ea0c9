//! The messages of python-cqrs's example, and events that map to them.

#![allow(dead_code, unreachable_pub)] // Each test file uses some.

use std::borrow::Cow;

use cqrs_core::NotificationEvent;
use cqrs_core::consume::Incoming;
use cqrs_macros::Notification;
use cqrs_protobuf::{MappingError, ProtobufEvent, ProtobufSerializer};
use serde::{Deserialize, Serialize};

/// The payload is the message.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize, Notification)]
#[cqrs(crate = "::cqrs_core", topic = "plain", key = "id", serializer = ProtobufSerializer)]
#[serde(default)]
pub struct Plain {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(sint64, tag = "2")]
    pub amount: i64,
    #[prost(bytes = "vec", tag = "3")]
    pub blob: Vec<u8>,
    #[prost(message, optional, boxed, tag = "4")]
    pub inner: Option<Box<Plain>>,
    #[prost(uint32, repeated, tag = "5")]
    pub numbers: Vec<u32>,
}

/// The message holds the whole event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "::cqrs_core", name = "UserJoined", topic = "users", serializer = ProtobufSerializer)]
pub struct UserJoined {
    pub user_id: String,
    pub meeting_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UserJoinedNotification {
    #[prost(string, tag = "1")]
    pub event_id: String,
    #[prost(string, tag = "2")]
    pub event_timestamp: String,
    #[prost(string, tag = "3")]
    pub event_name: String,
    #[prost(message, optional, tag = "6")]
    pub payload: Option<UserJoinedPayload>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UserJoinedPayload {
    #[prost(string, tag = "1")]
    pub user_id: String,
    #[prost(string, tag = "2")]
    pub meeting_id: String,
}

impl ProtobufEvent for UserJoined {
    type Message = UserJoinedNotification;

    fn to_message(event: &NotificationEvent<Self>) -> Result<Cow<'_, Self::Message>, MappingError> {
        if event.payload.user_id == "unspeakable" {
            return Err(MappingError::new("the user cannot be said"));
        }
        Ok(Cow::Owned(UserJoinedNotification {
            event_id: event.event_id.to_string(),
            event_timestamp: event.event_timestamp.to_string(),
            event_name: event.event_name.to_string(),
            payload: Some(UserJoinedPayload {
                user_id: event.payload.user_id.clone(),
                meeting_id: event.payload.meeting_id.clone(),
            }),
        }))
    }

    fn from_message(
        message: Self::Message,
        incoming: &Incoming,
    ) -> Result<NotificationEvent<Self>, MappingError> {
        let UserJoinedPayload { user_id, meeting_id } =
            message.payload.ok_or_else(|| MappingError::missing("payload"))?;
        Ok(incoming
            .to_event(Self { user_id, meeting_id })
            .with_id(MappingError::parse("event_id", &message.event_id)?)
            .with_timestamp(MappingError::parse("event_timestamp", &message.event_timestamp)?)
            .with_name(message.event_name))
    }
}
