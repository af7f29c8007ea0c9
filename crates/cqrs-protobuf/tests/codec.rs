//! Tests of bodies, frames and errors of the Protobuf serializer and deserializer.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use common::{Plain, UserJoined};
use cqrs_core::NotificationEvent;
use cqrs_core::codec::{DeserializeErrorKind as Kind, Deserializer, Serializer};
use cqrs_core::consume::Incoming;
use cqrs_protobuf::{ProtobufDeserializer, ProtobufEvent, ProtobufSerializer, json_or_protobuf};
use proptest::prelude::*;
use prost::Message as _;
use uuid::Uuid;

const fn shared<T: Send + Sync + std::fmt::Debug>() {}

/// Every public type can be logged and moved between threads.
const _: () = {
    shared::<ProtobufSerializer>();
    shared::<ProtobufDeserializer>();
    shared::<cqrs_protobuf::MappingError>();
};

const ID: &str = "3fa85f64-5717-4562-b3fc-2c963f66afa6";

/// The bytes that python-cqrs 5.3.0 with google.protobuf writes for [`joined`].
const OF_PYTHON: &[u8] = b"\x0a\x243fa85f64-5717-4562-b3fc-2c963f66afa6\
    \x12\x202024-01-02T03:04:05.678901+00:00\x1a\x0aUserJoined\x32\x08\x0a\x02u1\x12\x02m1";

fn joined() -> NotificationEvent<UserJoined> {
    NotificationEvent::new(UserJoined { user_id: "u1".into(), meeting_id: "m1".into() })
        .with_id(ID.parse().unwrap())
        .with_timestamp("2024-01-02T03:04:05.678901Z".parse().unwrap())
}

fn read<P: ProtobufEvent>(message: &Incoming) -> Result<NotificationEvent<P>, (Kind, String)> {
    let read = ProtobufDeserializer::new().deserialize(message);
    read.map_err(|error| {
        assert_eq!(error.bytes(), &message.bytes(), "the bytes as they came");
        (error.kind(), error.message().to_owned())
    })
}

#[test]
fn the_message_stands_alone_as_python_writes_it() {
    let encoded = ProtobufSerializer.serialize(&joined()).unwrap();
    assert_eq!(encoded.body, OF_PYTHON);
    assert_eq!(encoded.content_type, "application/x-protobuf");
    assert!(encoded.headers.is_empty(), "the brokers add what names the event");
}

#[test]
fn a_whole_event_is_read_from_its_message() {
    let mut message = Incoming::new("elsewhere", OF_PYTHON);
    message.id = Some(Uuid::nil().to_string().into());
    message.name = Some("of the frame".into());
    let event = read::<UserJoined>(&message).unwrap();
    assert_eq!(event, joined().with_topic("elsewhere"), "the message's own id and name count");
}

#[test]
fn payload_message_takes_id_and_time_from_frame() {
    let plain = Plain { id: "1".into(), amount: -7, ..Plain::default() };
    let mut message = Incoming::new("plain", plain.encode_to_vec());
    message.timestamp = Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123));
    message.id = Some("0b".into());
    message.headers.insert("message_id", ID.replace('-', "")).unwrap();
    let event = read::<Plain>(&message).unwrap();
    assert_eq!((&event.payload, &*event.event_name), (&plain, "Plain"));
    assert_eq!(event.event_id.to_string(), ID, "the header wins over the property");
    assert_eq!(event.event_timestamp.unix_micros(), 1_700_000_000_123_000);

    message.headers.remove("message_id");
    message.id = Some(ID.into());
    message.name = Some("Other".into());
    let event = read::<Plain>(&message).unwrap();
    assert_eq!((event.event_id.to_string().as_str(), &*event.event_name), (ID, "Other"));
    message.headers.insert("event_name", "Plain").unwrap();
    assert_eq!(read::<Plain>(&message).unwrap().event_name, "Plain");
}

#[test]
fn missing_frame_data_gets_defaults() {
    let event = read::<Plain>(&Incoming::new("plain", "")).unwrap();
    assert_eq!((event.payload, &*event.topic), (Plain::default(), "plain"));
    assert!(!event.event_id.is_nil() && event.event_timestamp.unix_micros() > 0);
}

#[test]
fn errors_say_why_and_show_no_values() {
    let of = |body: &[u8]| read::<UserJoined>(&Incoming::new("t", body.to_vec())).unwrap_err();
    let (kind, words) = of(&OF_PYTHON[..OF_PYTHON.len() - 1]);
    assert_eq!(kind, Kind::Syntax, "{words}");
    assert!(words.contains("UserJoinedNotification.payload"), "{words}");
    assert_eq!(of(b"{\"event_name\":\"secret\"}").0, Kind::Syntax);
    assert_eq!(of(b""), (Kind::Shape, "missing field `payload`".into()));
    let mut body = OF_PYTHON.to_vec();
    body[2..7].copy_from_slice(b"4111!");
    assert_eq!(of(&body), (Kind::Shape, "field `event_id` is no Uuid".into()));

    let secret = UserJoined { user_id: "unspeakable".into(), meeting_id: String::new() };
    let error = ProtobufSerializer.serialize(&NotificationEvent::new(secret)).unwrap_err();
    let shown = "UserJoined could not be serialized\ncaused by: the user cannot be said";
    assert_eq!(format!("{error:?}"), shown);
}

#[test]
fn a_tombstone_is_no_message_of_defaults() {
    let tombstone = Incoming::default();
    assert_eq!(read::<Plain>(&tombstone).unwrap_err().0, Kind::Empty);
}

#[test]
fn too_many_bytes_are_not_looked_at() {
    let message = Incoming::new("t", vec![0xff; 11]);
    let limited = ProtobufDeserializer::new().with_max_size(10);
    let error = Deserializer::<Plain>::deserialize(&limited, &message).unwrap_err();
    assert_eq!(
        (error.kind(), error.message()),
        (Kind::TooLarge, "11 bytes, at most 10 are decoded")
    );
    let message = Incoming::new("t", vec![0xff; 10]);
    let error = Deserializer::<Plain>::deserialize(&limited, &message).unwrap_err();
    assert_eq!(error.kind(), Kind::Syntax);
}

fn nested(depth: usize) -> Plain {
    (0..depth).fold(Plain::default(), |inner, _| Plain {
        inner: Some(Box::new(inner)),
        ..Plain::default()
    })
}

#[test]
fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
    let body = |depth| Incoming::new("t", nested(depth).encode_to_vec());
    assert!(read::<Plain>(&body(90)).is_ok());
    let (kind, words) = read::<Plain>(&body(150)).unwrap_err();
    assert_eq!(kind, Kind::Syntax);
    assert!(words.contains("recursion limit reached"), "{words}");
    // Groups, which the schema does not know.
    let (kind, _) = read::<Plain>(&Incoming::new("t", vec![0x7b; 1 << 20])).unwrap_err();
    assert_eq!(kind, Kind::Syntax);
}

#[test]
fn a_length_that_is_claimed_allocates_nothing() {
    // A string of 2 GiB, without its bytes.
    let (kind, _) =
        read::<Plain>(&Incoming::new("t", &b"\x0a\xff\xff\xff\xff\x07"[..])).unwrap_err();
    assert_eq!(kind, Kind::Syntax);
}

#[test]
fn json_and_protobuf_are_told_apart() {
    let either = json_or_protobuf::<UserJoined>();
    let json = serde_json::to_vec(&joined()).unwrap();
    let read = |body: &[u8], content_type: Option<&str>, named: bool| {
        let mut message = Incoming::new("users", Bytes::copy_from_slice(body));
        message.content_type = content_type.map(Into::into);
        message.name = named.then(|| "UserJoined".into());
        either.deserialize(&message).ok()
    };
    // RabbitMQ: the property decides, in any case and with parameters.
    for name in
        ["application/x-protobuf", "application/PROTOBUF; v=1", "application/vnd.google.protobuf"]
    {
        assert_eq!(read(OF_PYTHON, Some(name), false), Some(joined()), "{name}");
    }
    assert_eq!(read(&json, Some("application/json"), true), Some(joined()));
    assert_eq!(read(&json, None, false), Some(joined()), "python-cqrs on RabbitMQ");
    // Kafka: python-cqrs names the events of Protobuf only.
    assert_eq!(read(OF_PYTHON, None, true), Some(joined()));
    assert_eq!(read(OF_PYTHON, Some(""), true), Some(joined()), "bytes that FastStream sent");
    assert_eq!(read(&json, None, true), Some(joined()), "JSON whose frame names the event");
    assert_eq!(read(&json, Some("application/x-protobuf"), true), None, "what is said counts");
}

proptest! {
    #[test]
    fn written_event_is_read_back(
        id in ".*",
        amount in any::<i64>(),
        blob in any::<Vec<u8>>(),
        numbers in any::<Vec<u32>>(),
        depth in 0_usize..90,
    ) {
        let inner = Some(Box::new(nested(depth)));
        let plain = Plain { id, amount, blob, inner, numbers };
        let encoded = ProtobufSerializer.serialize(&NotificationEvent::new(plain.clone())).unwrap();
        prop_assert_eq!(read::<Plain>(&Incoming::new("plain", encoded.body)).unwrap().payload, plain);
    }

    #[test]
    fn truncated_bytes_are_error_or_shorter_message(at in 0..OF_PYTHON.len()) {
        let cut = read::<UserJoined>(&Incoming::new("users", &OF_PYTHON[..at]));
        prop_assert!(cut.is_err(), "the payload comes last");
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in any::<Vec<u8>>(), id in ".*", name in ".*") {
        let mut message = Incoming::new("t", body);
        message.id = Some(id.into());
        message.name = Some(name.into());
        let _ = read::<Plain>(&message);
        let _ = read::<UserJoined>(&message);
        let _ = json_or_protobuf::<Plain>().deserialize(&message);
    }
}
