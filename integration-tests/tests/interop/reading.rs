//! Interop tests of the Python packages' events, read by us.

use integration_tests::interop::{CORRELATION, described, events, specs};
use integration_tests::peers::Python;

use super::TestTopic;

on_both_brokers![we_read_each_form_of_python_cqrs, we_read_what_faststream_publishes];

/// python-cqrs publishes events of ours and some of its own.
async fn we_read_each_form_of_python_cqrs<T: TestTopic>() {
    // The names of the timestamp and of the id, the zone, and the name of the payload's key.
    let snake = ("event_timestamp", "event_id", "+00:00", "user_id");
    let camel = ("eventTimestamp", "eventId", "Z", "userId");
    // The keys of a dict stay.
    let dicts = ("eventTimestamp", "eventId", "Z", "user_id");
    for (python, style, (timestamp, id, zone, key)) in [
        (Python::Cqrs4, "pydantic", snake),
        (Python::Cqrs4, "dataclass", camel),
        (Python::Cqrs5, "pydantic", snake),
        (Python::Cqrs5, "dataclass", camel),
        (Python::Cqrs5, "dataclass-dict", dicts),
    ] {
        let topic = T::like(python).await;
        let mut service = topic.service().await;
        let given = events(topic.name());
        let sent = topic.publish(python, style, specs(&given)).await;
        let sent: Vec<_> = sent.as_array().unwrap().iter().map(described).collect();
        assert_eq!(sent[..given.len()], given, "the peer published what it was asked to");
        let mut bodies = Vec::new();
        for expected in sent {
            let (event, received) = service.next().await;
            assert_eq!(event, expected, "{python:?} {style}");
            let body = String::from_utf8(received.bytes().to_vec()).unwrap();
            let shown = match id {
                "event_id" => event.event_id.hyphenated().to_string(),
                _ => event.event_id.simple().to_string(),
            };
            assert!(body.contains(&format!(r#""{id}":"{shown}""#)), "{python:?} {style}: {body}");
            // python-cqrs names neither type nor content type, and its message id is not the event's.
            assert_eq!((received.name.as_deref(), received.content_type.as_deref()), (None, None));
            assert_ne!(received.id.as_deref(), Some(&*shown));
            bodies.push(body);
        }
        for (body, time) in [
            (0, format!("2024-01-02T03:04:05.678901{zone}")),
            (4, "2024-01-02T03:04:05.678901".into()),
            (5, "2024-01-02T03:04:05".into()),
        ] {
            let written = format!(r#""{timestamp}":"{time}""#);
            assert!(bodies[body].contains(&written), "no {written} in {bodies:?}");
        }
        assert!(bodies[0].contains(&format!(r#""{key}":"1""#)), "{python:?} {style}: {bodies:?}");
        service.stop().await;
        topic.clean().await;
    }
}

async fn we_read_what_faststream_publishes<T: TestTopic>() {
    let topic = T::like(Python::FastStream).await;
    let mut service = topic.service().await;
    let events = events(topic.name());
    for model in [None, Some("event")] {
        topic.stream(&events, model).await;
        for expected in &events {
            let (event, received) = service.next().await;
            assert_eq!(event, *expected);
            assert_eq!(received.headers.correlation_id(), Some(CORRELATION));
            assert_eq!(received.content_type.as_deref(), Some("application/json"));
            assert_eq!(received.key.as_deref(), T::KEY.map(str::as_bytes));
        }
    }
    service.stop().await;
    topic.clean().await;
}
