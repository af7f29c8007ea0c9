//! Interop tests of JSON bodies that are the payload alone, with services of FastStream that know no python-cqrs.

use std::collections::HashMap;
use std::time::Duration;

use cqrs_core::codec::JsonPayloadSerializer;
use cqrs_core::event::Timestamp;
use cqrs_core::{
    Event as _, HandlerError, MessageBrokerExt, NotificationEvent, Received, Retry, Service, each,
};
use cqrs_macros::Notification;
use integration_tests::consuming::TIMEOUT;
use integration_tests::consuming::fixture::until;
use integration_tests::interop::{TestService, UserCreated, users};
use integration_tests::peers::Python;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::timeout;
use uuid::Uuid;

use super::TestTopic;

on_both_brokers![
    we_read_plain_json_of_faststream,
    faststream_reads_our_plain_json,
    we_read_our_plain_json_again_in_a_retry,
];

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

async fn we_read_our_plain_json_again_in_a_retry<T: TestTopic>() {
    let topic = T::like(Python::FastStream).await;
    let (attempts, mut received) = tokio::sync::mpsc::unbounded_channel();
    let handler = each(move |event: NotificationEvent<PlainUser>, received: Received| {
        let _test_has_ended = attempts.send((event, received.attempt()));
        async move {
            if received.attempt() == 1 { Err(HandlerError::retryable("once")) } else { Ok(()) }
        }
    });
    let plain = topic.subscription().json_payload::<PlainUser>();
    let plain = plain.retry(Retry::none().delayed([Duration::from_secs(1)]));
    let service = Service::builder(topic.broker()).subscribe(plain, handler).build().unwrap();
    let (stop, health) = (service.stop_handle(), service.health());
    let running = tokio::spawn(service.run_until(std::future::pending::<()>()));
    until("the service to consume", async || health.is_ready()).await;
    // RabbitMQ keeps whole seconds.
    let event = NotificationEvent::new(PlainUser(users().remove(0)))
        .with_topic(topic.name().to_owned())
        .with_timestamp(Timestamp::from_unix_micros(1_704_164_645_000_000));
    topic.broker().publish_event(event.clone()).await.unwrap();
    for attempt in [1, 2] {
        let next = timeout(TIMEOUT, received.recv()).await.expect("an attempt in time").unwrap();
        assert_eq!(next, (event.clone(), attempt));
    }
    stop.stop();
    let report = running.await.unwrap().unwrap();
    assert_eq!(report.subscriptions[0].counts.handled, 1);
    topic.clean().await;
}
