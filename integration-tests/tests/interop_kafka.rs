//! The real python-cqrs and FastStream on the other side of Kafka.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

use cqrs_core::{
    HandlerError, JsonSerializer, Mediator, NotificationEvent, RequestHandler, Scope, Serializer,
    Subscription,
};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker, KafkaSubscription};
use cqrs_macros::Command;
use integration_tests::interop::{
    Ear, UserCreated, assert_same, described, events, hex, spec, users,
};
use integration_tests::kafka::{create_topic, fresh_topic, read_all};
use integration_tests::peers::{Peer, Python};
use integration_tests::servers;
use serde_json::{Value, json};

/// A topic whose order is that of publishing.
async fn topic(test: &str) -> String {
    let topic = fresh_topic(test);
    // The records have the times of their events, some of which are long past.
    create_topic(&topic, 1, &[("retention.ms", "-1")]).await;
    topic
}

fn broker() -> KafkaMessageBroker {
    KafkaMessageBroker::new(KafkaConfig::new([servers::kafka()])).unwrap()
}

#[derive(Command)]
#[cqrs(crate = "cqrs_core", error = HandlerError)]
struct Announce(Vec<NotificationEvent<UserCreated>>);

struct Announcer;

impl RequestHandler<Announce> for Announcer {
    async fn handle(&self, command: Announce, scope: &mut Scope) -> Result<(), HandlerError> {
        for event in command.0 {
            scope.emit(event);
        }
        Ok(())
    }
}

/// Publishes them as services do: a command, and its handler's events.
async fn announce(events: Vec<NotificationEvent<UserCreated>>) {
    let mediator =
        Mediator::builder().handle::<Announce, _>(Announcer).broker(broker()).build().unwrap();
    mediator.send(Announce(events)).await.unwrap();
}

/// Publishes events and lets a peer consume them: the events, and what the peer was given.
async fn told(
    peer: &Peer,
    test: &str,
    what: &str,
    arguments: Value,
) -> Vec<(NotificationEvent<UserCreated>, Value)> {
    let topic = topic(test).await;
    let events = events(&topic);
    announce(events.clone()).await;
    let mut arguments = arguments;
    arguments["address"] = servers::kafka().into();
    arguments["topic"] = topic.as_str().into();
    let mut inbox = peer.subscribe(what, arguments).await;
    let received = inbox.take(events.len()).await;
    inbox.stop().await;
    events.into_iter().zip(received).collect()
}

async fn python_cqrs_reads(python: Python, models: &[(&str, &str, &str)]) {
    for (model, event_type, payload_type) in models {
        let peer = Peer::shared(python);
        for (event, received) in
            told(peer, "reads", "consume_kafka", json!({ "model": model })).await
        {
            assert_same(&received, &event);
            assert_eq!(
                (&received["is"], &received["payload_is"]),
                (&json!(event_type), &json!(payload_type))
            );
            assert_eq!(received["naive"], false);
            assert_eq!(received["headers"].as_array().unwrap().len(), 1, "{received}");
            assert_eq!(received["headers"][0][0], "correlation_id");
        }
    }
}

#[tokio::test]
async fn python_cqrs_4_reads_our_events() {
    let pydantic = "PydanticNotificationEvent[UserCreated]";
    python_cqrs_reads(
        Python::Cqrs4,
        &[
            ("pydantic", pydantic, "UserCreated"),
            ("alias", pydantic, "UserCreated"),
            ("pydantic-dict", "PydanticNotificationEvent[dict]", "dict"),
            ("dataclass", "UserCreatedEvent", "UserCreatedData"),
            ("dataclass-dict", "DCNotificationEvent", "dict"),
        ],
    )
    .await;
}

#[tokio::test]
async fn python_cqrs_5_reads_our_events() {
    python_cqrs_reads(
        Python::Cqrs5,
        &[
            ("pydantic", "PydanticNotificationEvent[UserCreated]", "UserCreated"),
            // What the brackets say of the payload, the dataclass forgets.
            ("alias", "DCNotificationEvent", "dict"),
            ("pydantic-dict", "PydanticNotificationEvent[dict]", "dict"),
            ("dataclass", "UserCreatedEvent", "UserCreatedData"),
            ("dataclass-dict", "DCNotificationEvent", "dict"),
        ],
    )
    .await;
}
