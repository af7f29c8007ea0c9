//! Interop tests of Protobuf events.

use std::collections::HashMap;

use cqrs_core::message::content_type;
use cqrs_core::{Message, MessageBrokerExt, NotificationEvent};
use cqrs_protobuf::prost::Message as _;
use cqrs_protobuf::{ProtobufDeserializer, ProtobufEvent, json_or_protobuf};
use integration_tests::interop::user_joined::{self, UserJoined, joined_events};
use integration_tests::interop::{CORRELATION, TestService, hex};
use integration_tests::peers::Python;
use serde_json::json;

use super::TestTopic;

on_both_brokers![
    python_reads_our_protobuf,
    we_read_python_cqrs_5_protobuf,
    we_read_json_and_protobuf_from_one_topic,
];

/// A message that is cut.
const CUT: &[u8] = &[0x0a, 0x24, b'3'];

/// The frame of a Protobuf event. Python passes a header's value to a test as text.
fn protobuf_headers(event: &NotificationEvent<UserJoined>) -> HashMap<String, String> {
    let id = event.event_id.hyphenated().to_string();
    [("event_name", "UserJoined"), ("message_id", &id)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

async fn python_reads_our_protobuf<T: TestTopic>() {
    for python in [Python::Cqrs5, Python::FastStream] {
        let topic = T::like(python).await;
        let mut inbox = topic.inbox(python, Some("protobuf"), Some(T::READS[0])).await;
        let events = joined_events(topic.name());
        user_joined::publish_events(topic.broker(), &events).await;
        let cut = Message::new(topic.name(), CUT).with_name("UserJoined");
        topic.broker().publish(cut.with_content_type(content_type::PROTOBUF)).await.unwrap();
        user_joined::publish_events(topic.broker(), &events[..1]).await;
        for event in &events {
            let received = inbox.next().await;
            user_joined::assert_same(&received, event);
            assert_eq!(received["content_type"], json!(T::PROTOBUF));
            let headers: Vec<(String, String)> =
                serde_json::from_value(received["headers"].clone()).unwrap();
            let mut expected = protobuf_headers(event);
            expected.insert("correlation_id".into(), CORRELATION.into());
            assert_eq!(headers.into_iter().collect::<HashMap<_, _>>(), expected);
        }
        let error = inbox.next().await;
        assert_eq!(error["is"], "DeserializeProtobufError");
        assert_eq!(error["data"], hex(CUT));
        user_joined::assert_same(&inbox.next().await, &events[0]);
        inbox.stop().await;
        topic.clean().await;
    }
}

async fn we_read_python_cqrs_5_protobuf<T: TestTopic>() {
    let topic = T::like(Python::Cqrs5).await;
    let subscription = topic.subscription().decode::<UserJoined>(ProtobufDeserializer::new());
    let mut service = TestService::open(topic.broker(), subscription).await;
    let events = joined_events(topic.name());
    let specs: Vec<_> = events.iter().map(user_joined::spec).collect();
    topic.publish(Python::Cqrs5, "protobuf", specs.clone()).await;
    for event in &events {
        let (received, message) = service.next().await;
        assert_eq!(received, *event);
        let headers =
            message.headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(headers.collect::<HashMap<_, _>>(), protobuf_headers(event));
        assert_eq!(message.content_type.as_deref(), T::PROTOBUF);
        let ours = UserJoined::to_message(event).unwrap().encode_to_vec();
        assert_eq!(message.bytes(), ours, "byte for byte");
    }
    topic.send(&[Some(CUT)]).await;
    topic.publish(Python::Cqrs5, "protobuf", specs[..1].to_vec()).await;
    assert_eq!(service.next().await.0, events[0]);
    service.stop().await;
    assert_eq!(topic.dead_letters(1).await, [(Some(CUT.to_vec()), "decode".to_owned())]);
    topic.clean().await;
}

async fn we_read_json_and_protobuf_from_one_topic<T: TestTopic>() {
    let topic = T::like(Python::Cqrs5).await;
    let either = topic.subscription().decode(json_or_protobuf::<UserJoined>());
    let mut service = TestService::open(topic.broker(), either).await;
    let events = joined_events(topic.name());
    topic.publish(Python::Cqrs5, "protobuf", vec![user_joined::spec(&events[0])]).await;
    topic.send(&[Some(&serde_json::to_vec(&events[1]).unwrap())]).await;
    topic.publish(Python::Cqrs5, "protobuf", vec![user_joined::spec(&events[2])]).await;
    assert_eq!(service.take(3).await, events);
    service.stop().await;
    topic.clean().await;
}
