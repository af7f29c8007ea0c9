//! The errors of wiring and of running a service.

use super::report::ServiceReport;
use crate::consume::SubscribeError;
use crate::error::listed;
use crate::error_debug;

/// The error of a wrongly wired service; it names all problems.
#[derive(thiserror::Error)]
#[error("the service is wired wrongly: {}", listed(problems))]
pub struct ServiceBuildError {
    pub(super) problems: Vec<ServiceProblem>,
}

/// One mistake in a service's wiring.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ServiceProblem {
    /// The service has no subscription.
    #[error("the service has no subscription: add one with `subscribe`")]
    NoSubscription,
    /// A subscription names no consumer group.
    #[error("subscription {subscription}: it has no group: name one with `group`")]
    NoGroup {
        /// The subscription.
        subscription: String,
    },
    /// A subscription names no topic, or an empty one.
    #[error("subscription {subscription}: a topic's name is missing")]
    NoTopic {
        /// The subscription.
        subscription: String,
    },
    /// A subscription names no type of event.
    #[error(
        "subscription {subscription}: it takes no type of event: name them with `json::<..>()` or `decode`"
    )]
    NoEvents {
        /// The subscription.
        subscription: String,
    },
    /// No handler is bound to a type of the subscription.
    #[error(
        "subscription {subscription}: nothing handles {event}: bind a handler of it in the event \
         mediator, or give a function of it"
    )]
    NoHandler {
        /// The subscription.
        subscription: String,
        /// The event's type.
        event: &'static str,
    },
    /// Two types of one subscription have the same event name.
    #[error(
        "subscription {subscription}: {first} and {second} are both named {name:?}: rename one, or take \
         them in different groups"
    )]
    SameName {
        /// The subscription.
        subscription: String,
        /// The name.
        name: &'static str,
        /// The type named first.
        first: &'static str,
        /// The type named later.
        second: &'static str,
    },
    /// Every message must be of one type, but several types are named.
    #[error(
        "subscription {subscription}: `json_of` and `decode_all` take every message as one type, so it \
         must be the only one"
    )]
    NotTheOnly {
        /// The subscription.
        subscription: String,
    },
    /// An option has an invalid value, or two contradict each other.
    #[error("subscription {subscription}: {detail}")]
    Option {
        /// The subscription.
        subscription: String,
        /// The problem and the remedy.
        detail: &'static str,
    },
    /// Two subscriptions have the same name.
    #[error("two subscriptions are named {subscription}: give one another name with `name`")]
    Twice {
        /// The name.
        subscription: String,
    },
    /// The broker refuses it.
    #[error(transparent)]
    Broker(SubscribeError),
}

impl ServiceBuildError {
    /// The problems; never empty.
    pub fn problems(&self) -> &[ServiceProblem] {
        &self.problems
    }
}

error_debug!(ServiceBuildError);
error_debug!(ServiceProblem);
error_debug!(ServiceError, report);

/// The error of a service that ended without being stopped.
#[derive(thiserror::Error)]
#[error("subscription {subscription} cannot go on: {detail}")]
#[non_exhaustive]
pub struct ServiceError {
    /// The subscription that failed first.
    pub subscription: String,
    /// The error, with its causes.
    pub detail: String,
    /// The report of all subscriptions.
    pub report: ServiceReport,
}
