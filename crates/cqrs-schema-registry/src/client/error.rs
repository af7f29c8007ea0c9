//! [`RegistryError`]: the error of the registry's client.

use cqrs_core::{ClientError, ClientErrorKind};

/// The kind of a [`RegistryError`]. The first four are the same for every client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RegistryErrorKind {
    /// A setting or an argument is missing, malformed or contradicts another one. Nothing was sent.
    Config,
    /// No registry answered: no connection, no answer in time, or a failure of its own (5xx, 429), at
    /// every address and every attempt.
    Connection,
    /// The registry refused the credentials (401).
    Authentication,
    /// The credentials have no right to the request (403).
    Authorization,
    /// The registry does not know the subject, the version or the schema (404 with an error code 404xx).
    NotFound,
    /// The schema is not compatible with the earlier versions of its subject (409).
    Incompatible,
    /// The registry cannot parse the schema, or refuses its content (422).
    InvalidSchema,
    /// The registry answers, but has no endpoint for the request: for a schema's GUID in a registry without
    /// GUIDs.
    Unsupported,
    /// The registry answered something else: see its [`code`](ClientError::code).
    Other,
}

impl ClientErrorKind for RegistryErrorKind {
    const CONFIG: Self = Self::Config;

    fn is_retryable(self) -> bool {
        self == Self::Connection
    }
}

/// The error of the schema registry's client: it names the request, the URL and the remedy, and shows no
/// credentials.
pub type RegistryError = ClientError<RegistryErrorKind>;
