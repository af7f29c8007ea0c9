//! A deserializer for topics with JSON and Protobuf.

use cqrs_core::message::content_type;
use cqrs_core::{ByContentType, Incoming, JsonDeserializer};
use serde::de::DeserializeOwned;

use crate::deserialize::ProtobufDeserializer;
use crate::event::{ProtobufEvent, event_name};

/// Names of the same media type that other services use.
const ALSO_PROTOBUF: [&str; 2] = ["application/protobuf", "application/vnd.google.protobuf"];

/// Reads JSON and Protobuf from one topic.
///
/// A content type decides. Where there is none, as on Kafka, a message whose frame names its event is
/// Protobuf, unless it begins as a JSON object does, with `{`; any other is JSON. That is right for all
/// that this framework and python-cqrs write: a Protobuf message begins with `{` only if its first field
/// is a group of number 15.
///
/// Another order of things: [`ByContentType`].
pub fn json_or_protobuf<P: ProtobufEvent + DeserializeOwned>() -> ByContentType<P> {
    let protobuf = ProtobufDeserializer::new();
    ALSO_PROTOBUF
        .into_iter()
        .fold(ByContentType::new(JsonDeserializer), |either, name| {
            either.media_type(name, protobuf)
        })
        .media_type(content_type::PROTOBUF, protobuf)
        .when(is_protobuf, protobuf)
}

fn is_protobuf(message: &Incoming) -> bool {
    let is_json = message.body.as_ref().is_some_and(|body| body.starts_with(b"{"));
    // FastStream sends an empty one with bytes.
    let says_nothing = message.content_type.as_deref().is_none_or(str::is_empty);
    says_nothing && event_name(message).is_some() && !is_json
}
