//! The serializers and deserializers of notification events.

mod canonical;
mod deserializer;
mod encoded;
mod error;
mod json;
mod json_payload;
mod negotiate;
mod non_finite;
mod payload;
mod unicode;

pub use crate::event::Serializer;
pub use deserializer::Deserializer;
pub use encoded::Encoded;
pub use error::{DeserializeError, DeserializeErrorKind, SerializeError};
pub use json::{JsonDeserializer, JsonSerializer};
pub use json_payload::{JsonPayloadDeserializer, JsonPayloadSerializer};
pub use negotiate::ByContentType;
pub use payload::{FromJson, ToJson};
