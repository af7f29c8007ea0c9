//! The handlers of a subscription, as the engine runs them.

use std::any::TypeId;
use std::time::Duration;

use super::failure::AttemptFailure;
use super::monitor::Monitor;
use super::repeats::{Logged, log_first};
use super::undelivered::publish_again;
use crate::broker::BoxFuture;
use crate::consume::support::error_chain;
use crate::event::AnyEvent;
use crate::mediator::{Consumed, EventMediator, SendError};
use crate::scope::{Scope, UnitOfWorkError};
use crate::service::delivery::Delivery;
use crate::service::received::Received;

pub(crate) enum HandlerKind {
    Each(Box<dyn EachHandler>),
    Manual(Box<dyn ManualHandler>),
    Batch(Box<dyn BatchHandler>, BatchLimits),
}

impl HandlerKind {
    /// `true` if it handles events of one of these types.
    pub(crate) fn handles(&self, types: [TypeId; 2]) -> bool {
        match self {
            Self::Each(handler) => handler.handles(types),
            Self::Manual(handler) => handler.handles(types),
            Self::Batch(handler, _) => handler.handles(types),
        }
    }

    /// `true` if it handles events in a unit of work of this type, as far as that is known before it runs.
    pub(crate) fn has_unit(&self, unit: TypeId) -> bool {
        matches!(self, Self::Each(handler) if handler.has_unit(unit))
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLimits {
    pub(crate) size: usize,
    pub(crate) wait: Duration,
}

pub(crate) trait EachHandler: Send + Sync {
    fn handles(&self, types: [TypeId; 2]) -> bool;
    /// See [`HandlerKind::has_unit`].
    fn has_unit(&self, unit: TypeId) -> bool;
    /// The mediator, if it is one.
    fn mediator(&self) -> Option<&EventMediator> {
        None
    }
    fn handle<'a>(
        &'a self,
        event: Box<dyn AnyEvent>,
        received: Received,
        scope: Scope,
        monitor: &'a Monitor,
    ) -> BoxFuture<'a, Result<(), AttemptFailure>>;
}

pub(crate) trait ManualHandler: Send + Sync {
    fn handles(&self, types: [TypeId; 2]) -> bool;
    fn handle(&self, event: Box<dyn AnyEvent>, delivery: Delivery) -> BoxFuture<'_, ()>;
}

pub(crate) trait BatchHandler: Send + Sync {
    fn handles(&self, types: [TypeId; 2]) -> bool;
    fn handle(
        &self,
        events: Vec<(Box<dyn AnyEvent>, Received)>,
    ) -> BoxFuture<'_, Result<(), AttemptFailure>>;
}

/// A batch of one.
pub(super) struct BatchOfOne<'h>(pub(super) &'h dyn BatchHandler);

impl EachHandler for BatchOfOne<'_> {
    fn handles(&self, types: [TypeId; 2]) -> bool {
        self.0.handles(types)
    }

    fn has_unit(&self, _unit: TypeId) -> bool {
        false
    }

    fn handle<'a>(
        &'a self,
        event: Box<dyn AnyEvent>,
        received: Received,
        _scope: Scope,
        _monitor: &'a Monitor,
    ) -> BoxFuture<'a, Result<(), AttemptFailure>> {
        self.0.handle(vec![(event, received)])
    }
}

/// Sends `event` to its handlers.
pub(crate) async fn send(
    mediator: &EventMediator,
    event: Box<dyn AnyEvent>,
    scope: Scope,
    monitor: &Monitor,
) -> Result<(), AttemptFailure> {
    match mediator.send_any(scope, event).await {
        Ok(Consumed::Handled) => Ok(()),
        Ok(Consumed::Duplicate) => {
            monitor.counters.duplicates.one();
            Ok(())
        }
        Err(SendError::UnitOfWork(UnitOfWorkError::Inbox(source))) => {
            let error = error_chain(&*source);
            log_first!(
                monitor.repeats.is_first(Logged::NotMarkedNow, "inbox"),
                warn,
                subscription = %monitor.name,
                error,
                "the inbox cannot mark a message now: it waits"
            );
            Err(AttemptFailure::not_tried("UnitOfWorkError", error))
        }
        Err(SendError::Undelivered(undelivered)) => {
            Box::pin(publish_again(mediator.broker(), undelivered.events, monitor)).await
        }
        Err(error) => Err(AttemptFailure::of_mediator(&error)),
    }
}
