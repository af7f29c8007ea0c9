//! The mediator of consumed events.

use std::any::{Any, TypeId, type_name};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use uuid::Uuid;

use super::error::{EventSendError, SendError};
use super::inner::{Inner, MediatorShutdown, route};
use super::nesting::SendLevel;
use crate::broker::{BoxFuture, MessageBroker, PublishError};
use crate::dispatch::{Entered, EventsError, PreparedEnd, PreparedEvent, PreparedRun, sealed};
use crate::event::{AnyEvent, Event, EventSlot};
use crate::message::Message;
use crate::middleware::{Answer, AnyResult, CallResult, InvocationKind, Outcome};
use crate::scope::{Scope, SubscriptionInbox};

/// The successful end of a consumed event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consumed {
    /// Its handlers ran.
    Handled,
    /// The inbox had marked it before: no handler ran, or its work was rolled back.
    Duplicate,
}

/// Sends consumed events to their handlers. Cloning is cheap; clones share everything.
///
/// Emitted events are treated as in a [`Mediator`](super::Mediator): domain events are handled in further
/// rounds, notifications are published after the commit.
#[derive(Clone)]
pub struct EventMediator(pub(super) Arc<Inner>);

impl EventMediator {
    /// Runs all handlers of `event`. A notification reaches the handlers bound to its payload type and
    /// those bound to [`NotificationEvent`](crate::NotificationEvent) of it.
    ///
    /// # Errors
    /// See [`SendError`]. An event without any handler is `NoHandler`.
    ///
    /// # Cancel safety
    /// Dropped before the commit, the unit of work is rolled back and nothing is published. From the
    /// commit on, a task finishes it.
    pub async fn send<E: Event>(&self, event: E) -> Result<(), EventSendError> {
        self.send_in(Scope::new(), event).await
    }

    /// As [`send`](Self::send), in a scope that already holds values.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_in<E: Event>(&self, scope: Scope, event: E) -> Result<(), EventSendError> {
        let event = route(event)?.into_event();
        if !self.handles_event(&*event) {
            return Err(SendError::NoHandler { request: type_name::<E>() });
        }
        let sent = self.send_any(scope, event).await;
        if let Err(SendError::Undelivered(undelivered)) = &sent {
            undelivered.log();
        }
        sent.map(drop)
    }

    /// As [`send_in`](Self::send_in), for an event of any type that has a handler. Undelivered events are not
    /// logged.
    pub(crate) async fn send_any(
        &self,
        mut scope: Scope,
        event: Box<dyn AnyEvent>,
    ) -> Result<Consumed, EventSendError> {
        let inner = &*self.0;
        let _entered = inner.open(&mut scope)?;
        let mut scope = scope;
        let inbox = match scope.get::<SubscriptionInbox>() {
            Some(inbox) => Some(inbox.clone()).zip(event.id()),
            None => None,
        };
        if let Some((inbox, id)) = &inbox {
            // Boxed, so that the future of a subscription without an inbox is small.
            if !Box::pin(mark(inner, inbox, *id, &mut scope)).await? {
                return Ok(Consumed::Duplicate);
            }
        }
        let mut level = SendLevel::default();
        let answered = match inner.middlewares.is_empty() {
            true => {
                let answered = {
                    let run = pin!(inner.rounds.run_consumed(&*event, &mut scope));
                    level.run(run).await
                };
                // If its destructor panics, nothing is committed yet.
                drop(event);
                answered.map_err(SendError::Handler)
            }
            false => level.run(Box::pin(run_chain(inner, event, &mut scope))).await,
        };
        let sent = match inbox.is_some() || scope.has_work() {
            true => level.run(Box::pin(end(inner, inbox, &mut scope, answered))).await,
            false => answered.map(|()| Consumed::Handled),
        };
        // The errors of its handlers decide themselves whether a retry may help.
        sent.map_err(|error| level.failed(error))
    }

    /// The handlers of the events of these types, for one worker. `None` if they run in parallel, or middlewares around
    /// them.
    pub(crate) fn prepare(&self, types: [TypeId; 2]) -> Option<PreparedEvent> {
        match self.0.middlewares.is_empty() {
            true => self.0.rounds.prepare(types),
            false => None,
        }
    }

    /// Starts the prepared handlers of `event`, which [`SendRun::poll`] runs.
    #[inline]
    pub(crate) fn start<'s>(
        &'s self,
        mut scope: Scope,
        prepared: &'s mut PreparedEvent,
        event: Box<dyn EventSlot>,
    ) -> Result<SendRun<'s>, EventSendError> {
        let entered = Some(self.0.open(&mut scope)?);
        Ok(SendRun { run: prepared.start(event, scope), entered, inner: &self.0 })
    }

    /// `true` if a handler is bound to one of these types.
    pub(crate) fn handles(&self, types: impl IntoIterator<Item = TypeId>) -> bool {
        types.into_iter().any(|event| self.0.rounds.map.contains(event))
    }

    /// The names of the handlers that are bound to one of these types.
    pub(crate) fn handler_names(&self, types: [TypeId; 2]) -> Vec<&'static str> {
        let bound = types.into_iter().flat_map(|event| self.0.rounds.map.handlers(event));
        bound.map(|bound| bound.name).collect()
    }

    pub(crate) fn handles_event(&self, event: &dyn AnyEvent) -> bool {
        let (first, second) = event.handler_arguments();
        self.handles([Some(first), second].into_iter().flatten().map(|view| view.0))
    }

    /// `true` if its units of work are of this type.
    pub(crate) fn has_unit(&self, unit: TypeId) -> bool {
        self.0.units.as_ref().is_some_and(|source| source.unit_type() == unit)
    }

    /// The broker, if there is one.
    pub(crate) fn broker(&self) -> Option<&Arc<dyn MessageBroker>> {
        self.0.finisher.broker.as_ref()
    }

    /// Refuses new events, and waits up to `deadline` for running sends, commits and publishes. It does not
    /// close the broker: see [`Mediator::shutdown`](super::Mediator::shutdown).
    ///
    /// # Cancel safety
    /// Dropping the future stops only the wait: new events stay refused.
    pub async fn shutdown(&self, deadline: Duration) -> MediatorShutdown {
        self.0.shutdown(deadline).await
    }
}

impl sealed::Sealed for EventMediator {
    fn publish_in_order(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<PublishError>> {
        Box::pin(self.0.publish(messages))
    }
}

/// A send of a consumed event to prepared handlers. It is polled inside of [`SendLevel::call`].
///
/// Dropped before its end, it drops the running handler with its scope, which rolls back.
pub(crate) struct SendRun<'s> {
    run: PreparedRun<'s>,
    /// Dropped after the scope.
    entered: Option<Entered<'s>>,
    inner: &'s Inner,
}

/// A send whose handlers have run. It is not over: one failed, or there is work to commit.
pub(crate) struct SendEnd<'s> {
    answered: Result<(), EventSendError>,
    scope: Scope,
    /// Dropped after the scope.
    _entered: Option<Entered<'s>>,
    inner: &'s Inner,
}

impl<'s> SendRun<'s> {
    /// Runs the handlers. `None`: the event is handled.
    #[inline]
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<SendEnd<'s>>> {
        let Some(end) = ready!(self.run.poll(cx)) else {
            self.entered = None;
            return Poll::Ready(None);
        };
        let PreparedEnd { scope, answered } = end;
        let answered = answered.map_err(SendError::Handler);
        Poll::Ready(Some(SendEnd {
            answered,
            scope,
            _entered: self.entered.take(),
            inner: self.inner,
        }))
    }
}

impl SendEnd<'_> {
    /// Commits or rolls back. `level` is that of the run.
    pub(crate) async fn end(mut self, mut level: SendLevel) -> Result<Consumed, EventSendError> {
        let answered = self.answered;
        let sent = match self.scope.has_work() {
            true => level.run(pin!(end(self.inner, None, &mut self.scope, answered))).await,
            false => answered.map(|()| Consumed::Handled),
        };
        sent.map_err(|error| level.failed(error))
    }
}

crate::debug_fields!(EventMediator {}, |it| events: it.0.rounds.map, broker: it.0.finisher.broker);

/// Marks the event `id` in the inbox. `false` if it was marked before; nothing is left in the scope then.
async fn mark(
    inner: &Inner,
    SubscriptionInbox { inbox, consumer }: &SubscriptionInbox,
    id: Uuid,
    scope: &mut Scope,
) -> Result<bool, EventSendError> {
    let marked = inbox.mark(scope, consumer, id).await.map_err(SendError::UnitOfWork);
    if !matches!(marked, Ok(true)) {
        inner.finisher.fail(scope).await;
    }
    marked
}

/// Ends the scope of handlers that returned `answered`.
async fn end(
    inner: &Inner,
    inbox: Option<(SubscriptionInbox, Uuid)>,
    scope: &mut Scope,
    answered: Result<(), EventSendError>,
) -> Result<Consumed, EventSendError> {
    // The mark is gone if a middleware recovered from a failure: that rolled it back.
    if let Some((inbox, id)) = &inbox
        && answered.is_ok()
        && !scope.is_marked()
        && !mark(inner, inbox, *id, scope).await?
    {
        return Ok(Consumed::Duplicate);
    }
    match scope.has_work() {
        true => inner.finish(scope, answered).await.map(|()| Consumed::Handled),
        false => answered.map(|()| Consumed::Handled),
    }
}

async fn run_chain(
    inner: &Inner,
    event: Box<dyn AnyEvent>,
    scope: &mut Scope,
) -> Result<(), EventSendError> {
    let mut answer = EventAnswer { inner, event, result: CallResult(None) };
    let name = answer.event.name().to_owned();
    inner.run_chain(InvocationKind::Event, &name, scope, &mut answer).await?;
    match answer.result.0 {
        Some(handled) => handled.map_err(SendError::Handler),
        None => Err(SendError::NoResponse),
    }
}

/// The end of a consumed event's middleware chain: runs the handlers.
struct EventAnswer<'r> {
    inner: &'r Inner,
    event: Box<dyn AnyEvent>,
    result: CallResult<(), EventsError>,
}

impl Answer for EventAnswer<'_> {
    fn input(&self, input: TypeId) -> Option<&dyn Any> {
        Some(self.event.argument(input)?)
    }

    fn run<'a>(&'a mut self, scope: &'a mut Scope) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            // Their work is rolled back if one fails, or if this is dropped.
            let mut guard = scope.guard();
            let handled = self.inner.rounds.run_consumed(&*self.event, guard.scope()).await;
            let scope = guard.disarm();
            if handled.is_err() {
                self.inner.finisher.fail(scope).await;
            }
            self.result.set(handled)
        })
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
