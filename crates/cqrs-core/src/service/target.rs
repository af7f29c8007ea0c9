use std::any::TypeId;
use std::fmt;
use std::time::Duration;

use super::delivery::Delivery;
use super::failure::Failure;
use super::received::Received;
use super::state::Watched;
use super::undelivered::publish_again;
use crate::broker::BoxFuture;
use crate::event::AnyEvent;
use crate::mediator::{EventMediator, SendError};
use crate::scope::Scope;

/// What a subscription's events go to: an [`EventMediator`], [`per_delivery`], [`each`](super::each),
/// [`manual`](super::manual) or [`batch`](super::batch).
///
/// Sealed: the runtime must know how each is settled.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot handle the events of a subscription",
    note = "give an `EventMediator`, or a function in `each(..)`, `manual(..)` or `batch(..)`"
)]
pub trait Target: sealed::Sealed {}

pub(super) mod sealed {
    pub trait Sealed {
        #[doc(hidden)]
        fn into_handler(self) -> super::Handler;
    }
}

/// What runs for an event.
pub struct Handler(pub(super) Kind);

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Kind::Each(_) => "Each",
            Kind::Manual(_) => "Manual",
            Kind::Batch(..) => "Batch",
        };
        f.debug_tuple("Handler").field(&kind).finish()
    }
}

pub(super) enum Kind {
    Each(Box<dyn EachHandler>),
    Manual(Box<dyn ManualHandler>),
    Batch(Box<dyn BatchHandler>, BatchLimits),
}

impl Kind {
    /// Whether events of these types have a handler in it.
    pub(super) fn handles(&self, types: [TypeId; 2]) -> bool {
        match self {
            Self::Each(handler) => handler.handles(types),
            Self::Manual(handler) => handler.handles(types),
            Self::Batch(handler, _) => handler.handles(types),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct BatchLimits {
    pub(super) size: usize,
    pub(super) wait: Duration,
}

pub(super) trait EachHandler: Send + Sync {
    fn handles(&self, types: [TypeId; 2]) -> bool;
    /// The mediator that it is.
    fn mediator(&self) -> Option<&EventMediator> {
        None
    }
    fn handle<'a>(
        &'a self,
        event: Box<dyn AnyEvent>,
        received: Received,
        scope: Scope,
        watched: &'a Watched,
    ) -> BoxFuture<'a, Result<(), Failure>>;
}

pub(super) trait ManualHandler: Send + Sync {
    fn handles(&self, types: [TypeId; 2]) -> bool;
    fn handle(&self, event: Box<dyn AnyEvent>, delivery: Delivery) -> BoxFuture<'_, ()>;
}

pub(super) trait BatchHandler: Send + Sync {
    fn handles(&self, types: [TypeId; 2]) -> bool;
    fn handle(
        &self,
        events: Vec<(Box<dyn AnyEvent>, Received)>,
    ) -> BoxFuture<'_, Result<(), Failure>>;
}

// ---- mediators

impl Target for EventMediator {}

impl sealed::Sealed for EventMediator {
    fn into_handler(self) -> Handler {
        Handler(Kind::Each(Box::new(self)))
    }
}

impl EachHandler for EventMediator {
    fn handles(&self, types: [TypeId; 2]) -> bool {
        EventMediator::handles(self, types)
    }

    fn mediator(&self) -> Option<&EventMediator> {
        Some(self)
    }

    fn handle<'a>(
        &'a self,
        event: Box<dyn AnyEvent>,
        received: Received,
        scope: Scope,
        watched: &'a Watched,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(send(self, event, scope.with(received), watched))
    }
}

/// Sends `event` to its handlers.
pub(super) async fn send(
    mediator: &EventMediator,
    event: Box<dyn AnyEvent>,
    scope: Scope,
    watched: &Watched,
) -> Result<(), Failure> {
    match mediator.send_any(scope, event).await {
        Ok(()) => Ok(()),
        Err(SendError::Undelivered(undelivered)) => {
            Box::pin(publish_again(mediator.broker(), undelivered.events, watched)).await
        }
        Err(error) => Err(Failure::of_mediator(&error)),
    }
}

/// A mediator of its own for each delivery, built by `factory` from the message.
pub fn per_delivery<F>(factory: F) -> PerDelivery<F>
where
    F: Fn(&Received) -> EventMediator + Send + Sync + 'static,
{
    PerDelivery(factory)
}

/// See [`per_delivery`].
pub struct PerDelivery<F>(F);

impl<F> fmt::Debug for PerDelivery<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PerDelivery")
    }
}

impl<F: Fn(&Received) -> EventMediator + Send + Sync + 'static> Target for PerDelivery<F> {}

impl<F: Fn(&Received) -> EventMediator + Send + Sync + 'static> sealed::Sealed for PerDelivery<F> {
    fn into_handler(self) -> Handler {
        Handler(Kind::Each(Box::new(self)))
    }
}

impl<F: Fn(&Received) -> EventMediator + Send + Sync + 'static> EachHandler for PerDelivery<F> {
    /// What it handles is known only when it is built; an event without a handler becomes a dead letter.
    fn handles(&self, _types: [TypeId; 2]) -> bool {
        true
    }

    fn handle<'a>(
        &'a self,
        event: Box<dyn AnyEvent>,
        received: Received,
        scope: Scope,
        watched: &'a Watched,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let mediator = (self.0)(&received);
            let (first, second) = event.views();
            let types = [first.0, second.map_or(first.0, |view| view.0)];
            if !EventMediator::handles(&mediator, types) {
                let text = format!("the mediator has no handler of {}", event.name());
                return Err(Failure::permanent("NoHandler", text));
            }
            send(&mediator, event, scope.with(received), watched).await
        })
    }
}

// ---- batches

/// A batch of one.
pub(super) struct BatchOfOne<'h>(pub(super) &'h dyn BatchHandler);

impl EachHandler for BatchOfOne<'_> {
    fn handles(&self, types: [TypeId; 2]) -> bool {
        self.0.handles(types)
    }

    fn handle<'a>(
        &'a self,
        event: Box<dyn AnyEvent>,
        received: Received,
        _scope: Scope,
        _watched: &'a Watched,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        self.0.handle(vec![(event, received)])
    }
}
