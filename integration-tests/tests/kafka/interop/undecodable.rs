//! Interop tests of messages that are no event.

use cqrs_core::OnDecodeError;
use cqrs_core::consume::DeadLetterReason;
use integration_tests::interop::{TestService, assert_same, events, hex, publish_events, spec};
use integration_tests::kafka::{self, fresh_topic};
use integration_tests::peers::{Peer, Python};
use integration_tests::servers;
use serde_json::{Value, json};

use super::{aiokafka_sends, broker, dead_letters, publish, subscription, topic};

/// The beginning of an event.
const CUT: &[u8] = br#"{"payload":{"user_id":"1","email":"a"#;

/// A tombstone, and bodies that are no event.
fn bad() -> Vec<Option<&'static [u8]>> {
    vec![None, Some(b""), Some(b"null"), Some(b"[]"), Some(CUT)]
}

#[tokio::test]
async fn undecodable_python_message_follows_the_policy() {
    let (topic, group) = (topic("bad").await, fresh_topic("g"));
    let all = fresh_topic("g-all");
    let default = subscription(&topic, &group);
    let strict = subscription(&topic, &all)
        .on_empty(OnDecodeError::DeadLetter)
        .on_tombstone(OnDecodeError::DeadLetter);
    let mut ears =
        [TestService::open(broker(), default).await, TestService::open(broker(), strict).await];
    let good = events(&topic);
    publish(Python::Cqrs5, &topic, "pydantic", vec![spec(&good[0])]).await;
    aiokafka_sends(Python::Cqrs5, &topic, &bad()).await;
    publish(Python::Cqrs5, &topic, "pydantic", vec![spec(&good[1])]).await;
    for service in &mut ears {
        assert_eq!(service.take(2).await, good[..2], "it goes on");
    }
    let expected = |bodies: &[Option<&[u8]>]| -> Vec<_> {
        let decode = || DeadLetterReason::Decode.to_string();
        bodies.iter().map(|body| (body.map(Vec::from), decode())).collect()
    };
    assert_eq!(dead_letters(&topic, &group, 3).await, expected(&bad()[2..]), "as they came");
    assert_eq!(dead_letters(&topic, &all, 5).await, expected(&bad()));
    for service in ears {
        service.stop().await;
    }
    kafka::delete_topics(&topic).await;
}

/// Publishes bad bodies between two events and lets a peer consume: what it was given for each.
async fn bad_for(peer: &Peer, what: &str, mut arguments: Value) -> Vec<Value> {
    let topic = topic("bad-for").await;
    let good = events(&topic);
    publish_events(broker(), &good[..1]).await;
    let bodies = bad()
        .into_iter()
        .map(|body| kafka::Raw { body: body.map(Vec::from), ..Default::default() });
    kafka::write(&topic, bodies.collect()).await;
    publish_events(broker(), &good[1..2]).await;
    arguments["address"] = servers::kafka().into();
    arguments["topic"] = topic.as_str().into();
    let mut inbox = peer.subscribe(what, arguments).await;
    let mut received = Vec::new();
    // Some of them are never given to a handler.
    while received.last().is_none_or(|last: &Value| last["event_id"] != json!(good[1].event_id)) {
        received.push(inbox.next().await);
    }
    inbox.stop().await;
    kafka::delete_topics(&topic).await;
    assert_same(&received[0], &good[0]);
    assert_same(&received.pop().unwrap(), &good[1]);
    received.remove(0);
    received
}

fn deserialize_errors(received: &[Value], bodies: &[&[u8]]) {
    assert_eq!(received.len(), bodies.len(), "{received:?}");
    for (received, body) in received.iter().zip(bodies) {
        assert_eq!(received["is"], "DeserializeJsonError", "{received}");
        assert_eq!(received["data"], hex(body), "{received}");
    }
}

#[tokio::test]
async fn python_cqrs_gets_undecodable_body_as_a_value() {
    for python in [Python::Cqrs4, Python::Cqrs5] {
        for model in ["pydantic", "dataclass"] {
            let peer = Peer::shared(python);
            let received = bad_for(peer, "consume_kafka", json!({ "model": model })).await;
            assert_eq!(received[0]["is"], "None", "a tombstone");
            deserialize_errors(&received[1..], &[b"", b"null", b"[]", CUT]);
        }
    }
}

async fn bad_for_faststream(read: Option<&str>) -> Vec<Value> {
    let arguments = json!({ "model": "pydantic", "read": read, "group": fresh_topic("g") });
    bad_for(Peer::shared(Python::FastStream), "faststream_kafka", arguments).await
}

#[tokio::test]
async fn faststream_gets_undecodable_body_as_a_value() {
    let received = bad_for_faststream(Some("value_deserializer")).await;
    // Of a tombstone FastStream makes b"" behind the deserializer's back, which is no body of the
    // handler: an error in its log.
    deserialize_errors(&received, &[b"", b"null", b"[]", CUT]);
    // The manual's decoder makes it None again.
    let received = bad_for_faststream(Some("manual")).await;
    assert_eq!(received[0]["is"], "None", "a tombstone");
    deserialize_errors(&received[1..], &[b"", b"null", b"[]", CUT]);
}

#[tokio::test]
async fn faststream_skips_undecodable_body_and_goes_on() {
    let received = bad_for_faststream(None).await;
    assert!(received.is_empty(), "no handler is called: {received:?}");
}
