//! Interop tests of Protobuf events.

use std::collections::HashMap;

use cqrs_core::message::content_type;
use cqrs_core::{Message, MessageBrokerExt, NotificationEvent, Subscription};
use cqrs_protobuf::prost::Message as _;
use cqrs_protobuf::{ProtobufDeserializer, ProtobufEvent, json_or_protobuf};
use integration_tests::interop::user_joined::{self, UserJoined, joined_events};
use integration_tests::interop::{CORRELATION, TestService};
use integration_tests::kafka::{self};
use integration_tests::peers::{Peer, Python};
use integration_tests::servers;
use serde_json::json;

use super::{aiokafka_sends, broker, dead_letters, publish, topic};

/// The frame of a Protobuf event. Python passes a header's value to a test as text.
fn protobuf_headers(event: &NotificationEvent<UserJoined>) -> HashMap<String, String> {
    let id = event.event_id.hyphenated().to_string();
    [("event_name", "UserJoined"), ("message_id", &id)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn meetings_of(topic: &str) -> Subscription {
    Subscription::to(topic)
        .group(format!("g-{topic}"))
        .decode::<UserJoined>(ProtobufDeserializer::new())
}

#[tokio::test]
async fn python_reads_our_protobuf() {
    let topic = topic("protobuf").await;
    let events = joined_events(&topic);
    user_joined::publish_events(broker(), &events).await;
    let truncated = Message::new(&*topic, &[0x0a, 0x24, b'3'][..]).with_name("UserJoined");
    let truncated = truncated.with_content_type(content_type::PROTOBUF);
    broker().publish(truncated).await.unwrap();
    user_joined::publish_events(broker(), &events[..1]).await;
    let read = json!({ "model": "protobuf", "address": servers::kafka(), "topic": topic });
    let stream = json!({
        "model": "protobuf", "address": servers::kafka(), "topic": topic,
        "group": format!("stream-{topic}"), "read": "value_deserializer",
    });
    for (python, what, arguments) in
        [(Python::Cqrs5, "consume_kafka", read), (Python::FastStream, "faststream_kafka", stream)]
    {
        let mut inbox = Peer::shared(python).subscribe(what, arguments).await;
        for event in &events {
            let received = inbox.next().await;
            user_joined::assert_same(&received, event);
            let headers: Vec<(String, String)> =
                serde_json::from_value(received["headers"].clone()).unwrap();
            let mut expected = protobuf_headers(event);
            expected.insert("correlation_id".into(), CORRELATION.into());
            assert_eq!(headers.into_iter().collect::<HashMap<_, _>>(), expected, "no content type");
        }
        let error = inbox.next().await;
        assert_eq!(error["is"], "DeserializeProtobufError");
        assert_eq!(error["data"], "0a2433");
        user_joined::assert_same(&inbox.next().await, &events[0]);
        inbox.stop().await;
    }
    kafka::delete_topics(&topic).await;
}

#[tokio::test]
async fn we_read_python_cqrs_5_protobuf() {
    let topic = topic("protobuf").await;
    let mut service = TestService::open(broker(), meetings_of(&topic)).await;
    let events = joined_events(&topic);
    let specs: Vec<_> = events.iter().map(user_joined::spec).collect();
    publish(Python::Cqrs5, &topic, "protobuf", specs.clone()).await;
    for event in &events {
        let (received, message) = service.next().await;
        assert_eq!(received, *event);
        let headers =
            message.headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(headers.collect::<HashMap<_, _>>(), protobuf_headers(event));
        assert_eq!(message.content_type, None);
        let ours = UserJoined::to_message(event).unwrap().encode_to_vec();
        assert_eq!(message.bytes(), ours, "byte for byte");
    }
    aiokafka_sends(Python::Cqrs5, &topic, &[Some(&[0x0a, 0x24, b'3'])]).await;
    publish(Python::Cqrs5, &topic, "protobuf", specs[..1].to_vec()).await;
    assert_eq!(service.next().await.0, events[0]);
    let dead = dead_letters(&topic, &format!("g-{topic}"), 1).await;
    assert_eq!(dead, [(Some(vec![0x0a, 0x24, b'3']), "decode".to_owned())]);
    service.stop().await;
    kafka::delete_topics(&topic).await;
}

#[tokio::test]
async fn we_read_json_and_protobuf_from_one_topic() {
    let topic = topic("either").await;
    let either = Subscription::to(&*topic).group(format!("g-{topic}"));
    let mut service =
        TestService::open(broker(), either.decode(json_or_protobuf::<UserJoined>())).await;
    let events = joined_events(&topic);
    publish(Python::Cqrs5, &topic, "protobuf", vec![user_joined::spec(&events[0])]).await;
    aiokafka_sends(Python::Cqrs5, &topic, &[Some(&serde_json::to_vec(&events[1]).unwrap())]).await;
    publish(Python::Cqrs5, &topic, "protobuf", vec![user_joined::spec(&events[2])]).await;
    assert_eq!(service.take(3).await, events);
    service.stop().await;
    kafka::delete_topics(&topic).await;
}
