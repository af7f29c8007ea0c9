//! [`SchemaId`] and [`SchemaType`]: the schema that a frame names; used by the whole crate.

use std::fmt;

use uuid::Uuid;

/// The id of a schema in a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SchemaId {
    /// The number that the registry gave it. Another registry may give it another one.
    Number(u32),
    /// The GUID, made of the schema itself: the same in every registry. Newer registries have them: Confluent's
    /// does, Apicurio's (2.6) does not.
    Guid(Uuid),
}

cqrs_core::from_values! { SchemaId:
    u32 = |id| Self::Number(id),
    Uuid = |guid| Self::Guid(guid),
}

impl fmt::Display for SchemaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(id) => id.fmt(f),
            Self::Guid(guid) => guid.fmt(f),
        }
    }
}

/// The language a schema is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SchemaType {
    /// JSON Schema.
    Json,
    /// Protocol Buffers. Its frames have a [`MessagePath`](super::MessagePath).
    Protobuf,
    /// Avro. Bodies of it are neither written nor decoded here; a registry may hold its schemas.
    Avro,
    /// Another one, which some registries hold.
    Other,
}

impl SchemaType {
    /// As the registry's API names it; `OTHER` for those that have no name here.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::Protobuf => "PROTOBUF",
            Self::Avro => "AVRO",
            Self::Other => "OTHER",
        }
    }
}

impl fmt::Display for SchemaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
