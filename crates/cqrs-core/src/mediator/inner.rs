//! The parts that both mediators share.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::error::SendError;
use super::nesting::{MAX_NESTING, nesting};
use crate::broker::{PublishError, PublishErrorKind};
use crate::consume::support::far_deadline;
use crate::dispatch::{
    Entered, EventRounds, FinishError, Finisher, Gate, Panic, Undelivered, caught_panic,
    panic_message, publish_each_confirmed,
};
use crate::event::{Emission, Event};
use crate::message::Message;
use crate::middleware::{
    Answer, DynMiddleware, FailureKind, Invocation, InvocationKind, Next, Outcome,
};
use crate::scope::{Scope, UnitSource};

/// The parts that both mediators share: middlewares, rounds of events, the end of a scope.
#[derive(Default)]
pub(super) struct Inner {
    pub(super) rounds: EventRounds,
    pub(super) middlewares: Vec<Arc<dyn DynMiddleware>>,
    pub(super) finisher: Finisher,
    pub(super) units: Option<Arc<UnitSource>>,
    pub(super) gate: Gate,
}

/// The result of a mediator's `shutdown`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "it says what was not finished"]
pub struct MediatorShutdown {
    /// Sends, commits and rollbacks that still ran at the deadline. Commits and rollbacks go on until
    /// the runtime stops; a send that has not begun its commit is rolled back.
    pub unfinished: usize,
    /// Unconfirmed events of dropped sends; they were logged.
    pub undelivered: usize,
}

impl Inner {
    /// Admits a send. The result must be dropped after the scope, so that the shutdown waits for the
    /// scope's rollback.
    #[inline]
    pub(super) fn open<T, E>(&self, scope: &mut Scope) -> Result<Entered<'_>, SendError<T, E>> {
        let Some(entered) = self.gate.enter() else { return Err(SendError::ShutDown) };
        if nesting() >= MAX_NESTING {
            return Err(SendError::TooDeep { depth: MAX_NESTING });
        }
        if scope.is_in_use() {
            return Err(SendError::ScopeInUse);
        }
        scope.set_units(self.units.as_ref());
        Ok(entered)
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
        let ran = caught_panic(|| Next::new(&self.middlewares).boxed(&mut call)).await;
        Self::ran(ran, &call)
    }

    /// The end of a chain of middlewares. `Ok`: the outcome is in the answer of `call`.
    #[inline]
    pub(super) fn ran<T, E>(
        ran: Result<Outcome, Panic>,
        call: &Invocation<'_>,
    ) -> Result<(), SendError<T, E>> {
        match ran {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) => match failure.0 {
                FailureKind::Rejected(reason) => Err(SendError::Rejected(*reason)),
                FailureKind::Handler if call.error().is_some() => Ok(()),
                FailureKind::Handler => {
                    let text =
                        "a middleware returned the handler's failure after it had replaced it";
                    Err(SendError::Rejected(text.into()))
                }
            },
            Err(panic) => Err(SendError::Panicked(panic.into_text())),
        }
    }

    /// Ends the scope of a handler that returned `answered`.
    pub(super) async fn finish<T, E>(
        &self,
        scope: &mut Scope,
        answered: Result<T, SendError<T, E>>,
    ) -> Result<T, SendError<T, E>> {
        match answered {
            Ok(response) => Self::finished(response, self.succeed(scope).await),
            Err(error) => {
                self.finisher.fail(scope).await;
                Err(error)
            }
        }
    }

    /// The result of a send that responds with `response`, after its scope was [ended](Self::succeed).
    #[inline]
    pub(super) fn finished<T, E>(
        response: T,
        unconfirmed: Result<Vec<PublishError>, FinishError>,
    ) -> Result<T, SendError<T, E>> {
        match unconfirmed {
            Ok(events) if events.is_empty() => Ok(response),
            Ok(events) => Err(Undelivered::new(response, events).into()),
            Err(error) => Err(SendError::from_finish(error)),
        }
    }

    /// Ends the scope of a handler that succeeded. Returns the errors of unconfirmed events.
    pub(super) async fn succeed(
        &self,
        scope: &mut Scope,
    ) -> Result<Vec<PublishError>, FinishError> {
        let outgoing = match self.rounds.settle(scope).await {
            Ok(outgoing) => outgoing,
            Err(error) => {
                self.finisher.fail(scope).await;
                return Err(FinishError::Events(error));
            }
        };
        if self.gate.is_over() {
            // The broker is shut down next, so the events of a commit could not be published.
            self.finisher.fail(scope).await;
            return Err(FinishError::ShutDown);
        }
        scope.commits();
        self.finisher.succeed(scope, outgoing).await
    }

    /// Publishes messages to the broker, in order. Returns the errors of unconfirmed ones.
    pub(super) async fn publish(&self, messages: Vec<Message>) -> Vec<PublishError> {
        if let Some(broker) = &self.finisher.broker {
            return publish_each_confirmed(&**broker, messages).await;
        }
        let no_broker = |message| {
            let detail = "the mediator has no broker";
            PublishError::new(PublishErrorKind::Closed, message, detail).after_commit()
        };
        messages.into_iter().map(no_broker).collect()
    }

    pub(super) async fn shutdown(&self, deadline: Duration) -> MediatorShutdown {
        let end = far_deadline(deadline);
        let left = || end.saturating_duration_since(Instant::now());
        self.gate.close(left()).await;
        let tasks = &self.finisher.tasks;
        tasks.close();
        let _in_time = tokio::time::timeout(left(), tasks.wait()).await;
        let unfinished = tasks.len().max(self.gate.running());
        MediatorShutdown {
            unfinished,
            undelivered: self.finisher.abandoned.load(Ordering::Relaxed),
        }
    }
}

/// Picks an event's route; that is user code, so a panic is an error here.
pub(super) fn route<T, E>(event: impl Event) -> Result<Emission, SendError<T, E>> {
    catch_unwind(AssertUnwindSafe(|| event.into_emission()))
        .map_err(|panic| SendError::Panicked(panic_message(panic)))
}
