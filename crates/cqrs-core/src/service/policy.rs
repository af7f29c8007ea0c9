//! The policies for messages that do not become events, and the decoder hooks.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::broker::BoxFuture;
use crate::codec::DeserializeError;
use crate::consume::{DeadLetterReason, Incoming, Received};
use crate::event::HandlerError;

/// The policy for a message that cannot be decoded. It is never retried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDecodeError {
    /// It becomes a dead letter with its raw bytes and the reason. The default for undecodable bytes and
    /// for unknown event types.
    #[default]
    DeadLetter,
    /// It is logged, counted and acked. The default for empty messages and tombstones.
    Skip,
    /// It is given back and the subscription ends with an error.
    Stop,
    /// The function given to [`Subscription::undecodable`](super::Subscription::undecodable) gets it; its
    /// result settles the message as a handler's does.
    Handle,
}

/// The error of a message that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Undecodable {
    /// Its bytes are not an event of the expected type; text, kind and raw bytes are in the error.
    Malformed(DeserializeError),
    /// An event whose type the subscription does not know.
    UnknownEvent {
        /// The event's name.
        name: String,
    },
    /// A body of zero bytes.
    Empty,
    /// No body at all (a Kafka tombstone): the key is deleted.
    Tombstone,
}

impl Undecodable {
    pub(super) fn reason(&self) -> DeadLetterReason {
        match self {
            Self::UnknownEvent { .. } => DeadLetterReason::UnknownType,
            Self::Malformed(_) | Self::Empty | Self::Tombstone => DeadLetterReason::Decode,
        }
    }

    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "DeserializeError",
            Self::UnknownEvent { .. } => "UnknownEvent",
            Self::Empty => "Empty",
            Self::Tombstone => "Tombstone",
        }
    }
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => error.fmt(f),
            Self::UnknownEvent { name } => {
                write!(f, "no type of this subscription is named {name:?}")
            }
            Self::Empty => f.write_str("the message is empty"),
            Self::Tombstone => f.write_str("a tombstone"),
        }
    }
}

/// The policy for each case.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policies {
    pub(super) decode_error: OnDecodeError,
    pub(super) unknown_event: OnDecodeError,
    pub(super) empty: OnDecodeError,
    pub(super) tombstone: OnDecodeError,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            decode_error: OnDecodeError::DeadLetter,
            unknown_event: OnDecodeError::DeadLetter,
            empty: OnDecodeError::Skip,
            tombstone: OnDecodeError::Skip,
        }
    }
}

impl Policies {
    pub(super) fn of(&self, case: &Undecodable) -> OnDecodeError {
        match case {
            Undecodable::Malformed(_) => self.decode_error,
            Undecodable::UnknownEvent { .. } => self.unknown_event,
            Undecodable::Empty => self.empty,
            Undecodable::Tombstone => self.tombstone,
        }
    }

    pub(super) fn has_handle(&self) -> bool {
        [self.decode_error, self.unknown_event, self.empty, self.tombstone]
            .contains(&OnDecodeError::Handle)
    }
}

/// The error of a decoder hook.
#[derive(Debug)]
#[non_exhaustive]
pub enum DecodeError {
    /// The message cannot be decoded, now or later: the policy for decode errors applies.
    Malformed(Cow<'static, str>),
    /// Decoding failed, possibly because of the message: the retry schedule applies, with a dead letter at
    /// its end.
    Failed(HandlerError),
    /// A service that decoding needs is away (a key server, a schema registry), independent of the message:
    /// no attempt is counted, and the message never becomes a dead letter. A warning is logged, and the
    /// message is decoded again after a wait that grows (50 ms to 10 s), for as long as needed. The
    /// messages of its key wait. A permanent error is treated the same.
    NotNow(HandlerError),
}

impl DecodeError {
    /// The message cannot be decoded; `message` is the reason and quotes no payload.
    pub fn malformed(message: impl Into<Cow<'static, str>>) -> Self {
        Self::Malformed(message.into())
    }

    /// Decoding failed: a failed attempt, as a handler's.
    pub fn failed(error: impl Into<HandlerError>) -> Self {
        Self::Failed(error.into())
    }

    /// A service that decoding needs is away: tried again until it is back.
    pub fn not_now(error: impl Into<HandlerError>) -> Self {
        Self::NotNow(error.into())
    }
}

/// The result of a decoder hook: the message or another one, or `None` to skip and ack it.
pub type Decoded = Result<Option<Incoming>, DecodeError>;

/// The function of [`Subscription::undecodable`](super::Subscription::undecodable).
pub(super) type UndecodableFn = Arc<
    dyn Fn(Undecodable, Received) -> BoxFuture<'static, Result<(), HandlerError>> + Send + Sync,
>;

/// A hook of [`Subscription::decoder`](super::Subscription::decoder).
pub(super) type DecoderFn = Arc<dyn Fn(Incoming) -> BoxFuture<'static, Decoded> + Send + Sync>;
