//! The Protobuf serializer.

use bytes::Bytes;
use cqrs_core::NotificationEvent;
use cqrs_core::codec::{Encoded, SerializeError, Serializer};
use cqrs_core::message::{Headers, content_type};
use prost::Message as _;

use crate::event::ProtobufEvent;

/// Writes the event's Protobuf message, without an envelope, as `application/x-protobuf`.
///
/// The brokers add what python-cqrs adds: the headers `event_name` and `message_id`.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProtobufSerializer;

impl<P: ProtobufEvent> Serializer<P> for ProtobufSerializer {
    fn serialize(&self, event: &NotificationEvent<P>) -> Result<Encoded, SerializeError> {
        let message =
            P::to_message(event).map_err(|error| SerializeError::new(&*event.event_name, error))?;
        Ok(Encoded {
            body: Bytes::from(message.encode_to_vec()),
            content_type: content_type::PROTOBUF,
            headers: Headers::new(),
        })
    }
}
