//! Runs a subscription's middlewares around one event.

use std::any::{Any, TypeId};
use std::pin::pin;
use std::sync::Arc;

use super::failure::AttemptFailure;
use super::handler::EachHandler;
use super::monitor::Monitor;
use crate::broker::BoxFuture;
use crate::consume::Received;
use crate::consume::support::error_chain;
use crate::dispatch::caught;
use crate::event::EventSlot;
use crate::middleware::{
    Answer, AnyResult, CallResult, DynMiddleware, Failure, FailureKind, Invocation, InvocationKind,
    Next, Outcome,
};
use crate::scope::Scope;

/// Runs a subscription's middlewares around one event. `Err`: a panic's text.
pub(super) async fn run_chain(
    middlewares: &[Arc<dyn DynMiddleware>],
    mut handling: Handling<'_>,
    mut scope: Scope,
) -> Result<Result<(), AttemptFailure>, String> {
    let name = handling.name().to_owned();
    let mut call = Invocation::new(InvocationKind::Event, &name, &mut scope, &mut handling);
    let outcome = {
        let chain = pin!(Next::new(middlewares).run(&mut call));
        caught(|| chain).await?
    };
    let answered = handling.result.0;
    Ok(match (outcome, answered) {
        (Ok(()), Some(answered)) => answered,
        (Ok(()), None) => {
            let text = "a middleware returned Ok without running the handler or responding";
            Err(AttemptFailure::permanent("NoResponse", text))
        }
        (Err(Failure(FailureKind::Handler)), Some(Err(failure))) => Err(failure),
        (Err(Failure(FailureKind::Handler)), _) => {
            let text = "a middleware returned the handler's failure after it had replaced it";
            Err(AttemptFailure::retryable("Rejected", text))
        }
        (Err(Failure(FailureKind::Rejected(reason))), _) => {
            Err(AttemptFailure::rejected(&**reason, error_chain(&**reason)))
        }
    })
}

/// The end of the middleware chain: runs the handler with one event.
pub(super) struct Handling<'h> {
    handler: &'h EachHandler,
    received: &'h Received,
    monitor: &'h Monitor,
    /// `None` once the handler runs.
    event: Option<Box<dyn EventSlot>>,
    result: CallResult<(), AttemptFailure>,
}

impl<'h> Handling<'h> {
    pub(super) fn new(
        handler: &'h EachHandler,
        event: Box<dyn EventSlot>,
        received: &'h Received,
        monitor: &'h Monitor,
    ) -> Self {
        Self { handler, received, monitor, event: Some(event), result: CallResult(None) }
    }

    fn name(&self) -> &str {
        self.event.as_ref().map_or("", |event| event.name())
    }
}

impl Answer for Handling<'_> {
    fn input(&self, input: TypeId) -> Option<&dyn Any> {
        Some(self.event.as_ref()?.argument(input)?)
    }

    fn run<'a>(&'a mut self, scope: &'a mut Scope) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            let Some(event) = self.event.take() else {
                return Err(Failure::rejected("the handler was run twice"));
            };
            let scope = std::mem::take(scope);
            let handled = pin!(self.handler.handle(event, self.received, scope, self.monitor));
            let answered = match caught(|| handled).await {
                Ok(handled) => handled,
                Err(panic) => Err(AttemptFailure::panicked(&panic)),
            };
            self.result.set(answered)
        })
    }

    /// The handler's work is committed or rolled back already.
    fn undo<'a>(&'a mut self, _scope: &'a mut Scope) -> BoxFuture<'a, ()> {
        self.result.0 = None;
        Box::pin(async {})
    }

    fn result(&self) -> &dyn AnyResult {
        &self.result
    }

    fn result_mut(&mut self) -> &mut dyn AnyResult {
        &mut self.result
    }
}
