//! Confluent's wire format, without I/O.

mod error;
mod path;
mod schema;
#[cfg(test)]
mod tests;
mod varint;

use bytes::Bytes;
use uuid::Uuid;

pub use error::{FrameError, FrameErrorKind};
pub use path::MessagePath;
pub use schema::{SchemaId, SchemaType};

use varint::Reader;

/// The schema of a message: its id and, for Protobuf, the path of the message in the schema.
///
/// On the wire it is a magic byte, the id, and the path:
///
/// | magic | id | where Confluent's clients put it |
/// |---|---|---|
/// | 0 | 4 bytes, big-endian | before the body |
/// | 1 | 16 bytes, the GUID | the header [`HEADER`](Self::HEADER), and nothing before the body |
///
/// The path is a count and the indexes, as zigzag varints; the first message of the file is the single
/// byte 0. Either kind of id is read in either place, as Confluent's `DualSchemaIdDeserializer` does.
///
/// ```
/// use bytes::Bytes;
/// use cqrs_schema_registry::{Frame, MessagePath, SchemaId, SchemaType};
///
/// let frame = Frame::new(7).with_path(MessagePath::FIRST);
/// assert_eq!(frame.to_bytes(), [0, 0, 0, 0, 7, 0]);
///
/// let (frame, body) = Frame::split(SchemaType::Json, &Bytes::from_static(b"\0\0\0\0\x07{}"))?;
/// assert_eq!(frame.id(), SchemaId::Number(7));
/// assert_eq!(body, "{}");
/// # Ok::<(), cqrs_schema_registry::FrameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Frame {
    id: SchemaId,
    path: Option<MessagePath>,
}

const MAGIC_NUMBER: u8 = 0;
const MAGIC_GUID: u8 = 1;

impl Frame {
    /// The header with the schema of a message's value.
    pub const HEADER: &str = "__value_schema_id";

    /// The frame of a schema without a path: JSON Schema's.
    pub fn new(id: impl Into<SchemaId>) -> Self {
        Self { id: id.into(), path: None }
    }

    /// Adds the path, which Protobuf's frames have.
    #[must_use]
    pub fn with_path(mut self, path: MessagePath) -> Self {
        self.path = Some(path);
        self
    }

    /// The schema.
    pub fn id(&self) -> SchemaId {
        self.id
    }

    /// The message of the schema; `None` where the schema's language has no such thing.
    pub fn path(&self) -> Option<&MessagePath> {
        self.path.as_ref()
    }

    /// The frame at the start of `bytes`, and its length. The type decides if there is a path, for the
    /// bytes do not show it.
    ///
    /// # Errors
    /// The kind and the place of the error. Nothing is allocated but the path, of at most
    /// [`MessagePath::MAX_DEPTH`] indexes, and no more than there are bytes.
    pub fn read(schema_type: SchemaType, bytes: &[u8]) -> Result<(Self, usize), FrameError> {
        let mut reader = Reader::new(bytes);
        if bytes.is_empty() {
            return Err(reader.error(FrameErrorKind::Empty));
        }
        let id = match reader.array()? {
            [MAGIC_NUMBER] => SchemaId::Number(u32::from_be_bytes(reader.array()?)),
            [MAGIC_GUID] => SchemaId::Guid(Uuid::from_bytes(reader.array()?)),
            _ => return Err(FrameError::new(FrameErrorKind::Unframed, 0)),
        };
        let path = match schema_type {
            SchemaType::Protobuf => Some(MessagePath::read(&mut reader)?),
            _ => None,
        };
        Ok((Self { id, path }, reader.at()))
    }

    /// The frame at the start of `body`, and the rest. Copies nothing.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn split(schema_type: SchemaType, body: &Bytes) -> Result<(Self, Bytes), FrameError> {
        let (frame, length) = Self::read(schema_type, body)?;
        Ok((frame, body.slice(length..)))
    }

    /// The bytes of the frame on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(18);
        match self.id {
            SchemaId::Number(id) => {
                bytes.push(MAGIC_NUMBER);
                bytes.extend_from_slice(&id.to_be_bytes());
            }
            SchemaId::Guid(guid) => {
                bytes.push(MAGIC_GUID);
                bytes.extend_from_slice(guid.as_bytes());
            }
        }
        if let Some(path) = &self.path {
            path.write(&mut bytes);
        }
        bytes
    }
}
