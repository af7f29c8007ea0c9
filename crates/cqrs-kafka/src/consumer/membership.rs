//! The membership of a session in its group: why it waits, which errors end it, and the status to report. Part of the
//! [`session`](super::session).

use std::sync::Arc;

use cqrs_core::broker::BrokerState;
use cqrs_core::consume::{SourceStatus, SubscribeErrorKind};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::context::ReportedError;
use super::plan::Plan;
use crate::error::{KafkaError, of_code};

#[derive(Debug, Default)]
pub(super) struct Membership {
    /// Set from an assignment until it is lost.
    is_member: bool,
    /// The reason why it is no member, as far as librdkafka reported one.
    absence: Option<Arc<str>>,
}

impl Membership {
    pub(super) fn joined(&mut self) {
        *self = Self { is_member: true, absence: None };
    }

    pub(super) fn lost(&mut self) {
        self.is_member = false;
        self.wait("its partitions were lost; it joins the group again");
    }

    pub(super) fn wait(&mut self, reason: impl Into<Arc<str>>) {
        self.absence = Some(reason.into());
    }

    /// Handles an error event of librdkafka. Returns an error that ends the subscription.
    pub(super) fn handle_error(
        &mut self,
        error: ReportedError,
        plan: &Plan,
    ) -> Result<(), (SubscribeErrorKind, KafkaError)> {
        let ReportedError { code, text } = error;
        let subscription = &*plan.request.name;
        let invalid = |text| Err((SubscribeErrorKind::Invalid, KafkaError::config(text)));
        match code {
            code if is_forbidden(code) => {
                return Err((SubscribeErrorKind::Forbidden, of_code(code, text)));
            }
            Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
                tracing::warn!(subscription, "{text}");
                self.wait(text);
            }
            Code::InvalidSessionTimeout => {
                return invalid(format!(
                    "the group refuses session_timeout {:?}: it must be within the broker's \
                     group.min.session.timeout.ms and group.max.session.timeout.ms ({text})",
                    plan.subscription.session_timeout
                ));
            }
            Code::InvalidGroupId => {
                return invalid(format!("the group's name is refused: {text}"));
            }
            Code::InconsistentGroupProtocol => {
                let assignors = plan.assignors();
                let reason = format!(
                    "the group refuses this member: the other members use other assignors than \
                     {assignors} ({text})"
                );
                self.wait_for_group(reason, subscription);
            }
            Code::GroupMaxSizeReached => {
                let reason = format!("the group has as many members as it may have ({text})");
                self.wait_for_group(reason, subscription);
            }
            Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve => {}
            _ => tracing::warn!(subscription, error = %code, "{text}"),
        }
        Ok(())
    }

    /// The group refuses this member as long as its other members stay as they are. Logged once.
    fn wait_for_group(&mut self, reason: String, subscription: &str) {
        if self.absence.as_deref() != Some(&*reason) {
            tracing::warn!(subscription, "{reason}; it tries to join again");
            self.wait(reason);
        }
    }

    /// The status to report, by the state of the connection and the reason why a bound is full.
    pub(super) fn status(
        &self,
        connection: BrokerState,
        full_bound: impl FnOnce() -> Option<Arc<str>>,
    ) -> Option<SourceStatus> {
        Some(match connection {
            BrokerState::Ready if self.is_member => match full_bound() {
                None => SourceStatus::Consuming,
                Some(reason) => SourceStatus::Full { reason },
            },
            BrokerState::Ready => SourceStatus::Connecting { last_error: self.absence.clone() },
            BrokerState::Disconnected { last_error } => SourceStatus::Disconnected { last_error },
            BrokerState::Connecting { last_error } => SourceStatus::Connecting { last_error },
            _ => return None,
        })
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
