//! The error of this crate and its kinds. Used by all modules.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use rdkafka::types::RDKafkaErrorCode as Code;

/// The kind of a [`KafkaError`]. The first four are the same for every broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting is missing, malformed or contradicts another one. Nothing was connected.
    Config,
    /// The server could not be reached: connection refused, lost, or no answer in time.
    Connection,
    /// The TLS handshake failed: an unknown authority, a wrong host name, a refused client certificate.
    Tls,
    /// The login failed: wrong credentials, a refused SASL mechanism, or no OAuth token.
    Authentication,
    /// The principal has no right to the operation.
    Authorization,
    /// The host name is unknown.
    Resolve,
    /// The idempotent producer cannot continue and is replaced.
    Fatal,
    /// The broker accepts no record of the partition now: too few replicas, or no leader.
    Unavailable,
    /// The broker or librdkafka answered with another error.
    Broker,
}

/// An error of this crate. Never shows credentials.
///
/// Cheap to clone. `Display` shows this level; causes are in `source()`.
#[derive(Clone)]
pub struct KafkaError(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    text: Cow<'static, str>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl KafkaError {
    pub(crate) fn new(kind: ErrorKind, text: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner { kind, text: text.into(), source: None }))
    }

    pub(crate) fn config(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Config, text)
    }

    pub(crate) fn with_source(
        kind: ErrorKind,
        text: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self(Arc::new(Inner { kind, text: text.into(), source: Some(source.into()) }))
    }

    /// An error that the broker or librdkafka gave a code for; `text` is free of secrets.
    pub(crate) fn of_code(code: Code, text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(kind_of(code), text)
    }

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns whether a retry may succeed without any change.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Connection | ErrorKind::Resolve | ErrorKind::Fatal | ErrorKind::Unavailable
        )
    }
}

/// The kind of a librdkafka error code.
fn kind_of(code: Code) -> ErrorKind {
    match code {
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState => ErrorKind::Authentication,
        Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => ErrorKind::Authorization,
        Code::SSL => ErrorKind::Tls,
        Code::Resolve => ErrorKind::Resolve,
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::OperationTimedOut
        | Code::MessageTimedOut
        | Code::RequestTimedOut
        | Code::NetworkException => ErrorKind::Connection,
        Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::KafkaStorageError => ErrorKind::Unavailable,
        // librdkafka reports these codes, not `Fatal`, for fatal errors of an idempotent producer.
        Code::Fatal
        | Code::OutOfOrderSequenceNumber
        | Code::UnknownProducerId
        | Code::InvalidProducerEpoch
        | Code::InvalidProducerIdMapping
        | Code::Inconsistent
        | Code::GaplessGuarantee
        | Code::Fenced => ErrorKind::Fatal,
        _ => ErrorKind::Broker,
    }
}

impl fmt::Display for KafkaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Debug for KafkaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaError")
            .field("kind", &self.0.kind)
            .field("text", &self.0.text)
            .field("source", &self.0.source)
            .finish()
    }
}

impl Error for KafkaError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_kinds() {
        for (code, kind) in [
            (Code::Authentication, ErrorKind::Authentication),
            (Code::TopicAuthorizationFailed, ErrorKind::Authorization),
            (Code::SSL, ErrorKind::Tls),
            (Code::Resolve, ErrorKind::Resolve),
            (Code::AllBrokersDown, ErrorKind::Connection),
            (Code::Fatal, ErrorKind::Fatal),
            (Code::OutOfOrderSequenceNumber, ErrorKind::Fatal),
            (Code::NotEnoughReplicas, ErrorKind::Unavailable),
            (Code::PolicyViolation, ErrorKind::Broker),
        ] {
            assert_eq!(KafkaError::of_code(code, "").kind(), kind, "{code:?}");
        }
    }

    #[test]
    fn display_shows_its_own_level() {
        let error = KafkaError::with_source(ErrorKind::Connection, "no contact", "refused");
        assert_eq!(error.to_string(), "no contact");
        assert_eq!(error.source().unwrap().to_string(), "refused");
        assert!(error.is_retryable());
    }
}
