use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::SendError;
use crate::Scope;
use crate::dispatch::{EventRounds, Finisher, Undelivered, caught};
use crate::middleware::{
    Answer, DynMiddleware, Failure, FailureKind, Invocation, InvocationKind, Next, Outcome,
};
use crate::scope::UnitSource;

/// What both mediators share: middlewares, rounds of events, the end of a scope.
#[derive(Default)]
pub(super) struct Inner {
    pub(super) rounds: EventRounds,
    pub(super) middlewares: Vec<Arc<dyn DynMiddleware>>,
    pub(super) finisher: Finisher,
    pub(super) units: Option<Arc<UnitSource>>,
    pub(super) closed: AtomicBool,
}

/// What a mediator's `shutdown` left behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "it says what was not finished"]
pub struct MediatorShutdown {
    /// Commits, rollbacks and publishings that still ran at the deadline. They go on until the runtime
    /// stops.
    pub unfinished: usize,
    /// Messages that the broker had not confirmed at the deadline.
    pub undelivered: usize,
}

impl Inner {
    pub(super) fn open<T, E>(&self, scope: &mut Scope) -> Result<(), SendError<T, E>> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(SendError::ShutDown);
        }
        scope.set_units(self.units.as_ref());
        Ok(())
    }

    /// Runs the middlewares around `answer`. `Ok`: `answer` has the outcome.
    pub(super) async fn run_chain<T, E>(
        &self,
        kind: InvocationKind,
        name: &str,
        scope: &mut Scope,
        answer: &mut dyn Answer,
    ) -> Result<(), SendError<T, E>> {
        let mut call = Invocation::new(kind, name, scope, answer);
        match caught(|| Box::pin(Next::new(&self.middlewares).run(&mut call))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) => match failure.0 {
                FailureKind::Handler => Ok(()),
                FailureKind::Rejected(reason) => Err(SendError::Rejected(reason)),
            },
            Err(panic) => Err(SendError::Panicked(panic)),
        }
    }

    /// What middlewares see of a handler's answer. After a failure the unit of work is rolled back and
    /// what was emitted is dropped at once, so that a middleware that recovers commits none of it.
    pub(super) async fn outcome(&self, succeeded: bool, scope: &mut Scope) -> Outcome {
        if succeeded {
            return Ok(());
        }
        self.finisher.fail(scope).await;
        Err(Failure(FailureKind::Handler))
    }

    /// Ends the scope of a handler that returned `answered`.
    pub(super) async fn finish<T, E>(
        &self,
        mut scope: Scope,
        answered: Result<T, SendError<T, E>>,
    ) -> Result<T, SendError<T, E>> {
        let response = match answered {
            Ok(response) => response,
            Err(error) => {
                self.finisher.fail(&mut scope).await;
                return Err(error);
            }
        };
        let outgoing = match self.rounds.settle(&mut scope).await {
            Ok(outgoing) => outgoing,
            Err(error) => {
                self.finisher.fail(&mut scope).await;
                return Err(SendError::Events(error));
            }
        };
        let events =
            self.finisher.succeed(&mut scope, outgoing).await.map_err(SendError::from_finish)?;
        match events.is_empty() {
            true => Ok(response),
            false => Err(SendError::Undelivered(Box::new(Undelivered { response, events }))),
        }
    }

    pub(super) async fn shutdown(&self, deadline: Duration) -> MediatorShutdown {
        let end = Instant::now() + deadline;
        self.closed.store(true, Ordering::Relaxed);
        let tasks = &self.finisher.tasks;
        tasks.close();
        let _in_time = tokio::time::timeout_at(end, tasks.wait()).await;
        let unfinished = tasks.len();
        let undelivered = match &self.finisher.broker {
            Some(broker) => {
                broker.shutdown(end.saturating_duration_since(Instant::now())).await.undelivered
            }
            None => 0,
        };
        MediatorShutdown { unfinished, undelivered }
    }
}
