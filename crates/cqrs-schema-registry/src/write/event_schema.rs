//! [`EventSchema`]: the schema of one event's messages; given to the framing's builder.

use std::sync::Arc;

use cqrs_core::Notification;
use serde::Deserialize;

use super::SubjectNaming;
use crate::{MessagePath, RegistryError, Schema, SchemaType};

/// The schema of one event's messages, to be found in the registry.
///
/// ```
/// use cqrs_schema_registry::{EventSchema, MessagePath, Schema};
///
/// let text = "syntax = \"proto3\"; package shop; message Other {} message UserCreated {}";
/// let schema = EventSchema::new("UserCreated", "user_events", Schema::protobuf(text))
///     .path(MessagePath::new([1])?) // the second message of the file
///     .record("shop.UserCreated");
/// # Ok::<(), cqrs_schema_registry::FrameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventSchema {
    pub(super) event: Arc<str>,
    pub(super) topic: Arc<str>,
    pub(super) source: SchemaSource,
    path: Option<MessagePath>,
    record: Option<String>,
    subject: Option<String>,
}

/// The schema, or its place in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SchemaSource {
    /// This one.
    Schema(Schema),
    /// The newest of the subject at the time of the look-up, which must be of this type. Nothing checks
    /// the events against it.
    Latest(SchemaType),
}

impl From<Schema> for SchemaSource {
    fn from(schema: Schema) -> Self {
        Self::Schema(schema)
    }
}

impl EventSchema {
    /// Of events named `event` that go to `topic`.
    pub fn new(
        event: impl Into<Arc<str>>,
        topic: impl Into<Arc<str>>,
        source: impl Into<SchemaSource>,
    ) -> Self {
        Self {
            event: event.into(),
            topic: topic.into(),
            source: source.into(),
            path: None,
            record: None,
            subject: None,
        }
    }

    /// Of the notification `P`, at its own topic.
    pub fn of<P: Notification>(source: impl Into<SchemaSource>) -> Self {
        Self::new(P::NAME, &*P::topic(), source)
    }

    /// The message of a Protobuf schema that the event is; the first one by default.
    #[must_use]
    pub fn path(mut self, path: MessagePath) -> Self {
        self.path = Some(path);
        self
    }

    /// The record's name, for the namings that ask for it: the full name of the Protobuf message. For
    /// a JSON Schema it is its `title` by default.
    #[must_use]
    pub fn record(mut self, record: impl Into<String>) -> Self {
        self.record = Some(record.into());
        self
    }

    /// The subject, instead of the one by the naming. The naming still decides for which topics the schema
    /// holds: for this event's only, unless it is [`RecordName`](SubjectNaming::RecordName).
    #[must_use]
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// The subject under `naming`.
    pub(super) fn subject_name(&self, naming: SubjectNaming) -> Result<String, RegistryError> {
        if let Some(subject) = &self.subject {
            return Ok(subject.clone());
        }
        let title;
        let record = match (&self.record, &self.source) {
            (Some(record), _) => record,
            (None, _) if !naming.asks_record() => "",
            (None, SchemaSource::Schema(schema)) if schema.schema_type == SchemaType::Json => {
                title = json_title(&schema.text).ok_or_else(|| self.no_record())?;
                &title
            }
            (None, _) => return Err(self.no_record()),
        };
        Ok(naming.subject(&self.topic, record))
    }

    fn no_record(&self) -> RegistryError {
        RegistryError::config(format!(
            "the schema of {:?} has no record name, by which its subject is named: give it with \
             `EventSchema::record`, or as the `title` of the JSON Schema",
            self.event
        ))
    }

    /// The path in a frame of `schema_type`.
    pub(super) fn path_in(
        &self,
        schema_type: SchemaType,
    ) -> Result<Option<MessagePath>, RegistryError> {
        match (schema_type, &self.path) {
            (SchemaType::Protobuf, path) => Ok(Some(path.clone().unwrap_or_default())),
            (SchemaType::Json, None) => Ok(None),
            (SchemaType::Json, Some(_)) => Err(RegistryError::config(format!(
                "the schema of {:?} is of type JSON, which has no message path",
                self.event
            ))),
            (other, _) => Err(RegistryError::config(format!(
                "the schema of {:?} is of type {other}; events are written as JSON or PROTOBUF",
                self.event
            ))),
        }
    }

    /// Set if it holds for its topic only.
    pub(super) fn is_of_topic(&self, naming: SubjectNaming) -> bool {
        naming.asks_topic()
    }
}

fn json_title(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Titled {
        title: String,
    }
    serde_json::from_str::<Titled>(text).ok().map(|schema| schema.title)
}
