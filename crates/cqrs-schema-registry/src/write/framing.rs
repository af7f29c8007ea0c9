//! [`Framing`]: the frames of events; used by the framed broker.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use cqrs_core::{Message, PublishError, PublishErrorKind};

use crate::{Frame, SchemaId};

/// The policy for a message whose event has no known schema.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnMissingSchema {
    /// It is not published: the error is [`Invalid`](PublishErrorKind::Invalid) and names the event.
    #[default]
    Refuse,
    /// It is published as it is, without a frame.
    Pass,
}

/// The frames of messages, by the event's name and, where that matters, the topic.
///
/// It is resolved before the first message: no publish asks a registry. With the feature `client`,
/// `Framing::builder` looks up the ids. Without it, or where they are known, they are given here:
///
/// ```
/// use cqrs_schema_registry::{Frame, Framing, MessagePath};
///
/// let framing = Framing::new()
///     .event("UserCreated", Frame::new(7).with_path(MessagePath::FIRST))
///     .event_to("UserMoved", "user_events", Frame::new(8).with_path(MessagePath::FIRST));
/// ```
///
/// A frame with a number goes before the body, which costs one allocation and a copy of the body; one
/// with a GUID goes into the header [`Frame::HEADER`], and the body stays as it is. No message gets both:
/// a number's frame takes the place of such a header, and a body that has another frame already is
/// [`Invalid`](PublishErrorKind::Invalid).
#[derive(Clone, Default)]
pub struct Framing {
    events: HashMap<Arc<str>, Vec<Entry>>,
    on_missing_schema: OnMissingSchema,
}

#[derive(Clone)]
struct Entry {
    /// `None`: any.
    topic: Option<Arc<str>>,
    frame: Frame,
    bytes: Bytes,
}

impl Framing {
    /// No frames yet.
    pub fn new() -> Self {
        Self::default()
    }

    cqrs_core::setters! {
        /// Events named `name` get `frame`, whatever their topic. The last call for a name holds.
        pub fn event(name: impl Into<Arc<str>>, frame: Frame) { self.set(name.into(), None, frame) }

        /// Events named `name` get `frame` when they go to `topic`; this goes before
        /// [`event`](Self::event).
        pub fn event_to(name: impl Into<Arc<str>>, topic: impl Into<Arc<str>>, frame: Frame) {
            self.set(name.into(), Some(topic.into()), frame)
        }

        /// The policy for messages of other events; an error by default.
        pub fn on_missing_schema(policy: OnMissingSchema) { self.on_missing_schema = policy }
    }

    /// The frame of events named `name` that go to `topic`.
    pub fn frame(&self, name: &str, topic: &str) -> Option<&Frame> {
        self.entry(name, topic).map(|entry| &entry.frame)
    }

    /// Sets a frame and returns the former one.
    pub(crate) fn set(
        &mut self,
        name: Arc<str>,
        topic: Option<Arc<str>>,
        frame: Frame,
    ) -> Option<Frame> {
        let entries = self.events.entry(name).or_default();
        let before = entries.iter().position(|entry| entry.topic == topic);
        let before = before.map(|place| entries.remove(place).frame);
        let bytes = frame.to_bytes().into();
        entries.push(Entry { topic, frame, bytes });
        before
    }

    fn entry(&self, name: &str, topic: &str) -> Option<&Entry> {
        let entries = self.events.get(name)?;
        let exact = entries.iter().find(|entry| entry.topic.as_deref() == Some(topic));
        exact.or_else(|| entries.iter().find(|entry| entry.topic.is_none()))
    }

    /// Adds the frame. A message that has it already is not changed: a publish error returns the message as
    /// it was sent, to be published again.
    pub(crate) fn apply(&self, mut message: Message) -> Result<Message, PublishError> {
        let Some(entry) = self.entry(&message.name, &message.topic) else {
            return match self.on_missing_schema {
                OnMissingSchema::Pass => Ok(message),
                OnMissingSchema::Refuse => Err(self.unknown(message)),
            };
        };
        // With a number or a GUID.
        let is_framed = matches!(message.body.first(), Some(0 | 1));
        match entry.frame.id() {
            SchemaId::Number(_) => {
                if !message.body.starts_with(&entry.bytes) {
                    if is_framed {
                        return Err(framed_already(message));
                    }
                    message.body = [&*entry.bytes, &*message.body].concat().into();
                }
                // Readers prefer the header to the body's frame.
                message.headers.remove(Frame::HEADER);
                Ok(message)
            }
            SchemaId::Guid(_) if is_framed => Err(framed_already(message)),
            // The value stays the same for a message that has it already.
            SchemaId::Guid(_) => {
                match message.headers.insert_bytes(Frame::HEADER, entry.bytes.clone()) {
                    Ok(()) => Ok(message),
                    Err(error) => Err(PublishError::new(
                        PublishErrorKind::Invalid,
                        message,
                        error.to_string(),
                    )),
                }
            }
        }
    }

    fn unknown(&self, message: Message) -> PublishError {
        let topics = self.events.get(&*message.name).map_or(&[][..], |entries| entries);
        let topics: Vec<_> = topics.iter().filter_map(|entry| entry.topic.as_deref()).collect();
        let detail = match (topics.is_empty(), message.name.is_empty()) {
            (false, _) => format!(
                "no schema of {:?} is known for this topic, only for {topics:?}: add it to the \
                 framing for this topic too",
                message.name
            ),
            (true, false) => format!(
                "no schema of {:?} is known: add it to the framing, or let unknown events pass",
                message.name
            ),
            (true, true) => {
                "the message has no event name, by which its schema is found: set it, or \
                             let unknown events pass"
                    .to_owned()
            }
        };
        PublishError::new(PublishErrorKind::Invalid, message, detail)
    }
}

fn framed_already(message: Message) -> PublishError {
    let detail = "the body begins with a byte 0 or 1, as no JSON and no Protobuf does: it has the \
                  frame of another schema already";
    PublishError::new(PublishErrorKind::Invalid, message, detail)
}

impl fmt::Debug for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut events: Vec<_> = self
            .events
            .iter()
            .flat_map(|(name, entries)| entries.iter().map(move |entry| (name, entry)))
            .map(|(name, entry)| (name, &entry.topic, &entry.frame))
            .collect();
        events.sort_by_key(|(name, topic, _)| (*name, *topic));
        f.debug_struct("Framing")
            .field("events", &events)
            .field("on_missing_schema", &self.on_missing_schema)
            .finish()
    }
}
