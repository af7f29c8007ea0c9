//! The mediator of commands and queries.

use std::any::{Any, TypeId, type_name};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::error::SendError;
use super::inner::{Inner, MediatorShutdown};
use super::nesting::nested;
use crate::broker::{BoxFuture, MessageBroker, PublishError};
use crate::dispatch::{Finisher, caught, sealed};
use crate::message::Message;
use crate::middleware::{Answer, AnyResult, CallResult, Failure, InvocationKind, Outcome};
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
    pub async fn send_in<R: Request>(&self, mut scope: Scope, request: R) -> Sent<R> {
        let MediatorInner { requests, inner } = &*self.0;
        let _entered = inner.open(&mut scope)?;
        let mut scope = scope;
        let handler =
            requests.get::<R>().ok_or(SendError::NoHandler { request: type_name::<R>() })?;
        let send = pin!(async {
            let answered = if inner.middlewares.is_empty() {
                match caught(|| handler.handle(request, &mut scope)).await {
                    Ok(answer) => answer.map_err(SendError::Handler),
                    Err(panic) => Err(SendError::Panicked(panic)),
                }
            } else {
                Box::pin(self.send_through(handler, request, &mut scope)).await
            };
            if scope.has_work() {
                // Boxed, so that the future of a request without events or writes is small.
                return Box::pin(inner.finish(&mut scope, answered)).await;
            }
            answered
        });
        match nested(send).await {
            (Ok(response), _) => Ok(response),
            (Err(SendError::Handler(error)), true) => Err(SendError::HandlerAfterCommit(error)),
            (Err(SendError::Undelivered(undelivered)), _) => {
                undelivered.log();
                Err(SendError::Undelivered(undelivered))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// The broker, if there is one.
    pub(crate) fn broker(&self) -> Option<&Arc<dyn MessageBroker>> {
        self.0.inner.finisher.broker.as_ref()
    }

    async fn send_through<R: Request>(
        &self,
        handler: &dyn DynRequestHandler<R>,
        request: R,
        scope: &mut Scope,
    ) -> Sent<R> {
        let mut answer = RequestAnswer {
            inner: &self.0.inner,
            handler,
            request: Some(request),
            result: CallResult(None),
        };
        let kind = InvocationKind::Request(R::KIND);
        self.0.inner.run_chain(kind, R::NAME, scope, &mut answer).await?;
        answer.result.0.unwrap_or(Err(SendError::NoResponse))
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

/// The end of a request's middleware chain: runs the handler.
struct RequestAnswer<'h, R: Request> {
    inner: &'h Inner,
    handler: &'h dyn DynRequestHandler<R>,
    request: Option<R>,
    result: CallResult<R::Response, SendErrorOf<R>>,
}

impl<R: Request> Answer for RequestAnswer<'_, R> {
    fn input(&self, input: TypeId) -> Option<&dyn Any> {
        let request = self.request.as_ref()?;
        (input == TypeId::of::<R>()).then_some(request as &dyn Any)
    }

    fn run<'a>(&'a mut self, scope: &'a mut Scope) -> BoxFuture<'a, Outcome> {
        let Some(request) = self.request.take() else {
            let twice = Failure::rejected("the handler was run already");
            return Box::pin(std::future::ready(Err(twice)));
        };
        let end = ChainEnd { finisher: &self.inner.finisher, result: &mut self.result };
        self.handler.end_chain(request, scope, end)
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

/// What follows a handler at the end of a middleware chain: it keeps the result, and ends a failed scope.
pub(crate) struct ChainEnd<'a, R: Request> {
    finisher: &'a Finisher,
    result: &'a mut CallResult<R::Response, SendErrorOf<R>>,
}

impl<R: Request> ChainEnd<'_, R> {
    pub(crate) async fn handle(
        self,
        handler: &impl RequestHandler<R>,
        request: R,
        scope: &mut Scope,
    ) -> Outcome {
        let mut guard = scope.guard();
        let handled = {
            let call = pin!(async { handler.handle(request, guard.scope()).await });
            caught(|| call).await
        };
        let answered = match handled {
            Ok(answer) => answer.map_err(SendError::Handler),
            Err(panic) => Err(SendError::Panicked(panic)),
        };
        let scope = guard.disarm();
        if answered.is_err() {
            // A middleware that recovers must commit nothing of the handler's work.
            self.finisher.fail(scope).await;
        }
        self.result.set(answered)
    }
}
