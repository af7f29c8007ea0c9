//! [`Retried`], [`DeadLettered`] and [`TesterError`]: the results of a tester's waits.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use cqrs_core::Notification;
use cqrs_core::codec::{DeserializeError, Deserializer, JsonDeserializer};
use cqrs_core::consume::{DeadLetter, Incoming};
use serde::de::DeserializeOwned;

use super::journal::Subject;
use crate::error_chain;

/// An event that failed and is retried after a delay.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retried<P> {
    /// The event's payload.
    pub event: P,
    /// The delay before the next attempt.
    pub delay: Duration,
    /// The failed attempts, immediate ones included.
    pub attempts: u32,
}

/// A message that became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLettered {
    /// The reason, the attempts and the group.
    pub letter: DeadLetter,
    /// The event's name, where the message has one.
    pub name: Option<String>,
    /// The message's bytes.
    pub body: Bytes,
    message: Incoming,
}

impl DeadLettered {
    pub(super) fn new(subject: &Subject, letter: &DeadLetter) -> Self {
        let (name, body) = (subject.name.clone(), subject.message.bytes());
        Self { letter: letter.clone(), name, body, message: subject.message.clone() }
    }

    /// The payload of the event.
    ///
    /// # Errors
    /// When its bytes are no JSON of `P`.
    pub fn event<P: Notification + DeserializeOwned>(&self) -> Result<P, DeserializeError> {
        self.decode(JsonDeserializer)
    }

    /// The payload of the event, as `deserializer` reads it.
    ///
    /// # Errors
    /// That of `deserializer`.
    pub fn decode<P: Notification>(
        &self,
        deserializer: impl Deserializer<P>,
    ) -> Result<P, DeserializeError> {
        Ok(deserializer.deserialize(&self.message)?.payload)
    }
}

/// The expected event that did not happen, and all that did.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TesterError(pub(super) String);

impl TesterError {
    pub(super) fn of(error: &dyn Error) -> Self {
        Self(error_chain(error))
    }
}

cqrs_core::error_debug!(TesterError);

/// The type's name without its modules.
pub(super) fn short_name<P>() -> &'static str {
    let whole = std::any::type_name::<P>();
    match whole.contains('<') {
        true => whole,
        false => whole.rsplit("::").next().unwrap_or(whole),
    }
}
