//! The errors of subscribing, of a source and of settling, returned by broker crates.

use std::borrow::Cow;
use std::error::Error;

use crate::error_debug;
use crate::{ClientError, ClientErrorKind};

/// The kind of error that prevented a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SubscribeErrorKind {
    /// This broker cannot be subscribed to, or not in the way that was asked.
    Unsupported,
    /// The options contradict each other or the broker's rules.
    Invalid,
    /// An existing object differs from the requested one (a RabbitMQ queue with other arguments).
    Conflict,
    /// The credentials are refused, or do not allow it.
    Forbidden,
    /// The topic or queue to consume does not exist.
    NotFound,
    /// The broker value is shut down.
    Closed,
    /// Any other error that retrying cannot fix.
    Other,
}

impl ClientErrorKind for SubscribeErrorKind {
    const CONFIG: Self = Self::Invalid;

    fn is_retryable(self) -> bool {
        false
    }
}

/// The error of a subscription that could not be opened: what happened, where, and the remedy.
pub type SubscribeError = ClientError<SubscribeErrorKind>;

/// The error of a source that cannot go on, or did not close properly.
#[derive(thiserror::Error)]
#[error("{detail}")]
pub struct SourceError {
    detail: Cow<'static, str>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

error_debug!(SourceError);

impl SourceError {
    /// An error; `detail` says what happened, where, and the remedy.
    pub fn new(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { detail: detail.into(), source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// The error of a settlement that did not reach the broker, or was not confirmed by it.
#[derive(thiserror::Error)]
#[error("{detail}")]
pub struct SettleError {
    detail: Cow<'static, str>,
    source: Option<Box<dyn Error + Send + Sync>>,
    permanent: bool,
}

error_debug!(SettleError, permanent);

impl SettleError {
    /// An error; `detail` says what happened and where.
    pub fn new(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { detail: detail.into(), source: None, permanent: false }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Marks the error as one that retrying cannot fix (too large, refused, no right) and that concerns
    /// this message alone. The runtime then holds this message and its key, tries again at a slow pace, and
    /// goes on with the other messages. Otherwise the whole subscription pauses until the broker confirms.
    #[must_use]
    pub fn permanent(mut self) -> Self {
        self.permanent = true;
        self
    }

    /// `true` if retrying cannot fix it.
    pub fn is_permanent(&self) -> bool {
        self.permanent
    }
}
