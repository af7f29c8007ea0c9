//! Interop tests of JSON bodies that are the payload alone, with services of FastStream that know no python-cqrs.

use std::collections::HashMap;

use cqrs_core::codec::JsonPayloadSerializer;
use cqrs_core::{Event as _, MessageBrokerExt, NotificationEvent};
use cqrs_macros::Notification;
use integration_tests::interop::{TestService, UserCreated, users};
use integration_tests::peers::Python;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::TestTopic;

on_both_brokers![we_read_plain_json_of_faststream, faststream_reads_our_plain_json];

/// The model `payload` of `peers/events.py`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", serializer = JsonPayloadSerializer)]
#[serde(transparent)]
struct PlainUser(UserCreated);

async fn we_read_plain_json_of_faststream<T: TestTopic>() {
    let topic = T::like(Python::FastStream).await;
    let plain = topic.subscription().json_payload::<PlainUser>();
    let mut service = TestService::<PlainUser>::open(topic.broker(), plain).await;
    for model in [None, Some("payload")] {
        topic.stream(&users(), model).await;
        for user in users() {
            let (event, received) = service.next().await;
            assert_eq!(event.payload.0, user);
            assert_eq!((&*event.event_name, &*event.topic), (PlainUser::NAME, topic.name()));
            assert_eq!(event.event_timestamp, received.timestamp.unwrap().into());
            // On RabbitMQ, FastStream gives each message an id.
            let id: Option<Uuid> = received.id.as_deref().map(|id| id.parse().unwrap());
            assert!(id.is_none_or(|id| event.event_id == id), "{id:?}");
            assert_eq!(id.is_some(), T::NAME == "amqp");
        }
    }
    service.stop().await;
    topic.clean().await;
}

async fn faststream_reads_our_plain_json<T: TestTopic>() {
    for (model, is) in [(Some("payload"), "UserCreated"), (None, "dict")] {
        let topic = T::like(Python::FastStream).await;
        let mut inbox = topic.inbox(Python::FastStream, model, None).await;
        let (broker, name) = (topic.broker(), topic.name());
        for user in users() {
            let event = NotificationEvent::new(PlainUser(user)).with_topic(name.to_owned());
            let id = event.event_id.to_string();
            broker.publish_event(event.clone()).await.unwrap();
            let received = inbox.next().await;
            assert_eq!((&received["is"], &received["value"]), (&json!(is), &json!(event.payload)));
            let headers: HashMap<String, String> =
                serde_json::from_value::<Vec<_>>(received["headers"].clone())
                    .unwrap()
                    .into_iter()
                    .collect();
            assert_eq!((&*headers["event_name"], &headers["message_id"]), (PlainUser::NAME, &id));
        }
        inbox.stop().await;
        topic.clean().await;
    }
}
