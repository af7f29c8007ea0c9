use std::borrow::Cow;
use std::error::Error;
use std::fmt;

/// What kept a subscription from being opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SubscribeErrorKind {
    /// This broker cannot be subscribed to, or not in the way that was asked.
    Unsupported,
    /// The options contradict each other or the broker's rules.
    Invalid,
    /// What is there already differs from what is asked (a RabbitMQ queue with other arguments).
    Conflict,
    /// The credentials are refused, or do not allow it.
    Forbidden,
    /// What should be consumed does not exist.
    NotFound,
    /// The broker value is shut down.
    Closed,
    /// Anything else that does not mend itself.
    Other,
}

/// Why a subscription could not be opened: what, where, and what to do.
#[derive(Debug)]
pub struct SubscribeError {
    kind: SubscribeErrorKind,
    detail: Cow<'static, str>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl SubscribeError {
    /// An error; `detail` names the topic or queue and says what to do.
    pub fn new(kind: SubscribeErrorKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What kept it from being opened.
    pub fn kind(&self) -> SubscribeErrorKind {
        self.kind
    }
}

impl fmt::Display for SubscribeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Error for SubscribeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Why a source cannot go on, or did not end well.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct SourceError {
    detail: Cow<'static, str>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl SourceError {
    /// An error; `detail` says what happened, where, and what to do.
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

/// Why a settlement did not reach the broker, or was not confirmed by it.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct SettleError {
    detail: Cow<'static, str>,
    source: Option<Box<dyn Error + Send + Sync>>,
    permanent: bool,
}

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
    /// goes on with the other messages. Without it the whole subscription pauses until the broker confirms.
    #[must_use]
    pub fn permanent(mut self) -> Self {
        self.permanent = true;
        self
    }

    /// Whether retrying cannot fix it.
    pub fn is_permanent(&self) -> bool {
        self.permanent
    }
}
