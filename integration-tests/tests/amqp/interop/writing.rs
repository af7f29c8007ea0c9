//! Interop tests of our events, read by the Python packages.

use cqrs_core::NotificationEvent;
use integration_tests::amqp::Raw;
use integration_tests::interop::{
    CORRELATION, UserCreated, assert_same, events, publish_events, spec,
};
use integration_tests::peers::{Peer, Python};
use serde_json::{Value, json};

use super::Topology;

/// Publishes events to a peer: the events, and what the peer was given.
async fn received_by_peer(
    topology: Topology,
    python: Python,
    what: &str,
    arguments: Value,
) -> Vec<(NotificationEvent<UserCreated>, Value)> {
    let mut inbox = topology.inbox(Peer::shared(python), what, arguments).await;
    let events = events(&topology.topic);
    publish_events(topology.broker(), &events).await;
    let received = inbox.take(events.len()).await;
    inbox.stop().await;
    topology.clean().await;
    for (event, received) in events.iter().zip(&received) {
        assert_eq!(received["correlation_id"], CORRELATION);
        assert_eq!(received["content_type"], "application/json");
        let key = ["message_key", event.payload.user_id.as_str()];
        assert_eq!(received["headers"], json!([["correlation_id", CORRELATION], key]));
    }
    events.into_iter().zip(received).collect()
}

/// For each model: the types of the event and of its payload that Python ends up with.
async fn python_cqrs_reads(python: Python, models: &[(&str, &str, &str)]) {
    for (model, event_type, payload_type) in models {
        let arguments = json!({ "model": model });
        for (event, received) in
            received_by_peer(Topology::python("reads"), python, "consume_amqp", arguments).await
        {
            assert_same(&received, &event);
            let types = (&received["is"], &received["payload_is"]);
            assert_eq!(types, (&json!(event_type), &json!(payload_type)));
            assert_eq!(received["naive"], false);
            assert_eq!(received["message_id"], json!(event.event_id));
        }
    }
}

#[tokio::test]
async fn python_cqrs_4_reads_our_events() {
    python_cqrs_reads(
        Python::Cqrs4,
        &[
            ("pydantic", "PydanticNotificationEvent[UserCreated]", "UserCreated"),
            ("dataclass", "UserCreatedEvent", "UserCreatedData"),
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
            ("dataclass", "UserCreatedEvent", "UserCreatedData"),
        ],
    )
    .await;
}

async fn faststream_reads(
    model: Option<&str>,
    read: Option<&str>,
) -> Vec<(NotificationEvent<UserCreated>, Value)> {
    let arguments = json!({ "model": model, "read": read });
    received_by_peer(
        Topology::faststream("stream"),
        Python::FastStream,
        "faststream_amqp",
        arguments,
    )
    .await
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

/// The topology for a deserializer with RabbitMQ. With the one that the manual of python-cqrs names,
/// `parser`, FastStream 0.7 cannot work.
#[tokio::test]
async fn faststream_reads_our_events_through_a_decoder() {
    for (model, is) in
        [("pydantic", "PydanticNotificationEvent[UserCreated]"), ("dataclass", "UserCreatedEvent")]
    {
        for (event, received) in faststream_reads(Some(model), Some("decoder")).await {
            assert_eq!(received["is"], is);
            assert_same(&received, &event);
        }
    }
}

#[tokio::test]
async fn our_bytes_are_those_of_python_cqrs() {
    let topology = Topology::python("bytes");
    let raw = Raw::connect().await;
    let events = events(&topology.topic);
    publish_events(topology.broker(), &events).await;
    let ours = raw.drain(&topology.topic).await;
    for python in [Python::Cqrs4, Python::Cqrs5] {
        topology.publish(python, "pydantic", events.iter().map(spec).collect()).await;
        let theirs = raw.drain(&topology.topic).await;
        for (ours, theirs) in ours.iter().zip(theirs) {
            let text = |body: &[u8]| String::from_utf8(body.to_vec()).unwrap();
            assert_eq!(text(&ours.data), text(&theirs.data), "{python:?}");
        }
    }
    raw.clean(&[&topology.topic], &[]).await;
}
