//! Fuzzing of the Protobuf codec.

use std::borrow::Cow;

use bytes::Bytes;
use cqrs_core::NotificationEvent;
use cqrs_core::codec::{DeserializeErrorKind as Kind, Deserializer, Serializer};
use cqrs_core::consume::Incoming;
use cqrs_macros::Notification;
use cqrs_protobuf::{MappingError, ProtobufDeserializer, ProtobufEvent, ProtobufSerializer};

/// One of each kind of field. Also the payload that is its own message.
#[derive(Clone, PartialEq, prost::Message, Notification)]
#[cqrs(crate = "::cqrs_core", topic = "t", serializer = ProtobufSerializer)]
struct Plain {
    #[prost(string, tag = "1")]
    event_id: String,
    #[prost(string, tag = "2")]
    event_timestamp: String,
    #[prost(string, tag = "3")]
    event_name: String,
    #[prost(sint64, tag = "4")]
    amount: i64,
    #[prost(bytes = "bytes", tag = "5")]
    blob: Bytes,
    #[prost(message, optional, boxed, tag = "6")]
    inner: Option<Box<Plain>>,
    #[prost(uint32, repeated, tag = "7")]
    numbers: Vec<u32>,
    #[prost(message, repeated, tag = "8")]
    list: Vec<Plain>,
    #[prost(map = "string, fixed64", tag = "9")]
    map: std::collections::HashMap<String, u64>,
}

/// A payload that says how it is mapped.
#[derive(Debug, Clone, PartialEq, Notification)]
#[cqrs(crate = "::cqrs_core", topic = "t", serializer = ProtobufSerializer)]
struct Mapped(Plain);

impl ProtobufEvent for Mapped {
    type Message = Plain;

    fn to_message(event: &NotificationEvent<Self>) -> Result<Cow<'_, Plain>, MappingError> {
        Ok(Cow::Owned(Plain {
            event_id: event.event_id.to_string(),
            event_timestamp: event.event_timestamp.to_string(),
            event_name: event.event_name.to_string(),
            ..event.payload.0.clone()
        }))
    }

    fn from_message(
        message: Plain,
        incoming: &Incoming,
    ) -> Result<NotificationEvent<Self>, MappingError> {
        let id = MappingError::parse("event_id", &message.event_id)?;
        let time = MappingError::parse("event_timestamp", &message.event_timestamp)?;
        let name = message.event_name.clone();
        Ok(incoming.to_event(Self(message)).with_id(id).with_timestamp(time).with_name(name))
    }
}

/// An element of `list` takes two bytes of input, and up to twice its own size while the list grows.
const PER_BYTE: u64 = size_of::<Plain>() as u64 + 64;

/// Any bytes as a Protobuf event.
pub fn protobuf(bytes: &[u8]) {
    let message = Incoming::new("t", Bytes::copy_from_slice(bytes));
    let decoder = ProtobufDeserializer::new();
    match super::bounded(bytes, PER_BYTE, || decoder.deserialize(&message)) {
        Ok(event) => {
            let event: NotificationEvent<Plain> = event;
            let second = again(&event);
            assert_eq!(bare(event.payload), bare(second.payload));
        }
        Err(error) => {
            assert_eq!((error.kind(), &error.bytes()[..]), (Kind::Syntax, bytes));
            let _ = (error.to_string(), format!("{error:?}"));
        }
    }
    if let Ok(event) = super::bounded(bytes, PER_BYTE, || decoder.deserialize(&message)) {
        let event: NotificationEvent<Mapped> = event;
        let second = again(&event);
        assert_eq!(
            (event.event_id, event.event_timestamp, event.event_name),
            (second.event_id, second.event_timestamp, second.event_name)
        );
    }
}

/// Written and read once more.
fn again<P: ProtobufEvent<Message = Plain>>(event: &NotificationEvent<P>) -> NotificationEvent<P> {
    let written = ProtobufSerializer.serialize(event).expect("what was read can be written");
    let message = Incoming::new("t", written.body);
    ProtobufDeserializer::new().deserialize(&message).expect("what was written can be read")
}

/// The bytes of the fields, in one order.
fn bare(plain: Plain) -> impl PartialEq + std::fmt::Debug {
    let mut map: Vec<_> = plain.map.into_iter().collect();
    map.sort_unstable();
    (plain.event_id, plain.amount, plain.blob, plain.inner, plain.numbers, plain.list, map)
}
