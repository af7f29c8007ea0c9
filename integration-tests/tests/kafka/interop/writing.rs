//! Interop tests of our events, read by the Python packages.

use cqrs_core::NotificationEvent;
use integration_tests::interop::{
    CORRELATION, UserCreated, assert_same, events, publish_events, spec,
};
use integration_tests::kafka::{self, fresh_topic, read_all};
use integration_tests::peers::{Peer, Python};
use integration_tests::servers;
use serde_json::{Value, json};

use super::{broker, publish, topic};

/// Publishes events and lets a peer consume them: the events, and what the peer was given.
async fn received_by_peer(
    peer: &Peer,
    test: &str,
    what: &str,
    mut arguments: Value,
) -> Vec<(NotificationEvent<UserCreated>, Value)> {
    let topic = topic(test).await;
    let events = events(&topic);
    publish_events(broker(), &events).await;
    arguments["address"] = servers::kafka().into();
    arguments["topic"] = topic.as_str().into();
    let mut inbox = peer.subscribe(what, arguments).await;
    let received = inbox.take(events.len()).await;
    inbox.stop().await;
    kafka::delete_topics(&topic).await;
    events.into_iter().zip(received).collect()
}

/// For each model: the types of the event and of its payload that Python ends up with.
async fn python_cqrs_reads(python: Python, models: &[(&str, &str, &str)]) {
    for (model, event_type, payload_type) in models {
        let peer = Peer::shared(python);
        for (event, received) in
            received_by_peer(peer, "reads", "consume_kafka", json!({ "model": model })).await
        {
            assert_same(&received, &event);
            assert_eq!(
                (&received["is"], &received["payload_is"]),
                (&json!(event_type), &json!(payload_type))
            );
            assert_eq!(received["naive"], false);
            assert_eq!(received["headers"], json!([["correlation_id", CORRELATION]]));
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
            // The dataclass does not keep the payload's type.
            ("alias", "DCNotificationEvent", "dict"),
            ("pydantic-dict", "PydanticNotificationEvent[dict]", "dict"),
            ("dataclass", "UserCreatedEvent", "UserCreatedData"),
            ("dataclass-dict", "DCNotificationEvent", "dict"),
        ],
    )
    .await;
}

async fn faststream_reads(
    model: Option<&str>,
    read: Option<&str>,
) -> Vec<(NotificationEvent<UserCreated>, Value)> {
    let group = fresh_topic("g");
    let arguments = json!({ "model": model, "read": read, "group": group });
    let pairs =
        received_by_peer(Peer::shared(Python::FastStream), "stream", "faststream_kafka", arguments)
            .await;
    for (_, received) in &pairs {
        assert_eq!(received["correlation_id"], CORRELATION);
        // With one, FastStream would decode a second time what the deserializer made of the body.
        assert_eq!(received["content_type"], Value::Null);
    }
    pairs
}

#[tokio::test]
async fn faststream_reads_our_events_as_pydantic_models() {
    for (event, received) in faststream_reads(Some("pydantic"), None).await {
        assert_eq!(received["is"], "PydanticNotificationEvent[UserCreated]");
        assert_same(&received, &event);
    }
}

#[tokio::test]
async fn faststream_reads_our_events_without_a_model() {
    for (event, received) in faststream_reads(None, None).await {
        assert_eq!(received["value"], serde_json::to_value(&event).unwrap());
    }
}

#[tokio::test]
async fn faststream_reads_our_events_by_value_deserializer() {
    for (model, is) in [
        ("pydantic", "PydanticNotificationEvent[UserCreated]"),
        ("dataclass", "UserCreatedEvent"),
        ("alias", "DCNotificationEvent"),
    ] {
        for (event, received) in faststream_reads(Some(model), Some("value_deserializer")).await {
            assert_eq!(received["is"], is);
            assert_same(&received, &event);
        }
    }
}

#[tokio::test]
async fn faststream_reads_our_events_through_a_decoder() {
    for (event, received) in faststream_reads(Some("pydantic"), Some("decoder")).await {
        assert_eq!(received["is"], "PydanticNotificationEvent[UserCreated]");
        assert_same(&received, &event);
    }
}

#[tokio::test]
async fn our_bytes_are_those_of_python_cqrs() {
    let topic = topic("bytes").await;
    let events = events(&topic);
    publish_events(broker(), &events).await;
    let written = read_all(&topic).await;
    for python in [Python::Cqrs4, Python::Cqrs5] {
        publish(python, &topic, "pydantic", events.iter().map(spec).collect()).await;
        let all = read_all(&topic).await;
        let theirs = &all[all.len() - events.len()..];
        for (ours, theirs) in written.iter().zip(theirs) {
            let text = |body: &Option<Vec<u8>>| String::from_utf8(body.clone().unwrap()).unwrap();
            assert_eq!(text(&ours.body), text(&theirs.body), "{python:?}");
            assert!(theirs.headers.is_empty() && theirs.key.is_none(), "{theirs:?}");
        }
    }
    kafka::delete_topics(&topic).await;
}
