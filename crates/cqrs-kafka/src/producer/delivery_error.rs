//! librdkafka's errors of a record as publish errors. Used wherever the producer fails a message.

use cqrs_core::broker::{PendingConfirm, PublishErrorKind as Kind};
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::error::{ErrorKind, KafkaError, of_code};

const NO_RIGHT: &str = "the principal may not write to the topic, or not create it; check its ACLs";

/// The kind of the error of a record that failed with `code`, and its text.
///
/// The rdkafka crate does not show whether librdkafka ever wrote a record, so a code that leaves this open is
/// [`Unknown`](Kind::Unknown).
fn classify(code: Code) -> (Kind, &'static str) {
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => (
            Kind::TooLarge,
            "the broker takes no record this large; raise max.message.bytes of the topic",
        ),
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownTopicId => (
            Kind::Unroutable,
            "the topic does not exist, or this principal may not see it; create the topic, allow its \
             creation in the broker and in `allow_auto_create_topics`, or check the ACLs",
        ),
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

/// Fails a record that was not written, since the broker refuses the principal.
pub(super) fn fail_unauthorized(pending: PendingConfirm, refusal: KafkaError) {
    pending.fail(Kind::Refused, NO_RIGHT, Some(refusal.into()));
}

/// Fails a record that librdkafka failed. `cause` is the last error of the connection.
pub(super) fn fail(pending: PendingConfirm, code: Code, cause: Option<KafkaError>) {
    if let (Code::PurgeQueue | Code::Fatal, Some(cause)) = (code, &cause)
        && cause.kind() == ErrorKind::Authorization
    {
        return fail_unauthorized(pending, cause.clone());
    }
    let (kind, detail) = classify(code);
    let source = match (kind, cause) {
        (Kind::Unknown, Some(cause)) => cause,
        _ => to_error(code),
    };
    pending.fail(kind, detail, Some(source.into()));
}

/// Fails a record with an implicit ack: librdkafka assumes that it was written, because a later batch of its
/// partition was confirmed. The broker returned no offset.
///
/// librdkafka 2.12 (`rd_kafka_dr_implicit_ack`) is wrong on a new partition. Its leader may refuse the first batch
/// because it is not ready yet, and then take the second, because it has no sequence of this producer.
pub(super) fn fail_implicit_ack(pending: PendingConfirm) {
    pending.fail(Kind::Unknown, "the broker confirmed only later records of the partition", None);
}

/// The kind and text of the error of a record that librdkafka did not take. Nothing was sent.
pub(super) fn not_accepted(code: Code) -> (Kind, &'static str) {
    match classify(code) {
        (Kind::Unknown, _) => (Kind::NotSent, "librdkafka did not take it"),
        (Kind::TooLarge, _) => (Kind::TooLarge, "larger than max_message_size"),
        known => known,
    }
}

/// The code as an error, with librdkafka's text.
pub(super) fn to_error(code: Code) -> KafkaError {
    of_code(code, code.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_leaves_the_outcome_open_is_unknown() {
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
            assert_eq!(classify(code).0, Kind::Unknown, "{code:?}");
            assert_eq!(not_accepted(code).0, Kind::NotSent, "{code:?}");
        }
    }

    #[test]
    fn code_of_a_refused_record_has_its_kind() {
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
            assert_eq!((classify(code).0, not_accepted(code).0), (kind, kind), "{code:?}");
        }
    }
}
