//! Protobuf beside JSON on one topic, without `protoc`: some services write the one, some the other.
//!
//! ```text
//! cargo run --example protobuf
//! cargo run --example protobuf --features kafka,amqp -- --broker kafka    # or amqp
//! ```

use std::borrow::Cow;
use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use cqrs::codec::{JsonSerializer, Serializer as _};
use cqrs::consume::Incoming;
use cqrs::prelude::*;
use cqrs::protobuf::{MappingError, ProtobufEvent, ProtobufSerializer, json_or_protobuf};
use cqrs::{MemoryBroker, Message};
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
async fn main() -> Result<(), Box<dyn Error>> {
    let memory = MemoryBroker::new();
    let broker = broker(&memory).await?;
    let topic = env::var("TOPIC").unwrap_or_else(|_| "meetings".to_owned());
    let subscription = Subscription::to(topic.as_str())
        .group("greeter")
        .decode::<UserJoined>(json_or_protobuf::<UserJoined>());
    let service =
        Service::builder(Arc::clone(&broker)).subscribe(subscription, each(greet)).build()?;

    println!("one event as Protobuf and as JSON:");
    let (health, stop) = (service.health(), service.stop_handle());
    let running = tokio::spawn(service.run());
    // RabbitMQ's queue must exist before the first event. Kafka creates a topic with it.
    until(10, || health.is_ready()).await;
    let joined = |user: &str| UserJoined { user_id: user.into(), meeting_id: "standup".into() };
    let publisher = Mediator::builder().broker(Arc::clone(&broker));
    let publisher = publisher.topic::<UserJoined>(topic.as_str()).build()?;
    publisher.emitter().emit(joined("ada")).await?; // its type says that it is Protobuf
    let json = JsonSerializer.serialize(&NotificationEvent::new(joined("eve")))?;
    broker.publish(Message::new(topic, json.body)).await?;

    let counts = || health.subscriptions()[0].counts;
    until(60, || counts().handled == 2).await;
    stop.stop();
    let counts = running.await??.subscriptions[0].counts;
    println!("stopped: {} handled", counts.handled);
    Ok(())
}

/// The broker that `--broker memory`, `kafka` or `amqp` names: the in-memory one without it.
async fn broker(memory: &MemoryBroker) -> Result<Arc<dyn Subscribe>, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let broker: Arc<dyn Subscribe> = match arguments.join(" ").as_str() {
        "" | "--broker memory" => Arc::new(memory.clone()),
        #[cfg(feature = "kafka")]
        "--broker kafka" => {
            use cqrs::kafka::{KafkaConfig, KafkaMessageBroker};
            let servers = env::var("KAFKA_BOOTSTRAP_SERVERS");
            let servers = servers.unwrap_or_else(|_| "localhost:9092".to_owned());
            Arc::new(KafkaMessageBroker::connect(KafkaConfig::new([servers])).await?)
        }
        #[cfg(feature = "amqp")]
        "--broker amqp" => {
            use cqrs::amqp::{AmqpConfig, AmqpMessageBroker};
            let dsn = env::var("AMQP_DSN");
            let dsn = dsn.unwrap_or_else(|_| "amqp://guest:guest@localhost:5672/%2f".to_owned());
            Arc::new(AmqpMessageBroker::connect(AmqpConfig::new(dsn)).await?)
        }
        _ => {
            return Err(
                "usage: [--broker memory | kafka | amqp], with the feature of its name".into()
            );
        }
    };
    Ok(broker)
}

/// Waits for a condition, at most for so many seconds.
async fn until(seconds: u64, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let _in_time = tokio::time::timeout(Duration::from_secs(seconds), waiting).await;
}
