//! Interop tests of the Python packages' events, read by us.

use integration_tests::interop::{CORRELATION, TestService, UserCreated, described, events, specs};
use integration_tests::kafka::{self, fresh_topic, read_all};
use integration_tests::peers::{Peer, Python};
use integration_tests::servers;
use serde_json::{Value, json};

use super::{broker, publish, subscription, topic};

/// Lets python-cqrs publish events of ours and some of its own, and reads them. Returns what stands in
/// the topic.
async fn we_read(python: Python, style: &str) -> Vec<String> {
    let (topic, group) = (topic("read").await, fresh_topic("g"));
    let mut service = TestService::open(broker(), subscription(&topic, &group)).await;
    let given = events(&topic);
    let sent = publish(python, &topic, style, specs(&given)).await;
    let sent: Vec<_> = sent.as_array().unwrap().iter().map(described).collect();
    assert_eq!(sent[..given.len()], given, "the peer published what it was asked to");
    assert_eq!(service.take(sent.len()).await, sent);
    service.stop().await;
    let written = read_all(&topic).await;
    kafka::delete_topics(&topic).await;
    written.into_iter().map(|record| String::from_utf8(record.body.unwrap()).unwrap()).collect()
}

fn snake(bodies: &[String]) {
    assert!(
        bodies[0].contains(r#""event_timestamp":"2024-01-02T03:04:05.678901+00:00""#),
        "{bodies:?}"
    );
    assert!(bodies[4].contains(r#""event_timestamp":"2024-01-02T03:04:05.678901""#), "{bodies:?}");
    assert!(bodies[5].contains(r#""event_timestamp":"2024-01-02T03:04:05""#), "{bodies:?}");
}

fn camel(bodies: &[String]) {
    assert!(bodies[0].contains(r#""eventTimestamp":"2024-01-02T03:04:05.678901Z""#), "{bodies:?}");
    assert!(bodies[4].contains(r#""eventTimestamp":"2024-01-02T03:04:05.678901""#), "{bodies:?}");
    for body in bodies {
        let body: Value = serde_json::from_str(body).unwrap();
        let id = body["eventId"].as_str().unwrap();
        assert!(id.len() == 32 && !id.contains('-'), "{id}");
    }
}

#[tokio::test]
async fn we_read_python_cqrs_4_in_snake_form() {
    snake(&we_read(Python::Cqrs4, "pydantic").await);
}

#[tokio::test]
async fn we_read_python_cqrs_4_dataclasses_in_camel_form() {
    let bodies = we_read(Python::Cqrs4, "dataclass").await;
    camel(&bodies);
    assert!(bodies[0].contains(r#""userId":"1""#), "{bodies:?}");
}

#[tokio::test]
async fn we_read_python_cqrs_5_dataclasses_in_camel_form() {
    let bodies = we_read(Python::Cqrs5, "dataclass").await;
    camel(&bodies);
    assert!(bodies[0].contains(r#""userId":"1""#), "{bodies:?}");
}

#[tokio::test]
async fn we_read_python_cqrs_5_dicts_in_camel_form() {
    let bodies = we_read(Python::Cqrs5, "dataclass-dict").await;
    camel(&bodies);
    assert!(bodies[0].contains(r#""user_id":"1""#), "the keys of a dict stay: {bodies:?}");
}

#[tokio::test]
async fn we_read_python_cqrs_5_models_in_snake_form() {
    snake(&we_read(Python::Cqrs5, "pydantic").await);
}

#[tokio::test]
async fn we_read_what_faststream_publishes() {
    let (topic, group) = (topic("faststream").await, fresh_topic("g"));
    let mut service =
        TestService::<UserCreated>::open(broker(), subscription(&topic, &group)).await;
    let events = events(&topic);
    for as_model in [false, true] {
        let arguments = json!({
            "broker": "kafka", "address": servers::kafka(), "topic": topic, "bodies": events,
            "as_model": as_model, "correlation_id": CORRELATION, "key": "the key",
        });
        Peer::shared(Python::FastStream).call("faststream_publish", arguments).await;
        for expected in &events {
            let (event, received) = service.next().await;
            assert_eq!(event, *expected);
            assert_eq!(received.headers.correlation_id(), Some(CORRELATION));
            assert_eq!(received.content_type.as_deref(), Some("application/json"));
            assert_eq!(received.key.as_deref(), Some(&b"the key"[..]));
        }
    }
    service.stop().await;
    kafka::delete_topics(&topic).await;
}
