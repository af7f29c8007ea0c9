//! The error of this crate and its kinds. Used by all modules.

use std::borrow::Cow;

use cqrs_core::{ClientError, ClientErrorKind};
use rdkafka::types::RDKafkaErrorCode as Code;

/// The kind of a [`KafkaError`]. The first five are the same for every broker.
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
    /// The server speaks another protocol: it is not Kafka, or its port needs TLS, or has none.
    Protocol,
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

impl ClientErrorKind for ErrorKind {
    const CONFIG: Self = Self::Config;

    fn is_retryable(self) -> bool {
        matches!(self, Self::Connection | Self::Resolve | Self::Fatal | Self::Unavailable)
    }
}

/// The error of this crate. Never shows credentials.
pub type KafkaError = ClientError<ErrorKind>;

/// An error that the broker or librdkafka gave a code for; `text` is free of secrets.
pub(crate) fn of_code(code: Code, text: impl Into<Cow<'static, str>>) -> KafkaError {
    // librdkafka's own codes are negative.
    KafkaError::new(kind_of(code), text).with_code(u32::try_from(code as i32).ok())
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
            assert_eq!(of_code(code, "").kind(), kind, "{code:?}");
        }
    }

    #[test]
    fn debug_shows_text_and_code() {
        let error = of_code(Code::TopicAuthorizationFailed, "no right to the topic");
        assert_eq!(format!("{error:?}"), "no right to the topic");
        assert!(format!("{error:#?}").contains("29"), "{error:#?}");
        assert_eq!((error.code(), of_code(Code::Resolve, "").code()), (Some(29), None));
    }
}
