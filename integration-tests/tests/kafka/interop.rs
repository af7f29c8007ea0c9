//! Interop tests with the real python-cqrs and FastStream over Kafka.

mod groups;
mod protobuf;
mod reading;
mod undecodable;
mod writing;

use std::time::Duration;

use cqrs_core::Subscription;
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker, KafkaSubscription};
use integration_tests::consuming::fixture::until;
use integration_tests::interop::{UserCreated, hex};
use integration_tests::kafka::{create_topic, fresh_topic, read_raw};
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

/// For a test's only member; a group of more waits for nothing either.
fn subscription(topic: &str, group: &str) -> Subscription {
    let options =
        KafkaSubscription::python_compatible().with_commit_interval(Duration::from_millis(100));
    Subscription::to(topic).group(group).json::<UserCreated>().option(options)
}

/// Lets python-cqrs publish, and returns its description of the events.
async fn publish(python: Python, topic: &str, style: &str, events: Vec<Value>) -> Value {
    let arguments = json!({
        "broker": "kafka", "address": servers::kafka(), "topic": topic, "style": style,
        "events": events,
    });
    Peer::shared(python).call("publish", arguments).await
}

async fn aiokafka_sends(python: Python, topic: &str, bodies: &[Option<&[u8]>]) {
    let records: Vec<_> = bodies
        .iter()
        .map(|body| json!({ "key": hex(b"the key"), "body": body.map(hex) }))
        .collect();
    let arguments = json!({ "address": servers::kafka(), "topic": topic, "records": records });
    Peer::shared(python).call("send_kafka", arguments).await;
}

/// Waits for the dead letters of a group, and returns their bodies and reasons.
async fn dead_letters(topic: &str, group: &str, count: usize) -> Vec<(Option<Vec<u8>>, String)> {
    let dead = format!("{topic}.{group}.dead");
    until("the dead letters", async || read_raw(&dead).await.len() >= count).await;
    let letters = read_raw(&dead).await.into_iter().map(|(_, letter)| {
        assert_eq!(letter.key.as_deref(), Some(&b"the key"[..]));
        let reason = letter.headers.into_iter().find(|(name, _)| name == "cqrs-dead-letter-reason");
        (letter.body, String::from_utf8(reason.unwrap().1.unwrap()).unwrap())
    });
    letters.collect()
}
