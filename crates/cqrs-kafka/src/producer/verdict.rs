//! What a librdkafka error says about a record.

use cqrs_core::broker::{PendingConfirm, PublishErrorKind as Kind};
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::error::{ErrorKind, KafkaError};

const NO_RIGHT: &str = "the principal may not write to the topic, or not create it; check its ACLs";

/// What is known of a record that failed with `code`, and what to do about it.
///
/// librdkafka does not show through the rdkafka crate whether a record was ever written, so whatever
/// leaves that open is [`Unknown`](Kind::Unknown).
fn verdict(code: Code) -> (Kind, &'static str) {
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => (
            Kind::TooLarge,
            "the broker takes no record this large; raise max.message.bytes of the topic",
        ),
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownTopicId => {
            (Kind::Unroutable, "the topic does not exist, or this principal may not see it")
        }
        Code::UnknownPartition => (Kind::Unroutable, "the topic has no such partition"),
        Code::InvalidTopic => (Kind::Invalid, "the broker does not take the topic's name"),
        Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => (Kind::Refused, NO_RIGHT),
        Code::InvalidTimestamp => {
            (Kind::Refused, "its timestamp is too far from the broker's clock")
        }
        Code::InvalidMessage
        | Code::InvalidRecord
        | Code::PolicyViolation
        | Code::InvalidRequiredAcks
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType
        | Code::NotEnoughReplicas => (Kind::Refused, "the broker does not take it"),
        Code::MessageTimedOut => (Kind::Unknown, "no confirm came before its deadline"),
        Code::PurgeQueue | Code::PurgeInflight => {
            (Kind::Unknown, "the producer was closed before the confirm")
        }
        _ => (Kind::Unknown, "it failed while it was being sent"),
    }
}

/// Ends a record that was not written, since the broker refuses the principal.
pub(super) fn refused(pending: PendingConfirm, refusal: KafkaError) {
    pending.fail(Kind::Refused, NO_RIGHT, Some(refusal.into()));
}

/// Ends a record that librdkafka failed. `cause` is what is known of the connection.
pub(super) fn fail(pending: PendingConfirm, code: Code, cause: Option<KafkaError>) {
    if let (Code::PurgeQueue | Code::Fatal, Some(cause)) = (code, &cause)
        && cause.kind() == ErrorKind::Authorization
    {
        return refused(pending, cause.clone());
    }
    let (kind, detail) = verdict(code);
    let source = match (kind, cause) {
        (Kind::Unknown, Some(cause)) => cause,
        _ => answer(code),
    };
    pending.fail(kind, detail, Some(source.into()));
}

/// Ends a record that librdkafka takes for written because a later batch of its partition was confirmed:
/// the broker told no offset.
///
/// That is a guess (librdkafka 2.12, `rd_kafka_dr_implicit_ack`), and a wrong one on a new partition: the
/// leader may refuse the first batch because it is not ready yet, and then takes the second, because it
/// knows nothing of the producer and so of no sequence.
pub(super) fn only_later_ones_confirmed(pending: PendingConfirm) {
    pending.fail(Kind::Unknown, "the broker confirmed only what came after it", None);
}

/// What to tell of a record that librdkafka did not take; nothing was sent.
pub(super) fn refuse(code: Code) -> (Kind, &'static str) {
    match verdict(code) {
        (Kind::Unknown, _) => (Kind::NotSent, "librdkafka did not take it"),
        (Kind::TooLarge, _) => (Kind::TooLarge, "larger than message_max_bytes"),
        known => known,
    }
}

/// The code as an error, in librdkafka's words.
pub(super) fn answer(code: Code) -> KafkaError {
    KafkaError::of_code(code, code.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_the_fate_open_is_unknown() {
        for code in [
            Code::MessageTimedOut,
            Code::PurgeQueue,
            Code::PurgeInflight,
            Code::Fatal,
            Code::BrokerTransportFailure,
            Code::RequestTimedOut,
            Code::NotEnoughReplicasAfterAppend,
            Code::OutOfOrderSequenceNumber,
            Code::KafkaStorageError,
            Code::Unknown,
        ] {
            assert_eq!(verdict(code).0, Kind::Unknown, "{code:?}");
            assert_eq!(refuse(code).0, Kind::NotSent, "{code:?}");
        }
    }

    #[test]
    fn what_the_broker_says_of_a_record_has_its_kind() {
        for (code, kind) in [
            (Code::MessageSizeTooLarge, Kind::TooLarge),
            (Code::MessageBatchTooLarge, Kind::TooLarge),
            (Code::UnknownTopic, Kind::Unroutable),
            (Code::UnknownTopicOrPartition, Kind::Unroutable),
            (Code::UnknownPartition, Kind::Unroutable),
            (Code::TopicAuthorizationFailed, Kind::Refused),
            (Code::PolicyViolation, Kind::Refused),
            (Code::InvalidTopic, Kind::Invalid),
        ] {
            assert_eq!((verdict(code).0, refuse(code).0), (kind, kind), "{code:?}");
        }
    }
}
