//! Protobuf beside JSON on one topic, without `protoc`: some services write the one, some the other.
//!
//! ```text
//! cargo run --example protobuf
//! cargo run --example protobuf --features kafka,amqp -- --broker kafka    # or amqp
//! ```

mod common;

use std::borrow::Cow;

use common::{Fallible, Wire};
use cqrs::codec::{JsonSerializer, Serializer as _};
use cqrs::consume::Incoming;
use cqrs::prelude::*;
use cqrs::protobuf::{
    FrameExt as _, MappingError, ProtobufEvent, ProtobufSerializer, json_or_protobuf,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Notification)]
#[cqrs(name = "UserJoined", topic = "meetings", serializer = ProtobufSerializer)]
struct UserJoined {
    user_id: String,
    meeting_id: String,
}

/// The messages of a python-cqrs service. A real project may have prost-build make them of its .proto
/// files, or write them by hand, as here.
mod pb {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct UserJoinedNotification {
        #[prost(string, tag = "1")]
        pub(crate) event_id: String,
        #[prost(string, tag = "2")]
        pub(crate) event_timestamp: String,
        #[prost(string, tag = "3")]
        pub(crate) event_name: String,
        #[prost(message, optional, tag = "6")]
        pub(crate) payload: Option<UserJoinedPayload>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct UserJoinedPayload {
        #[prost(string, tag = "1")]
        pub(crate) user_id: String,
        #[prost(string, tag = "2")]
        pub(crate) meeting_id: String,
    }
}

/// How the event and its message become each other. A payload that is a `prost::Message` itself needs
/// none of this.
impl ProtobufEvent for UserJoined {
    type Message = pb::UserJoinedNotification;

    fn to_message(event: &NotificationEvent<Self>) -> Result<Cow<'_, Self::Message>, MappingError> {
        let UserJoined { user_id, meeting_id } = &event.payload;
        Ok(Cow::Owned(pb::UserJoinedNotification {
            event_id: event.event_id.to_string(),
            event_timestamp: event.event_timestamp.to_string(),
            event_name: event.event_name.to_string(),
            payload: Some(pb::UserJoinedPayload {
                user_id: user_id.clone(),
                meeting_id: meeting_id.clone(),
            }),
        }))
    }

    fn from_message(
        message: Self::Message,
        incoming: &Incoming,
    ) -> Result<NotificationEvent<Self>, MappingError> {
        let payload = message.payload.ok_or_else(|| MappingError::missing("payload"))?;
        let pb::UserJoinedPayload { user_id, meeting_id } = payload;
        Ok(incoming
            .to_event(Self { user_id, meeting_id })
            .with_id(MappingError::parse("event_id", &message.event_id)?)
            .with_timestamp(MappingError::parse("event_timestamp", &message.event_timestamp)?)
            .with_name(message.event_name))
    }
}

async fn greet(
    event: NotificationEvent<UserJoined>,
    received: Received,
) -> Result<(), HandlerError> {
    let format = received.message().content_type.as_deref().unwrap_or("no content type");
    let UserJoined { user_id, meeting_id } = &event.payload;
    println!("  {user_id} joined {meeting_id} ({} bytes, {format})", received.bytes().len());
    Ok(())
}

#[tokio::main]
async fn main() -> Fallible<()> {
    let wire = Wire::open().await?;
    let meetings = wire.topic("meetings").await?;
    let subscription = Subscription::to(meetings.as_str())
        .group("greeter")
        .decode::<UserJoined>(json_or_protobuf::<UserJoined>());
    let service = Service::builder(wire.broker()).subscribe(subscription, each(greet)).build()?;

    println!("one event as Protobuf and as JSON, on {}:", wire.name);
    let running = common::start(service).await?;
    let joined = |user: &str| UserJoined { user_id: user.into(), meeting_id: "standup".into() };
    wire.publish(&meetings, joined("ada")).await?; // its type says that it is Protobuf
    let json = JsonSerializer.serialize(&NotificationEvent::new(joined("eve")))?;
    wire.publish_bytes(&meetings, json.body).await?;

    running.has_settled(2).await?;
    let counts = running.stop().await?;
    println!("stopped: {} handled", counts.handled);
    wire.tidy_up("greeter", &Retry::default()).await
}
