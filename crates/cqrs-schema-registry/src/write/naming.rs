//! [`SubjectNaming`]: the subject of an event's schema; used by the framing's builder.

/// The subject of an event's schema: Confluent's strategies for a message's value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SubjectNaming {
    /// `{topic}-value`: one line of schemas per topic. Confluent's default.
    #[default]
    TopicName,
    /// `{record}`: one line of schemas per type, whatever its topics.
    RecordName,
    /// `{topic}-{record}`: one line of schemas per type and topic, for topics with several types.
    TopicRecordName,
}

impl SubjectNaming {
    /// The subject of the record `record` sent to `topic`. The record is the `title` of a JSON Schema
    /// and the full name of a Protobuf message, as `shop.UserCreated`.
    pub fn subject(self, topic: &str, record: &str) -> String {
        match self {
            Self::TopicName => format!("{topic}-value"),
            Self::RecordName => record.to_owned(),
            Self::TopicRecordName => format!("{topic}-{record}"),
        }
    }

    /// Set if the subject depends on the record.
    pub(super) fn uses_record(self) -> bool {
        self != Self::TopicName
    }

    /// Set if the subject depends on the topic.
    pub(super) fn uses_topic(self) -> bool {
        self != Self::RecordName
    }
}
