//! What runs around every request and every consumed event.

use std::any::{Any, TypeId};
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::broker::BoxFuture;
use crate::request::RequestKind;
use crate::scope::Scope;

/// Runs around every request of a mediator, or every consumed event of an event mediator.
///
/// The first one added is the outermost. They run around the handler; domain events, the commit and
/// the publishing come after the outermost one returned `Ok`. When the handler fails or is cancelled,
/// or a middleware rejects, what the handler did is rolled back there and then, whatever an outer
/// middleware makes of it.
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
pub trait Middleware: Send + Sync + 'static {
    /// Runs before, around or instead of what comes next.
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

/// How a call went, as middlewares see it. The typed answer is in the [`Invocation`].
pub type Outcome = Result<(), Failure>;

/// Why a call failed, as middlewares see it.
#[derive(Debug)]
pub struct Failure(pub(crate) FailureKind);

#[derive(Debug)]
pub(crate) enum FailureKind {
    /// The handler's own error stands in the invocation.
    Handler,
    Rejected(Box<dyn Error + Send + Sync>),
}

impl Failure {
    /// Stops the call with `reason`; the sender gets it as `SendError::Rejected`.
    pub fn rejected(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(FailureKind::Rejected(reason.into()))
    }

    /// Why a middleware stopped the call; `None` when the handler failed, whose error the
    /// [`Invocation`] has.
    pub fn reason(&self) -> Option<&(dyn Error + Send + Sync + 'static)> {
        match &self.0 {
            FailureKind::Rejected(reason) => Some(&**reason),
            FailureKind::Handler => None,
        }
    }

    /// Whether a middleware stopped the call, and not the handler.
    pub fn is_rejection(&self) -> bool {
        matches!(self.0, FailureKind::Rejected(_))
    }
}

/// What is being called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvocationKind {
    /// A command or a query, on its way to its handler.
    Request(RequestKind),
    /// A consumed event, on its way to its handlers.
    Event,
}

/// One call on its way through the middlewares: what is called, its scope, and later its answer.
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

    /// What the handlers and the other middlewares of this call share.
    pub fn scope(&mut self) -> &mut Scope {
        self.scope
    }

    /// The request or the event's payload, when it is a `T`. A request is gone once its handler runs.
    pub fn input<T: 'static>(&self) -> Option<&T> {
        self.answer.input(TypeId::of::<T>())?.downcast_ref()
    }

    /// The handler's response, when it returned a `T`.
    pub fn response<T: 'static>(&self) -> Option<&T> {
        self.answer.response()?.downcast_ref()
    }

    /// As [`response`](Self::response), to change it.
    pub fn response_mut<T: 'static>(&mut self) -> Option<&mut T> {
        self.answer.response_mut()?.downcast_mut()
    }

    /// The handler's error as text, when it failed.
    pub fn error(&self) -> Option<&dyn fmt::Display> {
        self.answer.error()
    }

    /// Answers in the handler's place, or replaces its answer. `false` when `T` is not the request's
    /// response type; nothing is changed then. Return `Ok(())` afterwards.
    #[must_use = "`false` means that nothing was answered"]
    pub fn respond<T: Send + 'static>(&mut self, response: T) -> bool {
        let mut response = Some(response);
        self.answer.respond(&mut response)
    }

    async fn run_handler(&mut self) -> Outcome {
        self.answer.run(self.scope).await
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

/// The typed end of the chain: holds the input, runs the handler once, keeps its answer.
pub(crate) trait Answer: Send {
    fn input(&self, input: TypeId) -> Option<&dyn Any>;
    fn run<'a>(&'a mut self, scope: &'a mut Scope) -> BoxFuture<'a, Outcome>;
    /// Rolls back what the handler did and forgets its answer.
    fn undo<'a>(&'a mut self, scope: &'a mut Scope) -> BoxFuture<'a, ()>;
    fn response(&self) -> Option<&dyn Any>;
    fn response_mut(&mut self) -> Option<&mut dyn Any>;
    fn error(&self) -> Option<&dyn fmt::Display>;
    /// `response` is an `Option` of the response type; taken when it fits.
    fn respond(&mut self, response: &mut dyn Any) -> bool;
}

/// The answer of a call that returns nothing, as [`Answer`] wants it.
pub(crate) struct Done<E>(Option<Result<(), E>>);

impl<E: fmt::Display> Done<E> {
    pub(crate) fn new() -> Self {
        Self(None)
    }

    /// Keeps what the handler returned; what middlewares see of it.
    pub(crate) fn set(&mut self, answered: Result<(), E>) -> Outcome {
        let failed = answered.is_err();
        self.0 = Some(answered);
        match failed {
            true => Err(Failure(FailureKind::Handler)),
            false => Ok(()),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0 = None;
    }

    pub(crate) fn into_inner(self) -> Option<Result<(), E>> {
        self.0
    }

    pub(crate) fn response(&self) -> Option<&dyn Any> {
        match &self.0 {
            Some(Ok(done)) => Some(done),
            _ => None,
        }
    }

    pub(crate) fn error(&self) -> Option<&dyn fmt::Display> {
        match &self.0 {
            Some(Err(error)) => Some(error),
            _ => None,
        }
    }

    /// `response` is an `Option<()>`; taken when it fits.
    pub(crate) fn respond(&mut self, response: &mut dyn Any) -> bool {
        let fits = response.downcast_mut::<Option<()>>().and_then(Option::take).is_some();
        if fits {
            self.0 = Some(Ok(()));
        }
        fits
    }
}

/// What comes after a middleware: the next one, or the handler.
#[must_use = "without running it the handler is not called"]
pub struct Next<'a>(&'a [Arc<dyn DynMiddleware>]);

impl<'a> Next<'a> {
    pub(crate) fn new(chain: &'a [Arc<dyn DynMiddleware>]) -> Self {
        Self(chain)
    }

    /// Runs what comes next.
    ///
    /// # Errors
    /// When the handler failed or a later middleware stopped the call; pass it on.
    pub async fn run(self, call: &mut Invocation<'_>) -> Outcome {
        let Some((first, rest)) = self.0.split_first() else { return call.run_handler().await };
        let outcome = first.handle(call, Next(rest)).await;
        if outcome.as_ref().is_err_and(Failure::is_rejection) {
            // Whatever the handler did is undone before an outer middleware can recover.
            call.answer.undo(call.scope).await;
        }
        outcome
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
        Box::pin(Middleware::handle(self, call, next))
    }
}
