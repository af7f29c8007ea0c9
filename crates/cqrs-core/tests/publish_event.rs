//! Publishing a typed event on a broker, without a mediator.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::broker::PublishEventError;
use cqrs_core::{
    MemoryBroker, MessageBroker, MessageBrokerExt, NotificationEvent, PublishErrorKind,
};
use cqrs_macros::Notification;
use serde::Serialize;
use uuid::Uuid;

#[derive(Serialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "UserCreated", topic = "user_events", key = "user_id")]
struct UserCreated {
    user_id: u64,
    score: f64,
}

const ADA: UserCreated = UserCreated { user_id: 7, score: 0.5 };

#[tokio::test]
async fn payload_gets_name_key_and_topic_of_its_type() {
    let broker = MemoryBroker::new();
    broker.publish_event(ADA).await.unwrap();

    let messages = broker.messages("user_events");
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].name, "UserCreated");
    assert_eq!(messages[0].key.as_deref(), Some(b"7".as_slice()));
    assert_eq!(messages[0].content_type.as_deref(), Some("application/json"));
    let body: serde_json::Value = serde_json::from_slice(&messages[0].body).unwrap();
    assert_eq!(body["payload"]["user_id"], 7);
    assert_eq!(body["event_id"], messages[0].id.to_string());
}

#[tokio::test]
async fn whole_event_keeps_its_own_id_and_topic() {
    let memory = MemoryBroker::new();
    let broker: Arc<dyn MessageBroker> = Arc::new(memory.clone());
    let id = Uuid::now_v7();
    broker
        .publish_event(NotificationEvent::new(ADA).with_id(id).with_topic("archive"))
        .await
        .unwrap();

    assert!(memory.messages("user_events").is_empty());
    assert_eq!(memory.messages("archive")[0].id, id);
}

#[tokio::test]
async fn event_without_wire_form_is_a_final_error() {
    let broker = MemoryBroker::new();
    let error = broker.publish_event(UserCreated { score: f64::NAN, ..ADA }).await.unwrap_err();
    assert!(matches!(error, PublishEventError::Serialize(_)), "{error:?}");
    assert!(!error.is_retryable());
    assert!(broker.messages("user_events").is_empty());
}

#[tokio::test]
async fn unconfirmed_event_returns_its_message() {
    let broker = MemoryBroker::new();
    let _ = broker.shutdown(Duration::ZERO).await;
    match broker.publish_event(ADA).await.unwrap_err() {
        PublishEventError::Publish(error) => {
            assert_eq!(error.kind(), PublishErrorKind::Closed);
            assert_eq!(error.into_message().name, "UserCreated");
        }
        other => panic!("expected the broker's error, got {other:?}"),
    }
}
