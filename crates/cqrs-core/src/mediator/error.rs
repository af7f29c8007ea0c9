//! The error of a send, returned by both mediators.

use std::error::Error;
use std::fmt;

use crate::codec::SerializeError;
use crate::consume::support::error_chain;
use crate::dispatch::{EventsError, FinishError, Undelivered};
use crate::scope::UnitOfWorkError;

/// The error of a `send`. `T` and `E` are the request's response and error.
///
/// The unit of work was rolled back and nothing was published, unless
/// [`is_rolled_back`](Self::is_rolled_back) is `false`.
///
/// # As an HTTP status
/// The handler's own errors are the application's to map. Of the others it matters whether the client may send
/// the request again: 503 invites it to, 500 does not. A mapping that fits most services:
///
/// ```
/// use cqrs_core::SendError;
///
/// /// The status of a failed send; `of_handler` maps the errors of the request's own type.
/// fn status<T, E>(error: &SendError<T, E>, of_handler: impl Fn(&E) -> u16) -> u16 {
///     match error {
///         // 404, 409, 422: the application's own.
///         SendError::Handler(error) => of_handler(error),
///         // A middleware's: 401, 403 or 429 by `reason.downcast_ref`, if there are several.
///         SendError::Rejected(_reason) => 403,
///         // The work is committed: answer with `undelivered.response`, and publish `undelivered.events`
///         // again, or store them.
///         SendError::Undelivered(_undelivered) => 202,
///         // Nothing was done, and another instance, or this one later, can do it: with `Retry-After`.
///         SendError::ShutDown => 503,
///         SendError::UnitOfWork(_) if error.is_rolled_back() => 503,
///         // A defect, or an unknown outcome: not to be sent again.
///         _ => 500,
///     }
/// }
///
/// enum SignUpError { NameTaken }
/// let taken = SendError::<u64, _>::Handler(SignUpError::NameTaken);
/// assert_eq!(status(&taken, |SignUpError::NameTaken| 409), 409);
/// assert_eq!(status(&SendError::<u64, SignUpError>::ShutDown, |_| 500), 503);
/// ```
///
/// # In an event handler
/// `?` makes it a [`HandlerError`](crate::HandlerError): permanent if work was committed that a retry would do
/// again, else retryable. Where `E` derives `IntoHandlerError`, write
/// `.map_err(SendError::into_handler_error)?`: the class of `E` is kept then.
#[non_exhaustive]
pub enum SendError<T, E> {
    /// The handler returned its own error.
    Handler(E),
    /// The handler returned its own error, after a request that it sent ended as
    /// [`Undelivered`](Self::Undelivered), or as this. The work of this send is rolled back; the other
    /// one's is committed and would be done twice if this request were sent again.
    HandlerAfterCommit(E),
    /// As [`HandlerAfterCommit`](Self::HandlerAfterCommit), but this send ended with another failure, with
    /// this text: a panic or a failed commit, say.
    FailedAfterCommit(String),
    /// No handler is bound to this type.
    NoHandler {
        /// The type.
        request: &'static str,
    },
    /// A middleware stopped the call.
    Rejected(Box<dyn Error + Send + Sync>),
    /// A middleware returned `Ok`, but neither ran the handler nor responded.
    NoResponse,
    /// The handler, a middleware or a serializer panicked, with this text.
    Panicked(String),
    /// Handlers of the domain events failed.
    Events(EventsError),
    /// A notification was emitted, but the mediator has neither a broker nor an outbox.
    NoBroker {
        /// The notification's name.
        event: String,
    },
    /// A notification could not be serialized.
    Serialize(SerializeError),
    /// The unit of work could not be committed.
    UnitOfWork(UnitOfWorkError),
    /// The work is committed, but the broker did not confirm all events. Do not send the request again:
    /// [`publish_again`](Undelivered::publish_again), or store the events. Each event is logged, at `error`.
    Undelivered(Box<Undelivered<T>>),
    /// The mediator is shut down; nothing was done, or what was done is rolled back.
    ShutDown,
    /// The scope given to `send_in` belongs to another `send`: a handler cannot pass on its own scope.
    ScopeInUse,
    /// Sends inside handlers or middlewares are nested deeper than the limit (32). Nothing was done.
    TooDeep {
        /// The limit.
        depth: usize,
    },
    /// There is no tokio runtime to commit and publish in.
    NoRuntime,
    /// The tokio runtime stopped during commit or publishing: the outcome is unknown.
    Interrupted,
}

/// The error of a consumed event that was not handled.
pub type EventSendError = SendError<(), EventsError>;

impl<T, E> SendError<T, E> {
    /// `true` if nothing was done for certain: the unit of work is rolled back and nothing was published,
    /// so the request may be sent again. `false`: it was done ([`Undelivered`](Self::Undelivered)), a part
    /// of it was ([`HandlerAfterCommit`](Self::HandlerAfterCommit),
    /// [`FailedAfterCommit`](Self::FailedAfterCommit)), or the outcome is unknown.
    pub fn is_rolled_back(&self) -> bool {
        !matches!(
            self,
            Self::Undelivered(_)
                | Self::HandlerAfterCommit(_)
                | Self::FailedAfterCommit(_)
                | Self::Interrupted
                | Self::UnitOfWork(UnitOfWorkError::CommitUnknown(_) | UnitOfWorkError::Ended(_))
        )
    }

    /// The handler's own error, if it is one.
    ///
    /// # Errors
    /// `self`, if it is another error.
    pub fn into_handler(self) -> Result<E, Self> {
        match self {
            Self::Handler(error) | Self::HandlerAfterCommit(error) => Ok(error),
            other => Err(other),
        }
    }

    pub(super) fn from_finish(error: FinishError) -> Self {
        match error {
            FinishError::Events(error) => Self::Events(error),
            FinishError::ShutDown => Self::ShutDown,
            FinishError::NoBroker { event } => Self::NoBroker { event },
            FinishError::Serialize(error) => Self::Serialize(error),
            FinishError::Panicked(text) => Self::Panicked(text),
            FinishError::UnitOfWork(error) => Self::UnitOfWork(error),
            FinishError::NoRuntime => Self::NoRuntime,
            FinishError::Interrupted => Self::Interrupted,
        }
    }
}

impl<T, E> From<Undelivered<T>> for SendError<T, E> {
    fn from(undelivered: Undelivered<T>) -> Self {
        Self::Undelivered(Box::new(undelivered))
    }
}

impl<T, E: fmt::Display> SendError<T, E> {
    /// The error of this send after a nested send committed its work without publishing the events. Errors
    /// of handlers and middlewares are unchanged: they decide themselves whether a retry may help.
    pub(super) fn after_commit(self) -> Self {
        match self {
            Self::Handler(_)
            | Self::HandlerAfterCommit(_)
            | Self::FailedAfterCommit(_)
            | Self::Events(_)
            | Self::Rejected(_)
            | Self::Undelivered(_) => self,
            Self::UnitOfWork(error) => Self::FailedAfterCommit(error_chain(&error)),
            Self::Serialize(error) => Self::FailedAfterCommit(error_chain(&error)),
            other => Self::FailedAfterCommit(other.to_string()),
        }
    }
}

impl<T, E: fmt::Display> fmt::Display for SendError<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handler(error) | Self::HandlerAfterCommit(error) => error.fmt(f),
            Self::FailedAfterCommit(text) => f.write_str(text),
            Self::NoHandler { request } => {
                write!(f, "no handler is bound to {request}: bind one when the mediator is built")
            }
            Self::Rejected(_) => f.write_str("a middleware stopped the call"),
            Self::NoResponse => {
                f.write_str("a middleware returned Ok without running the handler or responding")
            }
            Self::Panicked(text) => write!(f, "panicked: {text}"),
            Self::Events(error) => error.fmt(f),
            Self::NoBroker { event } => write!(
                f,
                "{event} was emitted, but the mediator has no broker: give its builder one with \
                 `broker(..)`, or a DevnullMessageBroker, or an outbox with `outbox(..)`"
            ),
            Self::Serialize(error) => error.fmt(f),
            Self::UnitOfWork(error) => error.fmt(f),
            Self::Undelivered(undelivered) => undelivered.fmt(f),
            Self::ShutDown => f.write_str("the mediator is shut down"),
            Self::ScopeInUse => {
                f.write_str("the scope belongs to another send already: give `send_in` a new one")
            }
            Self::TooDeep { depth } => {
                write!(
                    f,
                    "handlers or middlewares that send are nested {depth} deep, the limit: is there a loop?"
                )
            }
            Self::NoRuntime => {
                f.write_str("there is no tokio runtime to commit and publish in; nothing was done")
            }
            Self::Interrupted => f.write_str(
                "the runtime stopped during commit or publishing, the outcome is unknown",
            ),
        }
    }
}

crate::error_debug!(SendError<T, E>);

impl<T, E: fmt::Debug + fmt::Display> Error for SendError<T, E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Rejected(error) => Some(&**error),
            Self::HandlerAfterCommit(_) | Self::FailedAfterCommit(_) => Some(&CommittedBelow),
            // Itself, not its source: it decides whether a retry may help.
            Self::Events(error) => Some(error),
            Self::Serialize(error) => error.source(),
            Self::UnitOfWork(error) => error.source(),
            Self::Undelivered(undelivered) => undelivered.source(),
            _ => None,
        }
    }
}

/// The cause of [`SendError::HandlerAfterCommit`] and [`SendError::FailedAfterCommit`].
#[derive(Debug, thiserror::Error)]
#[error(
    "a request that the handler sent is committed, but its events are not published: do not send the \
     request again"
)]
pub(crate) struct CommittedBelow;
