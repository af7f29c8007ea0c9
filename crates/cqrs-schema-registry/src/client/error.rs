//! [`RegistryError`]: the error of the registry's client.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// The kind of an error of the schema registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RegistryErrorKind {
    /// A setting or an argument is missing, malformed or contradicts another one. Nothing was sent.
    Config,
    /// The registry does not know the subject, the version or the schema (404 with an error code 404xx).
    NotFound,
    /// The schema is not compatible with the earlier versions of its subject (409).
    Incompatible,
    /// The registry cannot parse the schema, or refuses its content (422).
    InvalidSchema,
    /// The registry refused the credentials (401), or their rights are too few (403).
    Unauthorized,
    /// No registry answered: no connection, no answer in time, or a failure of its own (5xx, 429), at
    /// every address and every attempt.
    Unreachable,
    /// The registry answers, but has no endpoint for the request: for a schema's GUID in a registry without
    /// GUIDs.
    Unsupported,
    /// The registry answered something else: see [`status`](RegistryError::status).
    Other,
}

/// An error of the schema registry: its kind, the request, the URL, the remedy, and the cause in
/// `source()`.
///
/// Cheap to clone. Neither `Display` nor `Debug` shows credentials.
#[derive(Clone)]
pub struct RegistryError(Arc<Inner>);

struct Inner {
    kind: RegistryErrorKind,
    detail: String,
    answer: Answer,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// The registry's answer, when there was one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Answer {
    pub(super) status: Option<u16>,
    pub(super) code: Option<u32>,
}

impl RegistryError {
    pub(crate) fn new(kind: RegistryErrorKind, detail: impl Into<String>) -> Self {
        Self::answered(kind, detail, Answer::default())
    }

    /// Set if the requested item does not exist in this registry.
    pub(super) fn is_no_such_thing(&self) -> bool {
        matches!(self.kind(), RegistryErrorKind::NotFound | RegistryErrorKind::Unsupported)
    }

    pub(crate) fn config(detail: impl Into<String>) -> Self {
        Self::new(RegistryErrorKind::Config, detail)
    }

    pub(super) fn answered(
        kind: RegistryErrorKind,
        detail: impl Into<String>,
        answer: Answer,
    ) -> Self {
        Self(Arc::new(Inner { kind, detail: detail.into(), answer, source: None }))
    }

    pub(super) fn caused(
        kind: RegistryErrorKind,
        detail: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let (detail, source) = (detail.into(), Some(source.into()));
        Self(Arc::new(Inner { kind, detail, answer: Answer::default(), source }))
    }

    /// The kind of error.
    pub fn kind(&self) -> RegistryErrorKind {
        self.0.kind
    }

    /// The HTTP status, when the registry answered.
    pub fn status(&self) -> Option<u16> {
        self.0.answer.status
    }

    /// The registry's own error code, such as 40403, when it gave one
    /// ([API reference](https://docs.confluent.io/platform/current/schema-registry/develop/api.html)).
    pub fn code(&self) -> Option<u32> {
        self.0.answer.code
    }

    /// Set if a retry can succeed without a change of settings or schemas.
    pub fn is_retryable(&self) -> bool {
        self.0.kind == RegistryErrorKind::Unreachable
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.detail)
    }
}

impl fmt::Debug for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryError")
            .field("kind", &self.0.kind)
            .field("detail", &self.0.detail)
            .field("status", &self.0.answer.status)
            .field("code", &self.0.answer.code)
            .field("source", &self.0.source)
            .finish()
    }
}

impl Error for RegistryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
