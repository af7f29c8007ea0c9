//! The event handler trait, its error, and the type-erased twin that maps hold.

use std::any::{Any, TypeId, type_name};
use std::error::Error;
use std::fmt;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::Arc;

use super::Event;
use super::place::{Ended, HandlerPlace, Place};
use crate::broker::BoxFuture;
use crate::dispatch::{boxed, caught_panic};
use crate::error::debug_error;
use crate::scope::Scope;

/// Reacts to one type of event. A plain struct that holds its dependencies.
///
/// For a notification bind either the payload type, or [`NotificationEvent`](super::NotificationEvent)
/// of it to see id, time and topic too.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle the event `{E}`: write `impl EventHandler<{E}> for {Self}`",
    label = "not a handler of `{E}`",
    note = "its function is \
            `async fn handle(&self, event: &{E}, scope: &mut Scope) -> Result<(), HandlerError>`"
)]
pub trait EventHandler<E: Event>: Send + Sync + 'static {
    /// Handles one event. Events that it emits are handled after all handlers of this round, unless it
    /// fails.
    ///
    /// # Errors
    /// `?` turns any error into a retryable [`HandlerError`], except a mediator's error about committed
    /// work and a type that derives `IntoHandlerError`; [`permanent`](HandlerResultExt::permanent) marks one
    /// that retrying cannot fix.
    ///
    /// # Cancel safety
    /// The caller may drop the future at any await; the scope's unit of work is rolled back then.
    fn handle(
        &self,
        event: &E,
        scope: &mut Scope,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// The error of an event handler, and whether a retry may help.
///
/// # The class of an error
/// Any error becomes one by `?`, as retryable; [`permanent`](HandlerResultExt::permanent) marks one at its
/// place. At its type, `#[derive(IntoHandlerError)]` does, for each variant, and `?` honours it:
///
/// ```
/// # use cqrs_core as cqrs;
/// # use cqrs_macros::IntoHandlerError;
/// # use cqrs_core::HandlerError;
/// #[derive(Debug, thiserror::Error, IntoHandlerError)]
/// # #[cqrs(crate = "::cqrs_core")]
/// enum MailError {
///     #[error("{0} is no address")]
///     #[cqrs(permanent)]
///     NoAddress(String),
///     #[error("the mail server does not answer")]
///     Away(#[from] std::io::Error),
/// }
///
/// fn send_to(address: &str) -> Result<(), MailError> {
///     match address.contains('@') {
///         true => Err(std::io::Error::other("timed out"))?,
///         false => Err(MailError::NoAddress(address.to_owned())),
///     }
/// }
/// fn handle(address: &str) -> Result<(), HandlerError> {
///     send_to(address)?;
///     Ok(())
/// }
/// assert!(handle("ada@example.org").unwrap_err().is_retryable());
/// assert!(!handle("nowhere").unwrap_err().is_retryable());
/// ```
///
/// # Committed work
/// There is one exception: an error of a mediator after which the
/// work must not run again ([`SendError::Undelivered`](crate::SendError::Undelivered): it is committed, its
/// events are not published; [`SendError::HandlerAfterCommit`](crate::SendError::HandlerAfterCommit) and
/// [`SendError::FailedAfterCommit`](crate::SendError::FailedAfterCommit): so is that of a request below it;
/// or a permanent failure of the handlers of an event), itself or among the causes of another error, is
/// permanent. It is not recognised if an event handler turns such an error into text, or if a command
/// handler sends from another task. `map_err(HandlerError::retryable)` before the `?` makes it retryable:
/// the handler then runs again, and so does the request that it sends.
///
/// Like `anyhow::Error` it does not implement `std::error::Error`; the inner error is at
/// [`source`](Self::source).
pub struct HandlerError(Box<Inner>);

/// Boxed, so that the result of a handler is one word.
struct Inner {
    class: Class,
    type_name: &'static str,
    source: Box<dyn Error + Send + Sync>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Retryable,
    Permanent,
    Panicked,
}

impl HandlerError {
    /// A failure that may pass, so a retry may help. Takes errors and texts.
    pub fn retryable<S: Into<Box<dyn Error + Send + Sync>>>(source: S) -> Self {
        Self::new(Class::Retryable, type_name::<S>(), source.into())
    }

    /// A failure that retrying cannot fix. Takes errors and texts.
    pub fn permanent<S: Into<Box<dyn Error + Send + Sync>>>(source: S) -> Self {
        Self::new(Class::Permanent, type_name::<S>(), source.into())
    }

    pub(crate) fn new(
        class: Class,
        type_name: &'static str,
        source: Box<dyn Error + Send + Sync>,
    ) -> Self {
        Self(Box::new(Inner { class, type_name, source }))
    }

    /// `true` if a retry may help.
    pub fn is_retryable(&self) -> bool {
        self.0.class != Class::Permanent
    }

    /// `true` if the handler panicked, and a retry may help.
    pub fn is_panic(&self) -> bool {
        self.0.class == Class::Panicked
    }

    /// The type of the inner error, as Rust names it; a dead letter carries it.
    pub fn type_name(&self) -> &'static str {
        self.0.type_name
    }

    /// The inner error.
    pub fn source(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0.source
    }

    /// The inner error, by value.
    pub fn into_source(self) -> Box<dyn Error + Send + Sync> {
        self.0.source
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.source.fmt(f)
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_error(&*self.0.source, f, &format!("{:?}", self.0.class), &[])
    }
}

/// Marks errors as permanent on their way through `?`.
pub trait HandlerResultExt<T> {
    /// Turns the error, if there is one, into a permanent [`HandlerError`].
    ///
    /// # Errors
    /// The same error, marked as permanent.
    fn permanent(self) -> Result<T, HandlerError>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> HandlerResultExt<T> for Result<T, E> {
    fn permanent(self) -> Result<T, HandlerError> {
        self.map_err(HandlerError::permanent)
    }
}

/// The dyn-safe twin of [`EventHandler`].
pub(crate) trait DynEventHandler: Send + Sync {
    /// `event` is of the type the handler is bound to.
    fn handle<'a>(
        &'a self,
        event: &'a (dyn Any + Send + Sync),
        scope: &'a mut Scope,
    ) -> BoxFuture<'a, Result<(), HandlerError>>;

    /// A place for its runs. `None` if its future is large.
    fn place(self: Arc<Self>) -> Option<Box<dyn HandlerPlace>>;
}

pub(crate) struct Typed<E, H>(pub(crate) H, pub(crate) PhantomData<fn(E)>);

impl<E: Event, H: EventHandler<E>> DynEventHandler for Typed<E, H> {
    fn handle<'a>(
        &'a self,
        event: &'a (dyn Any + Send + Sync),
        scope: &'a mut Scope,
    ) -> BoxFuture<'a, Result<(), HandlerError>> {
        match event.downcast_ref::<E>() {
            Some(event) => boxed(|| self.0.handle(event, scope)),
            None => Box::pin(async { Err(wrong_event::<E>()) }),
        }
    }

    fn place(self: Arc<Self>) -> Option<Box<dyn HandlerPlace>> {
        let place = Place::new(self, |this, event, mut scope| async move {
            // Dropped, the block drops what it captures in the order in which it names it: the scope, which rolls back,
            // before the event.
            let in_use = &mut scope;
            let handled = match event.argument(TypeId::of::<E>()).and_then(|of| of.downcast_ref()) {
                Some(event) => {
                    let run = pin!(async { this.0.handle(event, in_use).await });
                    caught_panic(|| run)
                        .await
                        .unwrap_or_else(|panic| Err(HandlerError::panicked(panic.into_text())))
                }
                None => Err(wrong_event::<E>()),
            };
            (this, Ended { handled, event, scope })
        })?;
        Some(Box::new(place))
    }
}

fn wrong_event<E>() -> HandlerError {
    HandlerError::permanent(format!("got an event that is no {}", type_name::<E>()))
}

/// An event handler that is built for each call.
pub(crate) struct BuiltEvent<F>(pub(crate) F);

impl<E: Event, H: EventHandler<E>, F> EventHandler<E> for BuiltEvent<F>
where
    F: Fn(&Scope) -> H + Send + Sync + 'static,
{
    async fn handle(&self, event: &E, scope: &mut Scope) -> Result<(), HandlerError> {
        let handler = (self.0)(scope);
        handler.handle(event, scope).await
    }
}
