//! The failure of one attempt, and how the retry schedule treats it.

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use super::held_events::HeldEvents;
use crate::consume::DeadLetterReason;
use crate::consume::support::error_chain;
use crate::dispatch::EventsError;
use crate::event::HandlerError;
use crate::mediator::{CommittedBelow, EventSendError, SendError, committed_below, is_permanent};
use crate::scope::UnitOfWorkError;

/// The failure of one attempt, as the retry schedule and the dead letter need it. Boxed, because most
/// results have none.
#[derive(Debug)]
pub(crate) struct AttemptFailure(Box<Facts>);

#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) class: FailureClass,
    pub(crate) error_type: String,
    pub(crate) error: String,
    /// The events to be published before the ack. The handler succeeded.
    held: Option<HeldEvents>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureClass {
    Retryable,
    Permanent,
    Panicked,
    /// Not tried, so not a failed attempt: the mediator is shut down, or a decoder's service or the inbox's
    /// database is away.
    NotTried,
}

impl AttemptFailure {
    fn new(class: FailureClass, error_type: &str, error: impl Into<String>) -> Self {
        let (error_type, error) = (error_type.to_owned(), error.into());
        Self(Box::new(Facts { class, error_type, error, held: None }))
    }

    pub(crate) fn retryable(error_type: &str, error: impl Into<String>) -> Self {
        Self::new(FailureClass::Retryable, error_type, error)
    }

    pub(crate) fn permanent(error_type: &str, error: impl Into<String>) -> Self {
        Self::new(FailureClass::Permanent, error_type, error)
    }

    /// The panic of code that runs in a send or in [`track_commits`](crate::mediator::track_commits).
    pub(crate) fn panicked(text: &str) -> Self {
        Self::of_panic(text, committed_below())
    }

    /// `committed` is set if the code sent a request that is committed and must not be sent again.
    pub(crate) fn of_panic(text: &str, committed: bool) -> Self {
        let text = format!("panicked: {text}");
        match committed {
            true => Self::permanent("panic", format!("{text}: {CommittedBelow}")),
            false => Self::new(FailureClass::Panicked, "panic", text),
        }
    }

    /// The service that a decoder or an inbox needs is away.
    pub(crate) fn not_tried(error_type: &str, error: impl Into<String>) -> Self {
        Self::new(FailureClass::NotTried, error_type, error)
    }

    /// The handler's work is committed, and events of it cannot be published.
    pub(crate) fn undelivered(error: impl Into<String>) -> Self {
        Self::permanent("Undelivered", error)
    }

    /// The handler's work is committed, and `events` of it are not published.
    pub(crate) fn held(events: HeldEvents) -> Self {
        let mut failure = Self::undelivered(events.cause());
        failure.0.held = Some(events);
        failure
    }

    /// The unpublished events, if the handler succeeded.
    pub(super) fn take_held(&mut self) -> Option<HeldEvents> {
        self.0.held.take()
    }

    pub(crate) fn timeout(limit: Duration) -> Self {
        Self::retryable("Timeout", format!("the handler took longer than {limit:?}"))
    }

    /// The failure of a middleware that stopped the call; `text` is its error as logged.
    pub(crate) fn rejected(reason: &(dyn Error + 'static), text: String) -> Self {
        match is_permanent(reason) {
            true => Self::permanent("Rejected", text),
            false => Self::retryable("Rejected", text),
        }
    }

    /// The reason of the dead letter if there is no further attempt.
    pub(crate) fn reason(&self) -> DeadLetterReason {
        match self.class {
            FailureClass::Permanent => DeadLetterReason::Permanent,
            FailureClass::Panicked => DeadLetterReason::Panic,
            FailureClass::Retryable | FailureClass::NotTried => DeadLetterReason::Exhausted,
        }
    }

    /// The failure of a mediator's error other than `Undelivered`.
    pub(crate) fn of_mediator(error: &EventSendError) -> Self {
        match error {
            SendError::Handler(error)
            | SendError::HandlerAfterCommit(error)
            | SendError::Events(error) => Self::of_events(error),
            SendError::Panicked(text) => Self::panicked(text),
            SendError::FailedAfterCommit(_) => {
                Self::permanent("FailedAfterCommit", error_chain(error))
            }
            SendError::ShutDown => {
                Self::new(FailureClass::NotTried, "ShutDown", error_chain(error))
            }
            SendError::Rejected(reason) => Self::rejected(&**reason, error_chain(error)),
            SendError::UnitOfWork(UnitOfWorkError::Ended(_)) => {
                Self::permanent("UnitOfWorkError", error_chain(error))
            }
            SendError::UnitOfWork(_) => Self::retryable("UnitOfWorkError", error_chain(error)),
            SendError::Interrupted => Self::retryable("Interrupted", error_chain(error)),
            SendError::NoHandler { .. } => Self::permanent("NoHandler", error_chain(error)),
            SendError::NoResponse => Self::permanent("NoResponse", error_chain(error)),
            SendError::NoBroker { .. } => Self::permanent("NoBroker", error_chain(error)),
            SendError::Serialize(_) => Self::permanent("SerializeError", error_chain(error)),
            SendError::Undelivered(_) => Self::undelivered(error_chain(error)),
            SendError::ScopeInUse => Self::permanent("ScopeInUse", error_chain(error)),
            SendError::TooDeep { .. } => Self::permanent("TooDeep", error_chain(error)),
            SendError::NoRuntime => Self::permanent("NoRuntime", error_chain(error)),
        }
    }

    fn of_events(error: &EventsError) -> Self {
        let EventsError::Failed(failures) = error else {
            return Self::permanent("EventsError", error_chain(error));
        };
        let texts = failures.iter().map(|failure| {
            format!(
                "{} on {}: {}",
                failure.handler,
                failure.event,
                error_chain(failure.error.source())
            )
        });
        let text = texts.collect::<Vec<_>>().join("; ");
        let first = failures.first().map_or("EventsError", |failure| failure.error.type_name());
        let class = match failures.iter().all(|failure| failure.error.is_panic()) {
            true if !failures.is_empty() => FailureClass::Panicked,
            _ if error.is_retryable() => FailureClass::Retryable,
            _ => FailureClass::Permanent,
        };
        Self::new(class, first, text)
    }
}

impl From<HandlerError> for AttemptFailure {
    fn from(error: HandlerError) -> Self {
        let class = match error.is_retryable() {
            _ if error.is_panic() => FailureClass::Panicked,
            true => FailureClass::Retryable,
            false => FailureClass::Permanent,
        };
        Self::new(class, error.type_name(), error_chain(error.source()))
    }
}

impl Deref for AttemptFailure {
    type Target = Facts;

    fn deref(&self) -> &Facts {
        &self.0
    }
}

impl fmt::Display for AttemptFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::TransactionEnded;

    #[test]
    fn message_of_a_transaction_that_ended_is_dead_lettered() {
        let error =
            || EventSendError::UnitOfWork(UnitOfWorkError::Ended(TransactionEnded::new("DDL")));
        let failure = AttemptFailure::of_mediator(&error());
        assert_eq!(failure.reason(), DeadLetterReason::Permanent);
        assert!(!HandlerError::from(error()).is_retryable(), "that of a nested send");
        let refused = EventSendError::UnitOfWork(UnitOfWorkError::Commit("deadlock".into()));
        assert_eq!(AttemptFailure::of_mediator(&refused).reason(), DeadLetterReason::Exhausted);
    }
}
