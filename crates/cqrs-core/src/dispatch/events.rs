//! The rounds in which emitted events reach their handlers, run by both mediators.

use std::error::Error;
use std::fmt;

use futures_util::StreamExt;
use futures_util::stream;

use super::panics::caught;
use crate::event::{AnyEvent, Emission, EventMap, HandlerError, OutgoingEvent, Route};
use crate::scope::Scope;

/// What a failing handler of a domain event does to the `send` that caused the event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnEventFailure {
    /// No further handler starts, the unit of work is rolled back, and `send` returns the error.
    /// The default.
    #[default]
    Fail,
    /// All handlers of the round run; then as [`Fail`](Self::Fail), with all their errors.
    FinishRound,
    /// The failure is logged and `send` goes on. Its own writes stay in the unit of work; what it
    /// emitted is dropped. This is what python-cqrs does.
    ///
    /// Mind that some databases end a transaction at its first failed statement: PostgreSQL then rolls
    /// back at the commit. The handlers of a consumed event are never only logged: for them this is
    /// [`FinishRound`](Self::FinishRound), and `Log` holds for the follow-ups.
    Log,
}

/// How the handlers of emitted events are run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EventOptions {
    pub(crate) concurrency: usize,
    pub(crate) max_depth: usize,
    pub(crate) on_failure: OnEventFailure,
}

impl Default for EventOptions {
    fn default() -> Self {
        Self { concurrency: 1, max_depth: 16, on_failure: OnEventFailure::Fail }
    }
}

/// One handler that failed on one event.
#[derive(Debug)]
#[non_exhaustive]
pub struct EventFailure {
    /// The event's name.
    pub event: String,
    /// The handler's type.
    pub handler: &'static str,
    /// Its error, or its panic.
    pub error: HandlerError,
}

impl fmt::Display for EventFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: {}", self.handler, self.event, self.error)
    }
}

/// Why the events of one `send` were not all handled.
#[derive(Debug)]
#[non_exhaustive]
pub enum EventsError {
    /// Handlers failed. The error's `source()` is the cause of the first permanent failure, if there is one,
    /// or else of the first.
    Failed(Vec<EventFailure>),
    /// Handlers emitted events whose handlers emitted events, and so on, deeper than allowed.
    TooDeep {
        /// The first event over the limit.
        event: String,
        /// The limit.
        depth: usize,
    },
}

impl EventsError {
    /// Whether trying the same event again may help: all failures are retryable.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Failed(failures) => failures.iter().all(|failure| failure.error.is_retryable()),
            Self::TooDeep { .. } => false,
        }
    }
}

impl fmt::Display for EventsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(failures) => write!(f, "event handlers failed: {}", join(failures)),
            Self::TooDeep { event, depth } => {
                write!(f, "events of {event} went round {depth} times, the limit: is there a loop?")
            }
        }
    }
}

impl Error for EventsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let Self::Failed(failures) = self else { return None };
        let permanent = failures.iter().find(|failure| !failure.error.is_retryable());
        // The texts of the failures themselves are in `Display`.
        permanent.or(failures.first())?.error.source().source()
    }
}

fn join(failures: &[EventFailure]) -> String {
    failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Runs handlers round by round: all handlers of this round's events, then those of what they emitted.
///
/// Sequential handlers run in order of emission and of binding and share the scope, transaction
/// included. With a concurrency above 1 the handlers of one round run in parallel inside the
/// caller's task, each with a child scope; what they emit is put in order of emission and binding.
#[derive(Debug, Default)]
pub(crate) struct EventRounds {
    pub(crate) map: EventMap,
    pub(crate) options: EventOptions,
}

type Round = Vec<Box<dyn AnyEvent>>;
/// One handler's share of a round: its index pair fixes the order of what it emits.
struct Call<'a> {
    event: &'a dyn AnyEvent,
    view: crate::event::View<'a>,
    bound: &'a crate::event::BoundHandler,
}

impl Call<'_> {
    /// Runs the handler. A failure takes back what it emitted.
    async fn run(&self, scope: &mut Scope) -> Result<(), EventFailure> {
        let emitted = scope.emitted_len();
        let error = match caught(|| self.bound.handler.handle(self.view.1, scope)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(panic) => HandlerError::panicked(panic),
        };
        scope.truncate_emitted(emitted);
        Err(EventFailure { event: self.event.name().to_owned(), handler: self.bound.name, error })
    }
}

impl EventRounds {
    /// Sorts what the scope's handler emitted and runs rounds until no domain event is left.
    /// Returns the notifications in order of emission.
    pub(crate) async fn settle(
        &self,
        scope: &mut Scope,
    ) -> Result<Vec<Box<dyn OutgoingEvent>>, EventsError> {
        let mut outgoing = Vec::new();
        let mut round = sort(scope.take_emitted(), &mut outgoing);
        let mut depth = 0;
        while let Some(first) = round.first() {
            if depth == self.options.max_depth {
                return Err(EventsError::TooDeep { event: first.name().to_owned(), depth });
            }
            let events = round.iter().map(|event| &**event);
            self.run_round(events, scope, self.options.on_failure).await?;
            round = sort(scope.take_emitted(), &mut outgoing);
            depth += 1;
        }
        Ok(outgoing)
    }

    /// Runs all handlers of a consumed event; what they emit is left in the scope. Its failures are never
    /// only logged: whoever delivered the event must learn of them.
    pub(crate) async fn run_consumed(
        &self,
        event: &dyn AnyEvent,
        scope: &mut Scope,
    ) -> Result<(), EventsError> {
        let policy = match self.options.on_failure {
            OnEventFailure::Log => OnEventFailure::FinishRound,
            policy => policy,
        };
        self.run_round(std::iter::once(event), scope, policy).await
    }

    /// Runs all handlers of `events`; what they emit is left in the scope.
    async fn run_round<'e>(
        &self,
        events: impl Iterator<Item = &'e dyn AnyEvent>,
        scope: &mut Scope,
        policy: OnEventFailure,
    ) -> Result<(), EventsError> {
        let calls = events.flat_map(|event| self.calls(event));
        let failures = match self.options.concurrency {
            0 | 1 => run_in_order(calls, scope, policy).await,
            concurrency => Box::pin(run_in_parallel(calls, scope, policy, concurrency)).await,
        };
        match policy {
            _ if failures.is_empty() => Ok(()),
            OnEventFailure::Fail | OnEventFailure::FinishRound => {
                Err(EventsError::Failed(failures))
            }
            OnEventFailure::Log => {
                for failure in failures {
                    let EventFailure { event, handler, error } = &failure;
                    tracing::error!(event, handler, error = error.source(), "event handler failed");
                }
                Ok(())
            }
        }
    }

    fn calls<'a>(&'a self, event: &'a dyn AnyEvent) -> impl Iterator<Item = Call<'a>> {
        let (first, second) = event.views();
        [Some(first), second].into_iter().flatten().flat_map(move |view| {
            self.map.handlers(view.0).iter().map(move |bound| Call { event, view, bound })
        })
    }
}

fn stops(policy: OnEventFailure, failures: &[EventFailure]) -> bool {
    policy == OnEventFailure::Fail && !failures.is_empty()
}

async fn run_in_order(
    calls: impl Iterator<Item = Call<'_>>,
    scope: &mut Scope,
    policy: OnEventFailure,
) -> Vec<EventFailure> {
    let mut failures = Vec::new();
    for call in calls {
        failures.extend(call.run(scope).await.err());
        if stops(policy, &failures) {
            break;
        }
    }
    failures
}

/// A failure under [`OnEventFailure::Fail`] starts no further handler, but those that run are waited
/// for: dropping them half-way would leave more behind than finishing them.
async fn run_in_parallel(
    calls: impl Iterator<Item = Call<'_>>,
    scope: &mut Scope,
    policy: OnEventFailure,
    concurrency: usize,
) -> Vec<EventFailure> {
    let mut failures = Vec::new();
    let mut emitted: Vec<(usize, Vec<Emission>)> = Vec::new();
    let mut waiting = calls.enumerate();
    let mut running = stream::FuturesUnordered::new();
    loop {
        while running.len() < concurrency && !stops(policy, &failures) {
            let Some((index, call)) = waiting.next() else { break };
            let mut child = scope.child();
            running.push(async move {
                let result = call.run(&mut child).await;
                (index, result, child.take_emitted())
            });
        }
        let Some((index, result, events)) = running.next().await else { break };
        failures.extend(result.err());
        emitted.push((index, events));
    }
    drop(running);
    emitted.sort_by_key(|(index, _)| *index);
    emitted.into_iter().flat_map(|(_, events)| events).for_each(|event| scope.push(event));
    failures
}

fn sort(emitted: Vec<Emission>, outgoing: &mut Vec<Box<dyn OutgoingEvent>>) -> Round {
    let mut round = Round::new();
    for emission in emitted {
        match emission.0 {
            Route::Domain(event) => round.push(event),
            Route::Notification(event) => outgoing.push(event),
        }
    }
    round
}
