//! [`Schema`] and the answers about it; used by the registry's client and by framing.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::SchemaType;

/// A schema: its language, its text, and the schemas it refers to.
///
/// `Debug` shows the text's size.
#[derive(Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Schema {
    /// The language.
    pub schema_type: SchemaType,
    /// The schema itself: JSON, or a `.proto` file.
    pub text: Arc<str>,
    /// The schemas it imports (Protobuf) or refers to (JSON Schema's `$ref`), by name, not resolved.
    pub references: Vec<SchemaReference>,
}

/// A schema that another one refers to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SchemaReference {
    /// Its name in the schema that refers to it: the path of a Protobuf import, the `$ref` of a JSON Schema.
    pub name: String,
    /// The subject under which it is registered.
    pub subject: String,
    /// Its version there. Some registries take -1 for the latest.
    pub version: i32,
}

impl Schema {
    /// A schema of `schema_type`.
    pub fn new(schema_type: SchemaType, text: impl Into<Arc<str>>) -> Self {
        Self { schema_type, text: text.into(), references: Vec::new() }
    }

    /// A JSON Schema.
    pub fn json(text: impl Into<Arc<str>>) -> Self {
        Self::new(SchemaType::Json, text)
    }

    /// The text of a `.proto` file.
    pub fn protobuf(text: impl Into<Arc<str>>) -> Self {
        Self::new(SchemaType::Protobuf, text)
    }

    /// Adds a schema that this one refers to.
    #[must_use]
    pub fn with_reference(
        mut self,
        name: impl Into<String>,
        subject: impl Into<String>,
        version: i32,
    ) -> Self {
        let (name, subject) = (name.into(), subject.into());
        self.references.push(SchemaReference { name, subject, version });
        self
    }
}

cqrs_core::debug_fields!(Schema { schema_type, references }, |it| text_bytes: it.text.len());

/// A schema registered under a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegisteredSchema {
    /// The subject.
    pub subject: String,
    /// The number of the schema in this registry.
    pub id: u32,
    /// Its GUID, if the registry has them and returned it.
    pub guid: Option<Uuid>,
    /// Its version under the subject, if the registry returned it.
    pub version: Option<u32>,
    /// The schema.
    pub schema: Schema,
}

/// A version of a subject.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum SchemaVersion {
    /// The newest one.
    #[default]
    Latest,
    /// This one.
    Number(u32),
}

impl From<u32> for SchemaVersion {
    fn from(version: u32) -> Self {
        Self::Number(version)
    }
}

impl fmt::Display for SchemaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Number(version) => version.fmt(f),
        }
    }
}

/// The compatibility of a schema with a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compatibility {
    /// Set if the schema may become the next version.
    pub is_compatible: bool,
    /// The registry's reasons, if it gave any.
    pub reasons: Vec<String>,
}
