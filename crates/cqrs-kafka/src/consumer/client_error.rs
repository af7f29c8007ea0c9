//! The consequences of an error of librdkafka's consumer for the subscription. Used by the
//! [`session`](super::session).

use cqrs_core::consume::SubscribeErrorKind;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::context::ClientError;
use super::plan::Plan;
use crate::error::KafkaError;

#[derive(Debug)]
pub(super) enum Reaction {
    /// The subscription cannot continue.
    Fail(SubscribeErrorKind, KafkaError),
    /// A topic is missing.
    MissingTopic(String),
    /// The group refuses this member as long as its other members stay as they are, for this reason.
    WaitForGroup(String),
    /// Only logged.
    Log(Code, String),
    Ignore,
}

pub(super) fn react(error: ClientError, plan: &Plan) -> Reaction {
    let ClientError { code, text } = error;
    if is_forbidden(code) {
        return Reaction::Fail(SubscribeErrorKind::Forbidden, KafkaError::of_code(code, text));
    }
    match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            Reaction::MissingTopic(text)
        }
        Code::InvalidSessionTimeout => {
            let text = format!(
                "the group refuses session_timeout {:?}: it must be within the broker's \
                 group.min.session.timeout.ms and group.max.session.timeout.ms ({text})",
                plan.subscription.session_timeout
            );
            Reaction::Fail(SubscribeErrorKind::Invalid, KafkaError::config(text))
        }
        Code::InvalidGroupId => {
            let error = KafkaError::config(format!("the group's name is refused: {text}"));
            Reaction::Fail(SubscribeErrorKind::Invalid, error)
        }
        Code::InconsistentGroupProtocol => Reaction::WaitForGroup(format!(
            "the group refuses this member: the other members use other assignors than {} ({text})",
            plan.assignors()
        )),
        Code::GroupMaxSizeReached => {
            Reaction::WaitForGroup(format!("the group has as many members as it may have ({text})"))
        }
        Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve => Reaction::Ignore,
        _ => Reaction::Log(code, text),
    }
}

/// Returns whether the principal lacks a right, so that a retry does not help.
pub(super) fn is_forbidden(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
    )
}
