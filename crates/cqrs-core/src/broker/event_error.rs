//! The error of publishing a typed event, returned by `MessageBrokerExt::publish_event`.

use super::error::PublishError;
use crate::codec::SerializeError;

/// An event that was not published: either it has no bytes, or the broker did not confirm its message.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum PublishEventError {
    /// The event could not be serialized. Nothing was sent, and trying again gives the same result.
    #[error(transparent)]
    Serialize(#[from] SerializeError),
    /// The message was not confirmed; the error returns it.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

crate::error_debug!(PublishEventError);

impl PublishEventError {
    /// `true` if the same event may be published later without a change.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Serialize(_) => false,
            Self::Publish(error) => error.is_retryable(),
        }
    }
}
