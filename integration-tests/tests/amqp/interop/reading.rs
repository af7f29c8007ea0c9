//! Interop tests of the Python packages' events, read by us.

use integration_tests::interop::{CORRELATION, described, events, specs};
use integration_tests::peers::Python;

use super::Topology;

/// Lets python-cqrs publish events of ours and some of its own, and reads them.
async fn we_read(python: Python, style: &str) {
    let topology = Topology::python("read");
    let mut service = topology.service().await;
    let given = events(&topology.topic);
    let sent = topology.publish(python, style, specs(&given)).await;
    let sent: Vec<_> = sent.as_array().unwrap().iter().map(described).collect();
    assert_eq!(sent[..given.len()], given, "the peer published what it was asked to");
    let is_camel = style.starts_with("dataclass");
    for expected in sent {
        let (event, received) = service.next().await;
        assert_eq!(event, expected);
        let body = String::from_utf8(received.bytes().to_vec()).unwrap();
        let id = if is_camel { r#""eventId":"# } else { r#""event_id":"# };
        let shown = match is_camel {
            true => event.event_id.simple().to_string(),
            false => event.event_id.hyphenated().to_string(),
        };
        assert!(body.contains(&format!("{id}\"{shown}\"")), "{body}");
        // python-cqrs names neither type nor content type, and its message id is not the event's.
        assert_eq!((received.name.as_deref(), received.content_type.as_deref()), (None, None));
        assert_ne!(received.id.as_deref(), Some(&*shown));
    }
    service.stop().await;
    topology.clean().await;
}

#[tokio::test]
async fn we_read_python_cqrs_4_in_snake_form() {
    we_read(Python::Cqrs4, "pydantic").await;
}

#[tokio::test]
async fn we_read_python_cqrs_4_dataclasses_in_camel_form() {
    we_read(Python::Cqrs4, "dataclass").await;
}

#[tokio::test]
async fn we_read_python_cqrs_5_dataclasses_in_camel_form() {
    we_read(Python::Cqrs5, "dataclass").await;
}

#[tokio::test]
async fn we_read_python_cqrs_5_dicts_in_camel_form() {
    we_read(Python::Cqrs5, "dataclass-dict").await;
}

#[tokio::test]
async fn we_read_python_cqrs_5_models_in_snake_form() {
    we_read(Python::Cqrs5, "pydantic").await;
}

#[tokio::test]
async fn we_read_what_faststream_publishes() {
    let topology = Topology::faststream("faststream");
    let mut service = topology.service().await;
    let events = events(&topology.topic);
    for as_model in [false, true] {
        topology.stream(&events, as_model).await;
        for expected in &events {
            let (event, received) = service.next().await;
            assert_eq!(event, *expected);
            assert_eq!(received.headers.correlation_id(), Some(CORRELATION));
            assert_eq!(received.content_type.as_deref(), Some("application/json"));
        }
    }
    service.stop().await;
    topology.clean().await;
}
