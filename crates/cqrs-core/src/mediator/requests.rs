//! The mediator of commands and queries.

use std::any::{Any, TypeId, type_name};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::error::SendError;
use super::inner::{Inner, MediatorShutdown};
use super::nesting::SendLevel;
use crate::broker::{BoxFuture, MessageBroker, PublishError};
use crate::dispatch::{Entered, Panic, boxed, caught_panic, sealed};
use crate::message::Message;
use crate::middleware::{
    Answer, AnyResult, CallResult, Failure, Invocation, InvocationKind, Next, Outcome,
};
use crate::request::{DynRequestHandler, Request, RequestHandler, RequestMap};
use crate::scope::Scope;

/// Sends commands and queries to their handlers, handles their domain events, and publishes their
/// notifications. Cloning is cheap; clones share everything.
#[derive(Clone)]
pub struct Mediator(pub(super) Arc<MediatorInner>);

pub(super) struct MediatorInner {
    pub(super) requests: RequestMap,
    pub(super) inner: Inner,
}

/// The result of a send.
type Sent<R> = Result<<R as Request>::Response, SendErrorOf<R>>;
type SendErrorOf<R> = SendError<<R as Request>::Response, <R as Request>::Error>;

impl Mediator {
    /// Sends `request` to its handler and returns its response.
    ///
    /// The order: middlewares and handler; domain events, inside the unit of work; commit; publishing. `Ok`
    /// means that all of them succeeded, and that the broker confirmed every notification.
    ///
    /// # Errors
    /// See [`SendError`]. After [`SendError::Undelivered`] the work is done: do not send again.
    ///
    /// # Cancel safety
    /// Dropped before the commit, the unit of work is rolled back and nothing is published. From the
    /// commit on, a task finishes it; [`shutdown`](Self::shutdown) waits for that task.
    pub fn send<R: Request>(&self, request: R) -> impl Future<Output = Sent<R>> + Send {
        self.send_in(Scope::new(), request)
    }

    /// As [`send`](Self::send), in a scope that already holds values, such as a
    /// [`CorrelationId`](crate::message::CorrelationId).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_in<R: Request>(
        &self,
        scope: Scope,
        request: R,
    ) -> impl Future<Output = Sent<R>> + Send {
        let MediatorInner { requests, inner } = &*self.0;
        let mut send = OneSend { scope, entered: None };
        async move {
            // Captured as a whole, for the order of its drop.
            let OneSend { scope, entered } = &mut send;
            *entered = Some(inner.open(scope)?);
            let Some(handler) = requests.get::<R>() else {
                return Err(SendError::NoHandler { request: type_name::<R>() });
            };
            let mut level = SendLevel::default();
            let answered = if inner.middlewares.is_empty() {
                let handling = level.call(|| caught_panic(|| handler.handle(request, scope)));
                answer_of(level.run(handling).await)
            } else {
                let request = Some(request);
                let mut answer =
                    RequestAnswer { inner, handler, request, result: CallResult(None) };
                let kind = InvocationKind::Request(R::KIND);
                let mut call = Invocation::new(kind, R::NAME, scope, &mut answer);
                let chain = Next::new(&inner.middlewares);
                let running = level.call(|| caught_panic(|| chain.boxed(&mut call)));
                match Inner::ran(level.run(running).await, &call) {
                    Ok(()) => match answer.result.0 {
                        Some(answered) => answered,
                        None => Err(SendError::NoResponse),
                    },
                    Err(error) => Err(error),
                }
            };
            if !scope.has_work() {
                return level.ended(answered);
            }
            // Boxed, so that the future of a request without events or writes is small.
            let ended = match answered {
                Ok(response) => {
                    Inner::finished(response, level.run(boxed(|| inner.succeed(scope))).await)
                }
                Err(error) => {
                    level.run(boxed(|| inner.finisher.fail(scope))).await;
                    Err(error)
                }
            };
            level.ended(ended)
        }
    }

    /// The broker, if there is one.
    pub(crate) fn broker(&self) -> Option<&Arc<dyn MessageBroker>> {
        self.0.inner.finisher.broker.as_ref()
    }

    /// Refuses new requests, and waits up to `deadline` for running sends, commits and publishes.
    ///
    /// It does not close the broker, which services and other mediators may still use: that is for the
    /// program that connected it, when all of them have stopped. An [`App`](crate::App) does it in order.
    ///
    /// # Cancel safety
    /// Dropping the future stops only the wait: new requests stay refused.
    pub async fn shutdown(&self, deadline: Duration) -> MediatorShutdown {
        self.0.inner.shutdown(deadline).await
    }
}

impl sealed::Sealed for Mediator {
    fn publish_in_order(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<PublishError>> {
        Box::pin(self.0.inner.publish(messages))
    }
}

crate::debug_fields!(Mediator {}, |it|
    requests: it.0.requests, events: it.0.inner.rounds.map, broker: it.0.inner.finisher.broker);

/// One send: its scope, and its place in the gate, which it leaves after the scope is dropped, so that the shutdown
/// waits for the rollback.
struct OneSend<'m> {
    scope: Scope,
    entered: Option<Entered<'m>>,
}

impl SendLevel {
    /// The result of a send whose scope is ended.
    #[inline]
    fn ended<T, E: fmt::Display>(
        &self,
        ended: Result<T, SendError<T, E>>,
    ) -> Result<T, SendError<T, E>> {
        ended.map_err(|error| match self.failed(error) {
            SendError::Handler(error) if self.committed_below() => {
                SendError::HandlerAfterCommit(error)
            }
            SendError::Undelivered(undelivered) => {
                undelivered.log();
                SendError::Undelivered(undelivered)
            }
            error => error,
        })
    }
}

/// The end of a request's middleware chain: it runs the handler, keeps the result, and ends a failed scope.
pub(crate) struct RequestAnswer<'h, R: Request> {
    inner: &'h Inner,
    handler: &'h dyn DynRequestHandler<R>,
    request: Option<R>,
    result: CallResult<R::Response, SendErrorOf<R>>,
}

impl<R: Request> RequestAnswer<'_, R> {
    /// Runs `handler`, which is its own.
    pub(crate) fn run_handler<'a>(
        &'a mut self,
        handler: &'a impl RequestHandler<R>,
        scope: &'a mut Scope,
    ) -> BoxFuture<'a, Outcome> {
        boxed(move || async move {
            let Some(request) = self.request.take() else {
                return Err(Failure::rejected("the handler was run already"));
            };
            let mut guard = scope.guard();
            let handled = {
                let mut call = pin!(None);
                let made = catch_unwind(AssertUnwindSafe(|| {
                    call.set(Some(handler.handle(request, guard.scope())));
                }));
                match (made, call.as_pin_mut()) {
                    (Ok(()), Some(call)) => caught_panic(|| call).await,
                    (Err(panic), _) => Err(Panic::new(panic)),
                    (Ok(()), None) => unreachable!("it was made"),
                }
            };
            let scope = guard.disarm();
            let outcome = match handled {
                Ok(Ok(response)) => self.result.succeed(response),
                failed => self.result.set(answer_of(failed)),
            };
            if outcome.is_err() {
                // A middleware that recovers must commit nothing of the handler's work.
                self.inner.finisher.fail(scope).await;
            }
            outcome
        })
    }
}

impl<R: Request> Answer for RequestAnswer<'_, R> {
    fn input(&self, input: TypeId) -> Option<&dyn Any> {
        let request = self.request.as_ref()?;
        (input == TypeId::of::<R>()).then_some(request as &dyn Any)
    }

    fn run<'a>(&'a mut self, scope: &'a mut Scope) -> BoxFuture<'a, Outcome> {
        self.handler.end_chain(scope, self)
    }

    fn undo<'a>(&'a mut self, scope: &'a mut Scope) -> BoxFuture<'a, ()> {
        self.result.0 = None;
        Box::pin(self.inner.finisher.fail(scope))
    }

    fn result(&self) -> &dyn AnyResult {
        &self.result
    }

    fn result_mut(&mut self) -> &mut dyn AnyResult {
        &mut self.result
    }
}

#[inline]
fn answer_of<T, E>(handled: Result<Result<T, E>, Panic>) -> Result<T, SendError<T, E>> {
    match handled {
        Ok(answer) => answer.map_err(SendError::Handler),
        Err(panic) => Err(SendError::Panicked(panic.into_text())),
    }
}
