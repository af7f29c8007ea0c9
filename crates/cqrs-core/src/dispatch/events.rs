//! The rounds in which emitted events reach their handlers, run by both mediators.

use std::any::{Any, TypeId};
use std::collections::HashSet;
use std::error::Error;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use futures_util::StreamExt;
use futures_util::stream;

use super::panics::{Caught, caught};
use crate::broker::BoxFuture;
use crate::error::listed;
use crate::event::{
    AnyEvent, BoundHandler, Emission, EmissionKind, EventMap, HandlerError, OutgoingEvent,
};
use crate::scope::Scope;

/// The effect of a failing event handler on the `send` that caused the event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnEventFailure {
    /// No further handler starts, the unit of work is rolled back, and `send` returns the error.
    /// The default.
    #[default]
    Fail,
    /// All handlers of the round run; then as [`Fail`](Self::Fail), with all errors.
    FinishRound,
    /// The failure is logged and `send` goes on. The handler's writes stay in the unit of work; its events
    /// are dropped. python-cqrs does this.
    ///
    /// Some databases end a transaction at its first failed statement: PostgreSQL then rolls back at the
    /// commit. A failing handler of a consumed event is never only logged: for these this is
    /// [`FinishRound`](Self::FinishRound), and `Log` applies to the follow-ups.
    Log,
}

/// The options of running the handlers of emitted events.
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

impl EventOptions {
    /// The policy for the handlers of a consumed event: a failure is never only logged.
    pub(super) fn of_consumed(&self) -> OnEventFailure {
        match self.on_failure {
            OnEventFailure::Log => OnEventFailure::FinishRound,
            policy => policy,
        }
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

/// The error of a `send` whose events were not all handled.
#[non_exhaustive]
pub enum EventsError {
    /// Handlers failed. `source()` is the cause of the first permanent failure, if there is one, else of
    /// the first failure.
    Failed(Vec<EventFailure>),
    /// Handlers emitted events whose handlers emitted events, and so on, in more rounds than allowed.
    TooDeep {
        /// The first event over the limit.
        event: String,
        /// The limit.
        depth: usize,
    },
}

impl EventsError {
    /// `true` if a retry of the same event may help: all failures are retryable.
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
            Self::Failed(failures) => write!(f, "event handlers failed: {}", listed(failures)),
            Self::TooDeep { event, depth } => {
                write!(f, "events of {event} went round {depth} times, the limit: is there a loop?")
            }
        }
    }
}

crate::error_debug!(EventsError);

impl Error for EventsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let Self::Failed(failures) = self else { return None };
        let permanent = failures.iter().find(|failure| !failure.error.is_retryable());
        // `Display` prints the failures themselves.
        permanent.or(failures.first())?.error.source().source()
    }
}

/// Runs handlers in rounds: all handlers of this round's events, then those of the events they emitted.
///
/// Sequential handlers run in order of emission and of binding and share the scope, transaction included.
/// With a concurrency above 1 the handlers of one round run in parallel inside the caller's task, each with
/// a child scope; their events are sorted by emission and binding.
#[derive(Debug, Default)]
pub(crate) struct EventRounds {
    pub(crate) map: EventMap,
    pub(crate) options: EventOptions,
    /// Domain events that may be without a handler: no warning, or none any more.
    pub(crate) unhandled: Mutex<HashSet<TypeId>>,
}

/// The call of one handler with one event of a round.
#[derive(Clone, Copy)]
struct Call<'a> {
    event: &'a dyn AnyEvent,
    argument: &'a (dyn Any + Send + Sync),
    bound: &'a BoundHandler,
}

impl Call<'_> {
    /// Starts the handler.
    fn start<'s>(&'s self, scope: &'s mut Scope) -> Caught<BoxFuture<'s, Handled>> {
        caught(|| self.bound.handler.handle(self.argument, scope))
    }

    /// The failure of a run that ended with `error`. Its events are dropped: all but the first `emitted` in the scope.
    fn failure(self, error: HandlerError, scope: &mut Scope, emitted: usize) -> EventFailure {
        scope.truncate_emitted(emitted);
        EventFailure { event: self.event.name().to_owned(), handler: self.bound.name, error }
    }
}

type Handled = Result<(), HandlerError>;

fn or_panic(ended: Result<Handled, String>) -> Handled {
    ended.unwrap_or_else(|panic| Err(HandlerError::panicked(panic)))
}

impl EventRounds {
    /// Runs rounds until no domain event is left. Returns the notifications in order of emission.
    pub(crate) async fn settle(
        &self,
        scope: &mut Scope,
    ) -> Result<Vec<Box<dyn OutgoingEvent>>, EventsError> {
        let mut outgoing = Vec::new();
        let mut depth = 0;
        loop {
            let round = scope.take_emitted();
            let is_last = match domain_events(&round).next() {
                Some(first) if depth == self.options.max_depth => {
                    return Err(EventsError::TooDeep { event: first.name().to_owned(), depth });
                }
                Some(_) => {
                    domain_events(&round).for_each(|event| self.warn_if_unhandled(event));
                    self.run_round(domain_events(&round), scope, self.options.on_failure).await?;
                    depth += 1;
                    false
                }
                None => true,
            };
            outgoing.extend(round.into_iter().filter_map(Emission::into_notification));
            if is_last {
                return Ok(outgoing);
            }
        }
    }

    /// Runs all handlers of a consumed event; their events stay in the scope. Failures are never only
    /// logged: the caller must retry the delivery.
    pub(crate) fn run_consumed(
        &self,
        event: &dyn AnyEvent,
        scope: &mut Scope,
    ) -> impl Future<Output = Result<(), EventsError>> + Send {
        self.run_round(std::iter::once(event), scope, self.options.of_consumed())
    }

    /// Runs all handlers of `events`; their events stay in the scope.
    async fn run_round<'e>(
        &self,
        events: impl Iterator<Item = &'e dyn AnyEvent>,
        scope: &mut Scope,
        policy: OnEventFailure,
    ) -> Result<(), EventsError> {
        if self.options.concurrency > 1 {
            let calls = events.flat_map(|event| self.calls(event));
            let run = run_in_parallel(calls, scope, policy, self.options.concurrency);
            return ended(Box::pin(run).await, policy);
        }
        let mut failures = Vec::new();
        for event in events {
            // Not by `calls`, whose iterator is large and would be copied for each event.
            let (first, mut second) = event.handler_arguments();
            let mut next = Some(first);
            while let Some((of, argument)) = next {
                for bound in self.map.handlers(of) {
                    if stops(policy, &failures) {
                        return ended(failures, policy);
                    }
                    let (call, emitted) = (Call { event, argument, bound }, scope.emitted_len());
                    if let Err(error) = or_panic(call.start(scope).await) {
                        failures.push(call.failure(error, scope, emitted));
                    }
                }
                next = second.take();
            }
        }
        match failures.is_empty() {
            true => Ok(()),
            false => ended(failures, policy),
        }
    }

    /// Warns once of a domain event without a handler.
    fn warn_if_unhandled(&self, event: &dyn AnyEvent) {
        let ((event_type, _), _) = event.handler_arguments();
        if self.map.contains(event_type) {
            return;
        }
        if self.unhandled.lock().unwrap_or_else(PoisonError::into_inner).insert(event_type) {
            tracing::warn!(
                event = event.name(),
                "a domain event has no handler: bind one with `event`, or say that this is meant with \
                 `may_be_unhandled`"
            );
        }
    }

    fn calls<'a>(&'a self, event: &'a dyn AnyEvent) -> impl Iterator<Item = Call<'a>> {
        let (first, second) = event.handler_arguments();
        [Some(first), second].into_iter().flatten().flat_map(move |(of, argument)| {
            self.map.handlers(of).iter().map(move |bound| Call { event, argument, bound })
        })
    }
}

/// The end of a round with `failures`.
pub(super) fn ended(
    failures: Vec<EventFailure>,
    policy: OnEventFailure,
) -> Result<(), EventsError> {
    match policy {
        _ if failures.is_empty() => Ok(()),
        OnEventFailure::Fail | OnEventFailure::FinishRound => Err(EventsError::Failed(failures)),
        OnEventFailure::Log => {
            for failure in failures {
                let EventFailure { event, handler, error } = &failure;
                tracing::error!(event, handler, error = error.source(), "event handler failed");
            }
            Ok(())
        }
    }
}

pub(super) fn stops(policy: OnEventFailure, failures: &[EventFailure]) -> bool {
    policy == OnEventFailure::Fail && !failures.is_empty()
}

/// After a failure under [`OnEventFailure::Fail`] no further handler starts. Running ones are awaited:
/// dropping them would leave more partial work than finishing them.
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
                let failure = match or_panic(call.start(&mut child).await) {
                    Ok(()) => None,
                    Err(error) => Some(call.failure(error, &mut child, 0)),
                };
                (index, failure, child.take_emitted())
            });
        }
        let Some((index, failure, events)) = running.next().await else { break };
        failures.extend(failure);
        emitted.push((index, events));
    }
    drop(running);
    emitted.sort_by_key(|(index, _)| *index);
    emitted.into_iter().flat_map(|(_, events)| events).for_each(|event| scope.push(event));
    failures
}

fn domain_events(round: &[Emission]) -> impl Iterator<Item = &dyn AnyEvent> {
    round.iter().filter_map(|emission| match &emission.0 {
        EmissionKind::Domain(event) => Some(&**event),
        EmissionKind::Notification(_) => None,
    })
}
