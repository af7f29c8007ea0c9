//! Interop tests with the serializers of confluent-kafka-python, without a Kafka between: bodies and headers
//! are passed to the peer and back.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::codec::{Deserializer, JsonDeserializer};
use cqrs_core::consume::Incoming;
use cqrs_core::{MemoryBroker, Message, Notification, NotificationEvent};
use cqrs_protobuf::{ProtobufDeserializer, ProtobufEvent};
use cqrs_schema_registry::{
    EventSchema, Frame, Framed, FramedBroker, Framing, MessagePath, Registration, RegistryConfig,
    RegistryDecoder, Schema, SchemaId, SchemaRegistry, SchemaSource, SchemaType,
};
use integration_tests::interop::user_joined::{self, UserJoined, joined_events};
use integration_tests::interop::{UserCreated, events, hex, publish_events};
use integration_tests::kafka::fresh_topic;
use integration_tests::peers::{Peer, Python};
use integration_tests::servers;
use serde_json::{Value, json};
use uuid::Uuid;

/// Apicurio has no GUIDs: where they matter, confluent-kafka has a registry in its memory.
const MOCK: &str = "mock://interop";

const JSON: &str = r#"{"$schema":"http://json-schema.org/draft-07/schema#","title":"UserCreated",
    "type":"object","required":["payload","event_id"],"properties":{
    "payload":{"type":"object","required":["user_id"]},"event_id":{"type":"string"}}}"#;

/// Where the notification stands in the files of `peers/registry.py`.
const LAYOUTS: [(&str, &[u32]); 3] = [("first", &[0]), ("second", &[1]), ("nested", &[0, 1])];

/// The file of the layout `second` as we register it.
const PROTO: &str = "syntax = \"proto3\";\npackage meetings.second;\n\n\
    message UserJoinedPayload {\n  string user_id = 1;\n  string meeting_id = 2;\n}\n\n\
    message UserJoinedNotification {\n  string event_id = 1;\n  string event_timestamp = 2;\n  \
    string event_name = 3;\n  UserJoinedPayload payload = 6;\n}\n";

fn registry() -> SchemaRegistry {
    let mut config = RegistryConfig::new([servers::registry()]);
    // A registry that was just started takes long for its first requests.
    config.timeout = Duration::from_secs(30);
    SchemaRegistry::new(config).unwrap()
}

fn confluent() -> &'static Peer {
    Peer::shared(Python::Confluent)
}

fn path(indexes: &[u32]) -> MessagePath {
    MessagePath::new(indexes).unwrap()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let digits = hex.as_str().unwrap().as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

/// The peer's message, as received from `topic`.
fn incoming(topic: &str, written: &Value) -> Incoming {
    let mut message = Incoming::new(topic, bytes(&written["body"]));
    for header in written["headers"].as_array().unwrap() {
        let name = header[0].as_str().unwrap();
        message.headers.insert_bytes(name, bytes(&header[1])).unwrap();
    }
    message
}

/// Our message in the form of a request to the peer.
fn handed(message: &Message) -> Value {
    let header = message.headers.get_bytes(Frame::HEADER);
    let headers: Vec<_> = header.map(|value| (Frame::HEADER, hex(value))).into_iter().collect();
    json!({ "topic": *message.topic, "body": hex(&message.body), "headers": headers })
}

/// The fields of an event that both its envelope and its Protobuf message have.
#[track_caller]
fn assert_same<P: PartialEq + std::fmt::Debug>(
    read: &NotificationEvent<P>,
    event: &NotificationEvent<P>,
) {
    assert_eq!(read.event_id, event.event_id);
    assert_eq!(read.event_timestamp, event.event_timestamp);
    assert_eq!(read.event_name, event.event_name);
    assert_eq!(read.payload, event.payload);
}

fn read<P: Notification>(by: &impl Deserializer<P>, message: &Incoming) -> NotificationEvent<P> {
    by.deserialize(message).unwrap()
}

/// The messages of JSON events under `framing`.
async fn published(framing: Framing, events: &[NotificationEvent<UserCreated>]) -> Vec<Message> {
    let broker = Arc::new(FramedBroker::new(MemoryBroker::new(), framing));
    publish_events(Arc::clone(&broker), events).await;
    broker.inner().messages(&events[0].topic)
}

/// The messages of Protobuf events under `framing`.
async fn joined(framing: Framing, events: &[NotificationEvent<UserJoined>]) -> Vec<Message> {
    let broker = Arc::new(FramedBroker::new(MemoryBroker::new(), framing));
    user_joined::publish_events(Arc::clone(&broker), events).await;
    broker.inner().messages(&events[0].topic)
}

/// The message of `event` in the peer's form, without empty fields.
fn message(event: &NotificationEvent<UserJoined>) -> Value {
    let message = UserJoined::to_message(event).unwrap().into_owned();
    let filled = |fields: [(&str, String); 2]| {
        let filled = fields.into_iter().filter(|(_, value)| !value.is_empty());
        filled.map(|(name, value)| (name.to_owned(), json!(value))).collect::<Value>()
    };
    let payload = message.payload.unwrap();
    json!({
        "event_id": message.event_id,
        "event_timestamp": message.event_timestamp,
        "event_name": message.event_name,
        "payload": filled([("user_id", payload.user_id), ("meeting_id", payload.meeting_id)]),
    })
}

// ---- JSON Schema

#[tokio::test]
async fn we_read_json_of_confluent() {
    let (registry, topic) = (registry(), fresh_topic("confluent-json"));
    let events = events(&topic);
    let bare = published(Framing::new().event("UserCreated", Frame::new(0)), &events).await;
    let decoder = RegistryDecoder::json(&registry).subjects([format!("{topic}-value")]);
    for (event, bare) in events.iter().zip(bare) {
        let value: Value = serde_json::from_slice(&bare.body[5..]).unwrap();
        let arguments = json!({
            "registry": servers::registry(), "topic": topic, "value": value, "schema": JSON,
        });
        let written = confluent().call("confluent_write", arguments).await;
        let message = incoming(&topic, &written);
        let (frame, _) = Frame::split(SchemaType::Json, &message.bytes()).unwrap();
        assert_eq!(frame.id(), SchemaId::Number(written["id"].as_u64().unwrap() as u32));
        assert_same(&read(&Framed::json(JsonDeserializer), &message), event);
        let decoded = decoder.decode(message).await.unwrap().unwrap();
        assert_same(&read(&JsonDeserializer, &decoded), event);
    }
}

#[tokio::test]
async fn confluent_reads_our_json() {
    let (registry, topic) = (registry(), fresh_topic("confluent-reads-json"));
    let events = events(&topic);
    for registration in [Registration::Auto, Registration::LookUp] {
        let framing = Framing::builder(&registry)
            .registration(registration)
            .event(EventSchema::new("UserCreated", &*topic, Schema::json(JSON)));
        let framing = framing.build().await.unwrap();
        for (event, message) in events.iter().zip(published(framing, &events).await) {
            let mut arguments = handed(&message);
            arguments["registry"] = servers::registry().into();
            let read = confluent().call("confluent_read", arguments).await;
            assert_eq!(read["event_id"], json!(event.event_id));
            assert_eq!(read["payload"], json!(event.payload));
        }
    }
}

#[tokio::test]
async fn both_give_a_json_schema_the_same_id() {
    let (registry, topic) = (registry(), fresh_topic("confluent-same-id"));
    // A schema of its own: the registry has had no such one.
    let schema = Schema::json(JSON.replace("UserCreated", &topic));
    let id = registry.register(&format!("{topic}-value"), &schema).await.unwrap().id;
    for auto in [true, false] {
        let arguments = json!({
            "registry": servers::registry(), "topic": topic, "schema": &*schema.text,
            "value": { "payload": { "user_id": "1" }, "event_id": "1" }, "auto": auto,
        });
        let written = confluent().call("confluent_write", arguments).await;
        assert_eq!(bytes(&written["body"])[..5], Frame::new(id).to_bytes());
    }
}

// ---- Protobuf

#[tokio::test]
async fn we_read_protobuf_of_confluent() {
    let registry = registry();
    for (layout, indexes) in LAYOUTS {
        let topic = fresh_topic("confluent-protobuf");
        let framed = Framed::protobuf(ProtobufDeserializer::new()).path(path(indexes));
        let decoder = RegistryDecoder::protobuf(&registry).path(path(indexes));
        let decoder = decoder.subjects([format!("{topic}-value")]);
        for event in joined_events(&topic) {
            let arguments = json!({
                "registry": servers::registry(), "topic": topic, "value": message(&event),
                "layout": layout,
            });
            let written = confluent().call("confluent_write", arguments).await;
            let message = incoming(&topic, &written);
            assert_same(&read(&framed, &message), &event);
            let decoded = decoder.decode(message).await.unwrap().unwrap();
            assert_same(&read(&ProtobufDeserializer::new(), &decoded), &event);
        }
    }
}

#[tokio::test]
async fn confluent_reads_our_protobuf_under_its_own_schema() {
    let registry = registry();
    for (layout, indexes) in LAYOUTS {
        let topic = fresh_topic("confluent-reads-protobuf");
        let events = joined_events(&topic);
        // Confluent's serializer registers the file as Base64; so its deserializer wants it.
        let arguments = json!({
            "registry": servers::registry(), "topic": topic, "value": message(&events[0]),
            "layout": layout,
        });
        let written = confluent().call("confluent_write", arguments).await;
        let latest = SchemaSource::Latest(SchemaType::Protobuf);
        let schema = EventSchema::new("UserJoined", &*topic, latest).path(path(indexes));
        let framing = Framing::builder(&registry).event(schema).build().await.unwrap();
        let ours = joined(framing, &events).await;
        assert_eq!(ours[0].body, bytes(&written["body"]), "{layout}");
        for (event, published) in events.iter().zip(ours) {
            let mut arguments = handed(&published);
            arguments["layout"] = layout.into();
            arguments["registry"] = servers::registry().into();
            assert_eq!(confluent().call("confluent_read", arguments).await, message(event));
        }
    }
}

#[tokio::test]
async fn confluent_reads_our_protobuf_under_our_schema() {
    let (registry, topic) = (registry(), fresh_topic("confluent-reads-proto-file"));
    let events = joined_events(&topic);
    for registration in [Registration::Auto, Registration::LookUp] {
        let schema = EventSchema::new("UserJoined", &*topic, Schema::protobuf(PROTO));
        let framing =
            Framing::builder(&registry).registration(registration).event(schema.path(path(&[1])));
        for (event, published) in
            events.iter().zip(joined(framing.build().await.unwrap(), &events).await)
        {
            let mut arguments = handed(&published);
            arguments["layout"] = "second".into();
            let read = confluent().call("confluent_read", arguments.clone()).await;
            assert_eq!(read, message(event));
            // So it reads without a registry. One that is asked must hand the file out as Base64
            // (`format=serialized`), which Apicurio 2 does not.
            arguments["registry"] = servers::registry().into();
            let error = confluent().try_call("confluent_read", arguments).await.unwrap_err();
            assert!(error.contains("padding"), "{error}");
        }
    }
}

// ---- the header form

#[tokio::test]
async fn the_header_form_goes_both_ways_for_json() {
    let topic = fresh_topic("confluent-header-json");
    let events = events(&topic);
    let bare = published(Framing::new().event("UserCreated", Frame::new(0)), &events).await;
    for (event, bare) in events.iter().zip(bare) {
        let value: Value = serde_json::from_slice(&bare.body[5..]).unwrap();
        let arguments = json!({
            "registry": MOCK, "topic": topic, "value": value, "schema": JSON, "header": true,
        });
        let written = confluent().call("confluent_write", arguments).await;
        let message = incoming(&topic, &written);
        assert_same(&read(&Framed::json(JsonDeserializer), &message), event);

        let guid: Uuid = written["guid"].as_str().unwrap().parse().unwrap();
        let framing = Framing::new().event("UserCreated", Frame::new(guid));
        let ours = published(framing, std::slice::from_ref(event)).await.remove(0);
        assert_eq!(ours.headers.get_bytes(Frame::HEADER), message.headers.get_bytes(Frame::HEADER));
        let mut arguments = handed(&ours);
        arguments["registry"] = MOCK.into();
        let read = confluent().call("confluent_read", arguments).await;
        assert_eq!(read["event_id"], json!(event.event_id));
        assert_eq!(read["payload"], json!(event.payload));
    }
}

#[tokio::test]
async fn the_header_form_goes_both_ways_for_protobuf() {
    for (layout, indexes) in LAYOUTS {
        let topic = fresh_topic("confluent-header-protobuf");
        for event in joined_events(&topic) {
            let arguments = json!({
                "registry": MOCK, "topic": topic, "value": message(&event), "layout": layout,
                "header": true,
            });
            let written = confluent().call("confluent_write", arguments).await;
            let theirs = incoming(&topic, &written);
            let framed = Framed::protobuf(ProtobufDeserializer::new()).path(path(indexes));
            assert_same(&read(&framed, &theirs), &event);

            let guid: Uuid = written["guid"].as_str().unwrap().parse().unwrap();
            let framing =
                Framing::new().event("UserJoined", Frame::new(guid).with_path(path(indexes)));
            let ours = joined(framing, std::slice::from_ref(&event)).await.remove(0);
            assert_eq!(ours.body, theirs.bytes());
            let header = ours.headers.get_bytes(Frame::HEADER);
            assert_eq!(header, theirs.headers.get_bytes(Frame::HEADER));
            let mut arguments = handed(&ours);
            arguments["layout"] = layout.into();
            arguments["registry"] = MOCK.into();
            assert_eq!(confluent().call("confluent_read", arguments).await, message(&event));
        }
    }
}

// ---- the bytes

#[tokio::test]
async fn the_frames_are_the_same_bytes() {
    let guid = Uuid::from_u128(0x3fa8_5f64_5717_4562_b3fc_2c96_3f66_afa6);
    let mut ids: Vec<SchemaId> =
        [0, 1, 0xff, 0x0102_0304, 1 << 31, u32::MAX].map(SchemaId::from).to_vec();
    ids.extend([guid, Uuid::nil(), Uuid::max()].map(SchemaId::from));
    let largest = i32::MAX as u32;
    let mut paths: Vec<Vec<u32>> = vec![vec![0, 0], vec![63, 64], vec![8191, 8192, largest]];
    paths.extend([0, 1, 63, 64, 8191, 8192, largest].map(|index| vec![index]));
    paths.push((0..MessagePath::MAX_DEPTH as u32).collect());
    let paths: Vec<_> = paths.into_iter().map(Some).chain([None]).collect();
    for id in ids {
        for indexes in &paths {
            let (frame, kind, name) = match indexes {
                Some(indexes) => {
                    (Frame::new(id).with_path(path(indexes)), SchemaType::Protobuf, "PROTOBUF")
                }
                None => (Frame::new(id), SchemaType::Json, "JSON"),
            };
            let mut said = match id {
                SchemaId::Number(id) => json!({ "number": id, "guid": null }),
                SchemaId::Guid(guid) => json!({ "number": null, "guid": guid }),
            };
            said["path"] = json!(indexes);
            let mut arguments = said.clone();
            arguments["kind"] = name.into();
            // Their bytes are ours, and each reads the other's.
            let theirs = bytes(&confluent().call("confluent_frame", arguments).await);
            assert_eq!(theirs, frame.to_bytes(), "{frame:?}");
            assert_eq!(Frame::read(kind, &theirs), Ok((frame.clone(), theirs.len())));

            // Either kind of id is read in either topology.
            let ours = hex(&frame.to_bytes());
            said["body"] = "7b7d".into();
            let prefix = json!({ "kind": name, "body": format!("{ours}7b7d") });
            let header =
                json!({ "kind": name, "body": "7b7d", "headers": [[Frame::HEADER, ours]] });
            for arguments in [prefix, header] {
                assert_eq!(confluent().call("confluent_parse", arguments).await, said);
            }
        }
    }
}

/// The first message has two forms. Confluent's reader takes both, as ours does.
#[tokio::test]
async fn the_long_form_of_the_first_message_is_read_by_both() {
    for body in ["00000000070002", "0000000007020002"] {
        let arguments = json!({ "kind": "PROTOBUF", "body": body });
        let read = confluent().call("confluent_parse", arguments).await;
        assert_eq!((&read["path"], &read["body"]), (&json!([0]), &json!("02")));
        let body = bytes(&json!(body));
        let (frame, length) = Frame::read(SchemaType::Protobuf, &body).unwrap();
        assert_eq!((frame.path(), length), (Some(&MessagePath::FIRST), body.len() - 1));
    }
}
