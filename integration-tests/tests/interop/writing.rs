//! Interop tests of our events, read by the Python packages.

use cqrs_core::NotificationEvent;
use integration_tests::interop::{
    CORRELATION, UserCreated, assert_same, events, publish_events, spec,
};
use integration_tests::peers::Python;
use serde_json::Value;

use super::TestTopic;

on_both_brokers![
    python_cqrs_reads_our_events,
    faststream_reads_our_events_as_pydantic_models,
    faststream_reads_our_events_without_a_model,
    faststream_reads_our_events_by_a_deserializer,
    our_bytes_are_those_of_python_cqrs,
];

const PYDANTIC: &str = "PydanticNotificationEvent[UserCreated]";

/// Publishes events to a peer: the events, and what the peer was given.
async fn received_by_peer<T: TestTopic>(
    python: Python,
    model: Option<&str>,
    read: Option<&str>,
) -> Vec<(NotificationEvent<UserCreated>, Value)> {
    let topic = T::like(python).await;
    let mut inbox = topic.inbox(python, model, read).await;
    let events = events(topic.name());
    publish_events(topic.broker(), &events).await;
    let received = inbox.take(events.len()).await;
    inbox.stop().await;
    topic.clean().await;
    for (event, received) in events.iter().zip(&received) {
        T::assert_frame(python, received, event);
    }
    events.into_iter().zip(received).collect()
}

async fn python_cqrs_reads_our_events<T: TestTopic>() {
    for python in [Python::Cqrs4, Python::Cqrs5] {
        let alias = match python {
            Python::Cqrs4 => (PYDANTIC, "UserCreated"),
            // The dataclass does not keep the payload's type.
            _ => ("DCNotificationEvent", "dict"),
        };
        for (model, (event_type, payload_type)) in [
            ("pydantic", (PYDANTIC, "UserCreated")),
            ("alias", alias),
            ("pydantic-dict", ("PydanticNotificationEvent[dict]", "dict")),
            ("dataclass", ("UserCreatedEvent", "UserCreatedData")),
            ("dataclass-dict", ("DCNotificationEvent", "dict")),
        ] {
            for (event, received) in received_by_peer::<T>(python, Some(model), None).await {
                assert_same(&received, &event);
                assert_eq!(received["is"], event_type, "{python:?} {model}");
                assert_eq!(received["payload_is"], payload_type, "{python:?} {model}");
                assert_eq!(received["naive"], false);
            }
        }
    }
}

/// The events, and what FastStream was given.
async fn received_by_faststream<T: TestTopic>(
    model: Option<&str>,
    read: Option<&str>,
) -> Vec<(NotificationEvent<UserCreated>, Value)> {
    let pairs = received_by_peer::<T>(Python::FastStream, model, read).await;
    assert!(pairs.iter().all(|(_, received)| received["correlation_id"] == CORRELATION));
    pairs
}

async fn faststream_reads_our_events_as_pydantic_models<T: TestTopic>() {
    for (event, received) in received_by_faststream::<T>(Some("pydantic"), None).await {
        assert_eq!(received["is"], PYDANTIC);
        assert_same(&received, &event);
    }
}

async fn faststream_reads_our_events_without_a_model<T: TestTopic>() {
    for (event, received) in received_by_faststream::<T>(None, None).await {
        assert_eq!(received["value"], serde_json::to_value(&event).unwrap());
    }
}

async fn faststream_reads_our_events_by_a_deserializer<T: TestTopic>() {
    for read in T::READS {
        for (model, is) in [
            ("pydantic", PYDANTIC),
            ("dataclass", "UserCreatedEvent"),
            ("alias", "DCNotificationEvent"),
        ] {
            for (event, received) in received_by_faststream::<T>(Some(model), Some(read)).await {
                assert_eq!(received["is"], is, "{read}");
                assert_same(&received, &event);
            }
        }
    }
}

async fn our_bytes_are_those_of_python_cqrs<T: TestTopic>() {
    let topic = T::like(Python::Cqrs5).await;
    let events = events(topic.name());
    publish_events(topic.broker(), &events).await;
    let ours = topic.written().await;
    for python in [Python::Cqrs4, Python::Cqrs5] {
        topic.publish(python, "pydantic", events.iter().map(spec).collect()).await;
        let all = topic.written().await;
        for (ours, theirs) in ours.iter().zip(&all[all.len() - events.len()..]) {
            let text = |body: &Option<Vec<u8>>| String::from_utf8(body.clone().unwrap()).unwrap();
            assert_eq!(text(&ours.body), text(&theirs.body), "{python:?}");
            assert!(theirs.headers.is_empty() && theirs.key.is_none(), "{theirs:?}");
        }
    }
    topic.clean().await;
}
