//! A deserializer for topics with JSON and Protobuf.

use cqrs_core::codec::{ByContentType, FromJson, JsonDeserializer};
use cqrs_core::consume::Incoming;
use cqrs_core::message::content_type;

use crate::deserialize::ProtobufDeserializer;
use crate::event::ProtobufEvent;

/// Other names of the same media type, used by other services.
const ALSO_PROTOBUF: [&str; 2] = ["application/protobuf", "application/vnd.google.protobuf"];

/// Reads JSON and Protobuf from one topic.
///
/// The content type decides. Without one, as on Kafka, a message whose frame names its event is Protobuf,
/// unless its body begins with `{`, as a JSON object does; any other is JSON. This is right for the JSON and the
/// Protobuf of python-cqrs and of this framework's defaults: a Protobuf message begins with `{` only if its first
/// field is a group of number 15. JSON is read as a whole event, not as the payload alone.
///
/// For other rules see [`ByContentType`].
pub fn json_or_protobuf<P: ProtobufEvent + FromJson>() -> ByContentType<P> {
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
    // FastStream sends an empty content type with bytes.
    let is_missing = message.content_type.as_deref().is_none_or(str::is_empty);
    is_missing && message.event_name().is_some() && !is_json
}
