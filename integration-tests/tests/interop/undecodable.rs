//! Interop tests of messages that are no event.

use cqrs_core::OnDecodeError;
use cqrs_core::consume::DeadLetterReason;
use integration_tests::interop::{
    TestService, UserCreated, assert_same, events, hex, publish_events, spec,
};
use integration_tests::peers::Python;
use serde_json::{Value, json};

use super::TestTopic;

on_both_brokers![
    undecodable_python_message_follows_the_policy,
    python_cqrs_gets_undecodable_body_as_a_value,
    faststream_gets_undecodable_body_as_a_value,
    faststream_skips_undecodable_body_and_goes_on,
];

/// The beginning of an event.
pub(super) const CUT: &[u8] = br#"{"payload":{"user_id":"1","email":"a"#;

async fn undecodable_python_message_follows_the_policy<T: TestTopic>() {
    for strict in [false, true] {
        let topic = T::like(Python::Cqrs5).await;
        let mut subscription = topic.subscription().json::<UserCreated>();
        if strict {
            subscription = subscription
                .on_empty(OnDecodeError::DeadLetter)
                .on_tombstone(OnDecodeError::DeadLetter);
        }
        let mut service = TestService::<UserCreated>::open(topic.broker(), subscription).await;
        let good = events(topic.name());
        topic.publish(Python::Cqrs5, "pydantic", vec![spec(&good[0])]).await;
        topic.send(T::BAD).await;
        topic.publish(Python::Cqrs5, "pydantic", vec![spec(&good[1])]).await;
        assert_eq!(service.take(2).await, good[..2], "it goes on");
        service.stop().await;
        let dead = T::BAD.iter().filter(|body| strict || body.is_some_and(|body| !body.is_empty()));
        let dead: Vec<_> =
            dead.map(|body| (body.map(Vec::from), DeadLetterReason::Decode.to_string())).collect();
        assert_eq!(topic.dead_letters(dead.len()).await, dead, "as they came");
        topic.clean().await;
    }
}

/// Publishes bad bodies between two events to a peer: what it was given for them.
async fn bad_for<T: TestTopic>(python: Python, model: &str, read: Option<&str>) -> Vec<Value> {
    let topic = T::like(python).await;
    let mut inbox = topic.inbox(python, Some(model), read).await;
    let good = events(topic.name());
    publish_events(topic.broker(), &good[..1]).await;
    topic.send(T::BAD).await;
    publish_events(topic.broker(), &good[1..2]).await;
    let mut received = Vec::new();
    // Some of them are never given to a handler.
    while received.last().is_none_or(|last: &Value| last["event_id"] != json!(good[1].event_id)) {
        received.push(inbox.next().await);
    }
    inbox.stop().await;
    topic.clean().await;
    assert_same(&received[0], &good[0]);
    assert_same(&received.pop().unwrap(), &good[1]);
    received.remove(0);
    received
}

fn assert_values(received: &[Value], bodies: &[Option<&[u8]>]) {
    assert_eq!(received.len(), bodies.len(), "{received:?}");
    for (received, body) in received.iter().zip(bodies) {
        match body {
            None => assert_eq!(received["is"], "None", "a tombstone"),
            Some(body) => {
                assert_eq!(received["is"], "DeserializeJsonError", "{received}");
                assert_eq!(received["data"], hex(body), "{received}");
            }
        }
    }
}

async fn python_cqrs_gets_undecodable_body_as_a_value<T: TestTopic>() {
    for python in [Python::Cqrs4, Python::Cqrs5] {
        for model in ["pydantic", "dataclass"] {
            assert_values(&bad_for::<T>(python, model, None).await, T::BAD);
        }
    }
}

async fn faststream_gets_undecodable_body_as_a_value<T: TestTopic>() {
    for &(read, first) in T::BAD_READS {
        let received = bad_for::<T>(Python::FastStream, "pydantic", Some(read)).await;
        assert_values(&received, &T::BAD[first..]);
    }
}

async fn faststream_skips_undecodable_body_and_goes_on<T: TestTopic>() {
    let received = bad_for::<T>(Python::FastStream, "pydantic", None).await;
    assert!(received.is_empty(), "no handler is called: {received:?}");
}
