//! Interop tests of Protobuf events.

use std::collections::HashMap;

use cqrs_core::message::content_type;
use cqrs_core::{Message, MessageBrokerExt, NotificationEvent, Retry, Subscription};
use cqrs_protobuf::prost::Message as _;
use cqrs_protobuf::{ProtobufDeserializer, ProtobufEvent};
use integration_tests::amqp::Raw;
use integration_tests::interop::user_joined::{self, UserJoined, joined_events};
use integration_tests::interop::{CORRELATION, TestService, hex};
use integration_tests::peers::{Peer, Python};
use serde_json::json;

use super::Topology;

/// A message that is cut.
const CUT: [u8; 3] = [0x0a, 0x24, b'3'];

fn protobuf_headers(event: &NotificationEvent<UserJoined>) -> HashMap<String, String> {
    let id = event.event_id.hyphenated().to_string();
    [("event_name", "UserJoined"), ("message_id", &id)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

#[tokio::test]
async fn python_reads_our_protobuf() {
    for (python, topology, what, read) in [
        (Python::Cqrs5, Topology::python("protobuf"), "consume_amqp", None),
        (Python::FastStream, Topology::faststream("protobuf"), "faststream_amqp", Some("decoder")),
    ] {
        let mut arguments = json!({ "model": "protobuf" });
        if let Some(read) = read {
            arguments["read"] = read.into();
        }
        let mut inbox = topology.inbox(Peer::shared(python), what, arguments).await;
        let events = joined_events(&topology.topic);
        user_joined::publish_events(topology.broker(), &events).await;
        let cut =
            Message::new(&*topology.topic, &CUT[..]).with_content_type(content_type::PROTOBUF);
        topology.broker().publish(cut).await.unwrap();
        user_joined::publish_events(topology.broker(), &events[..1]).await;
        for event in &events {
            let received = inbox.next().await;
            user_joined::assert_same(&received, event);
            assert_eq!(received["content_type"], "application/x-protobuf");
            let headers: Vec<(String, String)> =
                serde_json::from_value(received["headers"].clone()).unwrap();
            let mut expected = protobuf_headers(event);
            expected.insert("correlation_id".into(), CORRELATION.into());
            assert_eq!(headers.into_iter().collect::<HashMap<_, _>>(), expected);
        }
        let error = inbox.next().await;
        assert_eq!(
            (&error["is"], &error["data"]),
            (&json!("DeserializeProtobufError"), &json!(hex(&CUT)))
        );
        user_joined::assert_same(&inbox.next().await, &events[0]);
        inbox.stop().await;
        topology.clean().await;
    }
}

#[tokio::test]
async fn we_read_python_cqrs_5_protobuf() {
    let topology = Topology::python("protobuf");
    let subscription = Subscription::to(&*topology.topic).group("ours").retry(Retry::none());
    let subscription =
        subscription.decode::<UserJoined>(ProtobufDeserializer::new()).option(topology.options());
    let mut service = TestService::open(topology.broker(), subscription).await;
    let events = joined_events(&topology.topic);
    let specs: Vec<_> = events.iter().map(user_joined::spec).collect();
    topology.publish(Python::Cqrs5, "protobuf", specs.clone()).await;
    for event in &events {
        let (received, message) = service.next().await;
        assert_eq!(received, *event);
        let headers =
            message.headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(headers.collect::<HashMap<_, _>>(), protobuf_headers(event));
        assert_eq!(message.content_type.as_deref(), Some("application/x-protobuf"));
        let ours = UserJoined::to_message(event).unwrap().encode_to_vec();
        assert_eq!(message.bytes(), ours, "byte for byte");
    }
    topology.send(&[&CUT]).await;
    topology.publish(Python::Cqrs5, "protobuf", specs[..1].to_vec()).await;
    assert_eq!(service.next().await.0, events[0]);
    service.stop().await;
    let raw = Raw::connect().await;
    let dead = raw.drain(&format!("{}.dead", topology.topic)).await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].data, CUT);
    raw.clean(&[], &[]).await;
    topology.clean().await;
}
