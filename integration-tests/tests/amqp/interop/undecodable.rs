//! Interop tests of messages that are no event.

use cqrs_core::consume::DeadLetterReason;
use cqrs_core::{Message, MessageBrokerExt, OnDecodeError};
use integration_tests::amqp::{Raw, header};
use integration_tests::interop::{
    TestService, UserCreated, assert_same, events, hex, publish_events, spec,
};
use integration_tests::peers::{Peer, Python};
use serde_json::{Value, json};

use super::Topology;

/// Bodies that are no event; the last is the beginning of one.
const BAD: [&[u8]; 4] = [b"", b"null", b"[]", br#"{"payload":{"user_id":"1","email":"a"#];

#[tokio::test]
async fn undecodable_python_message_follows_the_policy() {
    for (strict, expected) in [(false, &BAD[1..]), (true, &BAD[..])] {
        let topology = Topology::python("bad");
        let subscription = match strict {
            true => topology.subscription().on_empty(OnDecodeError::DeadLetter),
            false => topology.subscription(),
        };
        let mut service = TestService::<UserCreated>::open(topology.broker(), subscription).await;
        let good = events(&topology.topic);
        topology.publish(Python::Cqrs5, "pydantic", vec![spec(&good[0])]).await;
        topology.send(&BAD).await;
        topology.publish(Python::Cqrs5, "pydantic", vec![spec(&good[1])]).await;
        assert_eq!(service.take(2).await, good[..2], "it goes on");
        service.stop().await;
        let raw = Raw::connect().await;
        let dead = raw.drain(&format!("{}.dead", topology.topic)).await;
        let bodies: Vec<_> = dead.iter().map(|letter| &letter.data[..]).collect();
        assert_eq!(bodies, expected, "as they came");
        for letter in &dead {
            let reason = header(letter, "cqrs-dead-letter-reason");
            assert_eq!(reason.as_deref(), Some(DeadLetterReason::Decode.as_str()));
        }
        assert_eq!(raw.count(&topology.topic).await, 0);
        raw.clean(&[], &[]).await;
        topology.clean().await;
    }
}

/// Publishes bad bodies between two events to a peer: what it was given for them.
async fn bad_for(topology: Topology, python: Python, what: &str, arguments: Value) -> Vec<Value> {
    let mut inbox = topology.inbox(Peer::shared(python), what, arguments).await;
    let good = events(&topology.topic);
    let broker = topology.broker();
    publish_events(topology.broker(), &good[..1]).await;
    for body in BAD {
        broker.publish(Message::new(&*topology.topic, body)).await.unwrap();
    }
    publish_events(topology.broker(), &good[1..2]).await;
    let mut received = Vec::new();
    while received.last().is_none_or(|last: &Value| last["event_id"] != json!(good[1].event_id)) {
        received.push(inbox.next().await);
    }
    inbox.stop().await;
    topology.clean().await;
    assert_same(&received[0], &good[0]);
    assert_same(&received.pop().unwrap(), &good[1]);
    received.remove(0);
    received
}

fn deserialize_errors(received: &[Value]) {
    assert_eq!(received.len(), BAD.len(), "{received:?}");
    for (received, body) in received.iter().zip(BAD) {
        assert_eq!(received["is"], "DeserializeJsonError", "{received}");
        assert_eq!(received["data"], hex(body), "{received}");
    }
}

#[tokio::test]
async fn python_cqrs_gets_undecodable_body_as_a_value() {
    for python in [Python::Cqrs4, Python::Cqrs5] {
        for model in ["pydantic", "dataclass"] {
            let topology = Topology::python("bad-for");
            let arguments = json!({ "model": model });
            deserialize_errors(&bad_for(topology, python, "consume_amqp", arguments).await);
        }
    }
}

#[tokio::test]
async fn faststream_gets_undecodable_body_and_goes_on() {
    let reads = async |read| {
        let arguments = json!({ "model": "pydantic", "read": read });
        let topology = Topology::faststream("bad-for");
        bad_for(topology, Python::FastStream, "faststream_amqp", arguments).await
    };
    deserialize_errors(&reads(Some("decoder")).await);
    let received = reads(None).await;
    assert!(received.is_empty(), "no handler is called: {received:?}");
}
