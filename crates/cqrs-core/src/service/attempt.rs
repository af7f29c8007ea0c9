use std::any::{Any, TypeId};
use std::fmt;
use std::sync::Arc;

use super::failure::Failure;
use super::received::Received;
use super::state::Watched;
use super::target::EachHandler;
use crate::broker::BoxFuture;
use crate::causes::causes;
use crate::dispatch::caught;
use crate::event::AnyEvent;
use crate::middleware::{
    Answer, Done, DynMiddleware, Failure as CallFailure, FailureKind, Invocation, InvocationKind,
    Next, Outcome,
};
use crate::scope::Scope;

/// Runs a subscription's middlewares around one event. `Err`: a panic's text.
pub(super) async fn run_chain(
    middlewares: &[Arc<dyn DynMiddleware>],
    mut handling: Handling<'_>,
    mut scope: Scope,
) -> Result<Result<(), Failure>, String> {
    let name = handling.name().to_owned();
    let mut call = Invocation::new(InvocationKind::Event, &name, &mut scope, &mut handling);
    let outcome = caught(|| Box::pin(Next::new(middlewares).run(&mut call))).await?;
    let answered = handling.answered.into_inner();
    Ok(match (outcome, answered) {
        (Ok(()), Some(answered)) => answered,
        (Ok(()), None) => {
            let text = "a middleware returned Ok without running the handler or responding";
            Err(Failure::permanent("NoResponse", text))
        }
        (Err(CallFailure(FailureKind::Handler)), Some(Err(failure))) => Err(failure),
        (Err(CallFailure(FailureKind::Handler)), _) => {
            let text = "a middleware returned the handler's failure after it had replaced it";
            Err(Failure::retryable("Rejected", text))
        }
        (Err(CallFailure(FailureKind::Rejected(reason))), _) => {
            Err(Failure::rejected(&*reason, causes(&*reason)))
        }
    })
}

/// One event at the end of the middleware chain.
pub(super) struct Handling<'h> {
    handler: &'h dyn EachHandler,
    received: Received,
    watched: &'h Watched,
    /// Gone once the handler runs.
    event: Option<Box<dyn AnyEvent>>,
    answered: Done<Failure>,
}

impl<'h> Handling<'h> {
    pub(super) fn new(
        handler: &'h dyn EachHandler,
        event: Box<dyn AnyEvent>,
        received: Received,
        watched: &'h Watched,
    ) -> Self {
        Self { handler, received, watched, event: Some(event), answered: Done::new() }
    }

    fn name(&self) -> &str {
        self.event.as_ref().map_or("", |event| event.name())
    }
}

impl Answer for Handling<'_> {
    fn input(&self, input: TypeId) -> Option<&dyn Any> {
        let (first, second) = self.event.as_ref()?.views();
        let view = [Some(first), second].into_iter().flatten().find(|view| view.0 == input)?;
        Some(view.1)
    }

    fn run<'a>(&'a mut self, scope: &'a mut Scope) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            let Some(event) = self.event.take() else {
                return Err(CallFailure::rejected("the handler was run twice"));
            };
            let scope = std::mem::take(scope);
            let received = self.received.clone();
            let run = caught(|| self.handler.handle(event, received, scope, self.watched));
            let answered = match run.await {
                Ok(handled) => handled,
                Err(panic) => Err(Failure::panicked(&panic)),
            };
            self.answered.set(answered)
        })
    }

    /// What the handler did is committed by now, or rolled back.
    fn undo<'a>(&'a mut self, _scope: &'a mut Scope) -> BoxFuture<'a, ()> {
        self.answered.clear();
        Box::pin(async {})
    }

    fn response(&self) -> Option<&dyn Any> {
        self.answered.response()
    }

    fn response_mut(&mut self) -> Option<&mut dyn Any> {
        None // `()` has nothing to change
    }

    fn error(&self) -> Option<&dyn fmt::Display> {
        self.answered.error()
    }

    fn respond(&mut self, response: &mut dyn Any) -> bool {
        self.answered.respond(response)
    }
}
