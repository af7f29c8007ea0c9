//! The rule by which `?` and a panic make a [`HandlerError`] of a mediator's error permanent.

use std::error::Error;
use std::fmt;

use super::error::{CommittedBelow, EventSendError, SendError};
use super::nesting::committed_below;
use crate::broker::PublishError;
use crate::dispatch::EventsError;
use crate::event::{Class, HandlerError};
use crate::scope::TransactionEnded;

impl HandlerError {
    /// The error of a handler's panic, by its text. Many panics are an `unwrap` of a passing failure, so it
    /// is retryable, unless a nested send committed its work.
    pub(crate) fn panicked(text: String) -> Self {
        let text = format!("panicked: {text}");
        if committed_below() {
            let error = EventSendError::FailedAfterCommit(text);
            return Self::new(Class::Permanent, "panic", error.into());
        }
        Self::new(Class::Panicked, "panic", text.into())
    }
}

/// `Unpin` keeps out the errors that derive `IntoHandlerError`, which are not. They have an impl of their own.
impl<E: Error + Send + Sync + Unpin + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        classed(error, false)
    }
}

/// `error` as a handler's error: permanent if `permanent` is set, or if it is about committed work.
pub fn classed<E: Error + Send + Sync + 'static>(error: E, permanent: bool) -> HandlerError {
    match permanent || is_permanent(&error) {
        true => HandlerError::permanent(error),
        false => HandlerError::retryable(error),
    }
}

impl<T, E> SendError<T, E>
where
    T: Send + Sync + 'static,
    E: fmt::Debug + fmt::Display + Send + Sync + 'static,
    HandlerError: From<E>,
{
    /// The error of an event handler that sent the request: the handler's own error has the class of its type
    /// (`IntoHandlerError`), any other the class that `?` gives it.
    pub fn into_handler_error(self) -> HandlerError {
        match self {
            Self::Handler(error) => error.into(),
            other => classed(other, false),
        }
    }
}

/// `true` if an error, or one of its causes, is a mediator's error that a retry cannot fix: the work is
/// committed and only its events are missing, its transaction ended too early, or handlers of an event failed permanently.
pub(crate) fn is_permanent(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let events = match error.downcast_ref::<EventSendError>() {
            Some(SendError::Handler(events) | SendError::Events(events)) => Some(events),
            _ => error.downcast_ref::<EventsError>(),
        };
        let publish = error.downcast_ref::<PublishError>();
        if publish.is_some_and(PublishError::is_after_commit)
            || error.is::<CommittedBelow>()
            || error.is::<TransactionEnded>()
            || events.is_some_and(|events| !events.is_retryable())
        {
            return true;
        }
        next = error.source();
    }
    false
}
