//! The error of a message that was not confirmed, returned by every broker.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::message::Message;

/// The known facts of a message that was not confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PublishErrorKind {
    /// The window is full (only `try_enqueue` and `try_publish`). Nothing was sent.
    Full,
    /// It was never sent: the deadline passed while it waited.
    NotSent,
    /// The broker rejected it (a RabbitMQ nack, a Kafka error about this message). It is not stored.
    Refused,
    /// The broker has no destination for it: no queue is bound (RabbitMQ), or the topic does not exist
    /// (Kafka). It is not stored.
    Unroutable,
    /// It may or may not be stored: it was sent, and not confirmed before the deadline.
    Unknown,
    /// Larger than the broker takes. It is not stored.
    TooLarge,
    /// The broker value is shut down. Nothing was sent.
    Closed,
    /// This broker cannot carry it (the topic's name is too long, say). Nothing was sent.
    Invalid,
}

impl PublishErrorKind {
    /// `true` if the same message may succeed later without any change.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Full | Self::NotSent | Self::Refused | Self::Unknown)
    }

    /// `true` if the message is certainly not stored. `false` only for [`Unknown`](Self::Unknown).
    pub fn is_certain(self) -> bool {
        self != Self::Unknown
    }

    /// `true` if the message can never be published as it is.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Self::TooLarge | Self::Invalid)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Full => "not sent, the window is full",
            Self::NotSent => "not sent before its deadline",
            Self::Refused => "refused by the broker",
            Self::Unroutable => "unroutable",
            Self::Unknown => "not confirmed in time, its fate is unknown",
            Self::TooLarge => "too large",
            Self::Closed => "not sent, the broker is shut down",
            Self::Invalid => "not sent, it is invalid for this broker",
        }
    }
}

/// The error of a message that was not confirmed: its kind, the reason, and the message.
///
/// `Display` names kind, event, topic and id; causes are in `source()`. Payloads are never shown.
#[must_use = "it carries the message that was not confirmed"]
pub struct PublishError(Box<Inner>);

struct Inner {
    kind: PublishErrorKind,
    detail: Cow<'static, str>,
    message: Arc<Message>,
    source: Option<Box<dyn Error + Send + Sync>>,
    /// Set if the work that caused the message is committed.
    is_after_commit: bool,
}

impl PublishError {
    /// An error about `message`; `detail` names the reason and the remedy, and no payload.
    pub fn new(
        kind: PublishErrorKind,
        message: impl Into<Arc<Message>>,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        let (detail, message) = (detail.into(), message.into());
        Self(Box::new(Inner { kind, detail, message, source: None, is_after_commit: false }))
    }

    /// Adds the cause.
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Marks the event's work as committed: it must not run again.
    pub(crate) fn after_commit(mut self) -> Self {
        self.0.is_after_commit = true;
        self
    }

    pub(crate) fn is_after_commit(&self) -> bool {
        self.0.is_after_commit
    }

    /// The known facts of the message.
    pub fn kind(&self) -> PublishErrorKind {
        self.0.kind
    }

    /// `true` if the same message may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.0.kind.is_retryable()
    }

    /// `true` if `later` must not be published before this one's message, which may still be published.
    pub(crate) fn precedes(&self, later: &Message) -> bool {
        let message = self.message();
        let is_same_lane = message.key.is_some() && message.key == later.key;
        is_same_lane && message.topic == later.topic && !self.kind().is_final()
    }

    /// The message that was not confirmed.
    pub fn message(&self) -> &Message {
        &self.0.message
    }

    /// Returns the message, to be published again or stored elsewhere. Its id is unchanged.
    pub fn into_message(self) -> Message {
        Arc::unwrap_or_clone(self.0.message)
    }

    /// The reason, as text.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, detail, message, .. } = &*self.0;
        let name = if message.name.is_empty() { "message" } else { &message.name };
        write!(f, "{name} {} for {:?}: {}", message.id, message.topic, kind.text())?;
        if !detail.is_empty() {
            write!(f, " ({detail})")?;
        }
        Ok(())
    }
}

crate::error_debug!(PublishError, kind(), message());

impl Error for PublishError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
