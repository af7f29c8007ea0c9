//! The middlewares that run around every request and every consumed event, and the call they see.

use std::any::{Any, TypeId};
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::broker::BoxFuture;
use crate::dispatch::boxed;
use crate::request::RequestKind;
use crate::scope::Scope;

/// Runs around every request of a mediator, or every consumed event of an event mediator.
///
/// The first one added is the outermost. They run around the handler; domain events, the commit and the
/// publishing follow after the outermost one returned `Ok`. If the handler fails or is cancelled, or a
/// middleware rejects, the handler's work is rolled back immediately, even if an outer middleware recovers.
///
/// ```
/// use cqrs_core::{Invocation, Middleware, Next, Outcome};
///
/// struct LogRequests;
///
/// impl Middleware for LogRequests {
///     async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
///         let name = call.name().to_owned();
///         let outcome = next.run(call).await;
///         println!("{name}: the handler {}", if outcome.is_ok() { "succeeded" } else { "failed" });
///         outcome
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a middleware: write `impl Middleware for {Self}`",
    label = "not a middleware",
    note = "its function is `async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome`, \
            which runs the handler with `next.run(call).await`"
)]
pub trait Middleware: Send + Sync + 'static {
    /// Runs before, around or instead of `next`.
    ///
    /// # Errors
    /// Pass on what `next` returned, or stop the call with [`Failure::rejected`].
    ///
    /// # Cancel safety
    /// The caller may drop the future at any await.
    fn handle(
        &self,
        call: &mut Invocation<'_>,
        next: Next<'_>,
    ) -> impl Future<Output = Outcome> + Send;
}

/// The outcome of a call, as middlewares see it. The typed response is in the [`Invocation`].
pub type Outcome = Result<(), Failure>;

/// The failure of a call, as middlewares see it.
#[derive(Debug)]
pub struct Failure(pub(crate) FailureKind);

#[derive(Debug)]
pub(crate) enum FailureKind {
    /// The handler's own error is in the invocation.
    Handler,
    /// In a box of its own, of one word: so an outcome, which each middleware returns, stays in registers.
    Rejected(Box<Reason>),
}

type Reason = Box<dyn Error + Send + Sync>;

impl Failure {
    /// Stops the call with `reason`; `send` returns it as `SendError::Rejected`.
    pub fn rejected(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(FailureKind::Rejected(Box::new(reason.into())))
    }

    /// The reason why a middleware stopped the call; `None` if the handler failed, whose error is in the
    /// [`Invocation`].
    pub fn reason(&self) -> Option<&(dyn Error + Send + Sync + 'static)> {
        match &self.0 {
            FailureKind::Rejected(reason) => Some(&***reason),
            FailureKind::Handler => None,
        }
    }

    /// `true` if a middleware stopped the call, not the handler.
    pub fn is_rejection(&self) -> bool {
        matches!(self.0, FailureKind::Rejected(_))
    }
}

/// The kind of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvocationKind {
    /// A command or a query.
    Request(RequestKind),
    /// A consumed event.
    Event,
}

/// One call in the middlewares: its name, its scope, and later its response.
pub struct Invocation<'a> {
    kind: InvocationKind,
    name: &'a str,
    scope: &'a mut Scope,
    answer: &'a mut dyn Answer,
}

impl<'a> Invocation<'a> {
    pub(crate) fn new(
        kind: InvocationKind,
        name: &'a str,
        scope: &'a mut Scope,
        answer: &'a mut dyn Answer,
    ) -> Self {
        Self { kind, name, scope, answer }
    }

    /// Command, query or event.
    pub fn kind(&self) -> InvocationKind {
        self.kind
    }

    /// The request's or event's name.
    pub fn name(&self) -> &str {
        self.name
    }

    /// The scope that the handlers and the other middlewares of this call share.
    pub fn scope(&mut self) -> &mut Scope {
        self.scope
    }

    /// The request or the event's payload, if it is a `T`. `None` for a request once its handler runs.
    pub fn input<T: 'static>(&self) -> Option<&T> {
        self.answer.input(TypeId::of::<T>())?.downcast_ref()
    }

    /// The handler's response, if it is a `T`.
    pub fn response<T: 'static>(&self) -> Option<&T> {
        self.answer.result().response()?.downcast_ref()
    }

    /// As [`response`](Self::response), to change it.
    pub fn response_mut<T: 'static>(&mut self) -> Option<&mut T> {
        self.answer.result_mut().response_mut()?.downcast_mut()
    }

    /// The handler's error as text, if it failed.
    pub fn error(&self) -> Option<&dyn fmt::Display> {
        self.answer.result().error()
    }

    /// Responds instead of the handler, or replaces its response. `false` if `T` is not the request's
    /// response type; nothing is changed then. Return `Ok(())` afterwards.
    #[must_use = "`false` means that nothing was answered"]
    pub fn respond<T: Send + 'static>(&mut self, response: T) -> bool {
        let mut response = Some(response);
        self.answer.result_mut().respond(&mut response)
    }
}

impl fmt::Debug for Invocation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invocation")
            .field("kind", &self.kind)
            .field("name", &self.name)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

/// The end of the chain: holds the input, runs the handler once, keeps its result.
pub(crate) trait Answer: Send {
    fn input(&self, input: TypeId) -> Option<&dyn Any>;
    fn run<'a>(&'a mut self, scope: &'a mut Scope) -> BoxFuture<'a, Outcome>;
    /// Rolls back the handler's work and drops its result.
    fn undo<'a>(&'a mut self, scope: &'a mut Scope) -> BoxFuture<'a, ()>;
    fn result(&self) -> &dyn AnyResult;
    fn result_mut(&mut self) -> &mut dyn AnyResult;
}

/// The result of a call of any type, as middlewares see it.
pub(crate) trait AnyResult {
    fn response(&self) -> Option<&dyn Any>;
    fn response_mut(&mut self) -> Option<&mut dyn Any>;
    fn error(&self) -> Option<&dyn fmt::Display>;
    /// `response` is an `Option` of the response type; its value is taken if the type matches.
    fn respond(&mut self, response: &mut dyn Any) -> bool;
}

/// The result of a call: the handler's, or a middleware's response. `None` before that.
pub(crate) struct CallResult<T, E>(pub(crate) Option<Result<T, E>>);

impl<T, E> CallResult<T, E> {
    /// As [`set`](Self::set), with a response. It is written where it stays: a copy of the whole result waits for the
    /// parts of it that were just written.
    pub(crate) fn succeed(&mut self, response: T) -> Outcome {
        self.0 = Some(Ok(response));
        Ok(())
    }

    /// Stores the handler's result, and returns the outcome that middlewares see.
    pub(crate) fn set(&mut self, result: Result<T, E>) -> Outcome {
        let failed = result.is_err();
        self.0 = Some(result);
        match failed {
            true => Err(Failure(FailureKind::Handler)),
            false => Ok(()),
        }
    }
}

impl<T: 'static, E: fmt::Display> AnyResult for CallResult<T, E> {
    fn response(&self) -> Option<&dyn Any> {
        Some(self.0.as_ref()?.as_ref().ok()?)
    }

    fn response_mut(&mut self) -> Option<&mut dyn Any> {
        Some(self.0.as_mut()?.as_mut().ok()?)
    }

    fn error(&self) -> Option<&dyn fmt::Display> {
        Some(self.0.as_ref()?.as_ref().err()?)
    }

    fn respond(&mut self, response: &mut dyn Any) -> bool {
        let response = response.downcast_mut::<Option<T>>().and_then(Option::take);
        let matches = response.is_some();
        if let Some(response) = response {
            self.0 = Some(Ok(response));
        }
        matches
    }
}

/// The rest of the chain: the next middleware, or the handler.
#[must_use = "without running it the handler is not called"]
pub struct Next<'a>(&'a [Arc<dyn DynMiddleware>]);

impl<'a> Next<'a> {
    pub(crate) fn new(chain: &'a [Arc<dyn DynMiddleware>]) -> Self {
        Self(chain)
    }

    /// Runs the next middleware, or the handler.
    ///
    /// # Errors
    /// If the handler failed or a later middleware stopped the call; pass it on.
    #[inline]
    pub fn run<'c>(
        self,
        call: &'c mut Invocation<'_>,
    ) -> impl Future<Output = Outcome> + Send + use<'a, 'c>
    where
        'a: 'c,
    {
        self.boxed(call)
    }

    /// As [`run`](Self::run), with the type of its future.
    #[inline]
    pub(crate) fn boxed(self, call: &'a mut Invocation<'_>) -> BoxFuture<'a, Outcome> {
        match self.0.split_first() {
            Some((first, rest)) => first.handle(call, Next(rest)),
            None => call.answer.run(call.scope),
        }
    }
}

impl fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("middlewares_left", &self.0.len()).finish()
    }
}

/// The dyn-safe twin of [`Middleware`].
pub(crate) trait DynMiddleware: Send + Sync {
    fn handle<'a, 'b: 'a>(
        &'a self,
        call: &'a mut Invocation<'b>,
        next: Next<'a>,
    ) -> BoxFuture<'a, Outcome>;
}

impl<M: Middleware> DynMiddleware for M {
    fn handle<'a, 'b: 'a>(
        &'a self,
        call: &'a mut Invocation<'b>,
        next: Next<'a>,
    ) -> BoxFuture<'a, Outcome> {
        boxed(|| async move {
            // Named in another order than the arguments: two that were just written as words and are copied as a pair
            // cost a stall of the processor.
            let (next, call) = (next, call);
            let outcome = Middleware::handle(self, call, next).await;
            if outcome.as_ref().is_err_and(Failure::is_rejection) {
                // The handler's work is undone before an outer middleware can recover.
                call.answer.undo(call.scope).await;
            }
            outcome
        })
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    #[test]
    fn polled_outcome_is_two_words() {
        assert_eq!(size_of::<Poll<Outcome>>(), 2 * size_of::<usize>());
        assert_eq!(
            Failure::rejected("no").reason().map(ToString::to_string),
            Some("no".to_owned())
        );
    }
}
