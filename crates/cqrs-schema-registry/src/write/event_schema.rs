//! [`EventSchema`]: the schema of one event's messages; given to the framing's builder.

use std::sync::Arc;

use cqrs_core::Notification;
use serde::Deserialize;

use super::SubjectNaming;
use crate::{MessagePath, RegistryError, Schema, SchemaType};

/// The schema of one event's messages, which the framing's builder looks up or registers.
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

/// The schema itself, or the subject's latest version.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SchemaSource {
    /// Exactly this schema.
    Schema(Schema),
    /// The subject's latest version at the time of the look-up, which must be of this type. Events are not
    /// validated against it.
    Latest(SchemaType),
}

impl From<Schema> for SchemaSource {
    fn from(schema: Schema) -> Self {
        Self::Schema(schema)
    }
}

impl EventSchema {
    /// The schema of the events named `event` that are published to `topic`.
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

    /// The schema of the notification `P` at the topic of its type.
    pub fn of<P: Notification>(source: impl Into<SchemaSource>) -> Self {
        Self::new(P::NAME, &*P::topic(), source)
    }

    cqrs_core::setters! {
        /// Sets the message of the Protobuf file that the event is encoded as; the first one by default.
        pub fn path(path: MessagePath) { self.path = Some(path) }

        /// Sets the record's name, for naming strategies that use it: the full name of the Protobuf message. The
        /// `title` of a JSON Schema by default.
        pub fn record(record: impl Into<String>) { self.record = Some(record.into()) }

        /// Sets the subject, in place of the one by the naming strategy. That still decides for which topics the schema
        /// applies: for this event's only, unless it is [`RecordName`](SubjectNaming::RecordName).
        pub fn subject(subject: impl Into<String>) { self.subject = Some(subject.into()) }
    }

    /// The subject under `naming`.
    pub(super) fn subject_name(&self, naming: SubjectNaming) -> Result<String, RegistryError> {
        if let Some(subject) = &self.subject {
            return Ok(subject.clone());
        }
        let title;
        let record = match (&self.record, &self.source) {
            (Some(record), _) => record,
            (None, _) if !naming.uses_record() => "",
            (None, SchemaSource::Schema(schema)) if schema.schema_type == SchemaType::Json => {
                title = json_title(&schema.text).ok_or_else(|| self.missing_record_name())?;
                &title
            }
            (None, _) => return Err(self.missing_record_name()),
        };
        Ok(naming.subject(&self.topic, record))
    }

    fn missing_record_name(&self) -> RegistryError {
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
}

fn json_title(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Titled {
        title: String,
    }
    serde_json::from_str::<Titled>(text).ok().map(|schema| schema.title)
}
