//! The targets of a subscription: mediators, and the functions of [`function`](super::function).

use std::any::TypeId;
use std::fmt;

use super::received::Received;
use super::runtime::{AttemptFailure, EachHandler, HandlerKind, Monitor, send};
use crate::broker::BoxFuture;
use crate::event::AnyEvent;
use crate::mediator::EventMediator;
use crate::scope::Scope;

/// The target of a subscription's events: an [`EventMediator`], [`per_delivery`], [`each`](super::each),
/// [`manual`](super::manual) or [`batch`](super::batch).
///
/// Sealed: the runtime must know how the messages of each kind are settled.
pub trait Target: sealed::Sealed {}

impl<T: sealed::Sealed> Target for T {}

pub(super) mod sealed {
    #[diagnostic::on_unimplemented(
        message = "`{Self}` cannot handle the events of a subscription",
        note = "give an `EventMediator`, or a function in `each(..)`, `manual(..)` or `batch(..)`"
    )]
    pub trait Sealed {
        #[doc(hidden)]
        fn into_handler(self) -> super::Handler;
    }
}

/// The handler of a target.
pub struct Handler(pub(super) HandlerKind);

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            HandlerKind::Each(_) => "Each",
            HandlerKind::Manual(_) => "Manual",
            HandlerKind::Batch(..) => "Batch",
        };
        f.debug_tuple("Handler").field(&kind).finish()
    }
}

// ---- mediators

impl sealed::Sealed for EventMediator {
    fn into_handler(self) -> Handler {
        Handler(HandlerKind::Each(Box::new(self)))
    }
}

impl EachHandler for EventMediator {
    fn handles(&self, types: [TypeId; 2]) -> bool {
        EventMediator::handles(self, types)
    }

    fn has_unit(&self, unit: TypeId) -> bool {
        EventMediator::has_unit(self, unit)
    }

    fn mediator(&self) -> Option<&EventMediator> {
        Some(self)
    }

    fn handle<'a>(
        &'a self,
        event: Box<dyn AnyEvent>,
        received: Received,
        scope: Scope,
        monitor: &'a Monitor,
    ) -> BoxFuture<'a, Result<(), AttemptFailure>> {
        Box::pin(send(self, event, scope.with(received), monitor))
    }
}

/// A target that builds a mediator for each delivery, by `factory` from the message.
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

impl<F: Fn(&Received) -> EventMediator + Send + Sync + 'static> sealed::Sealed for PerDelivery<F> {
    fn into_handler(self) -> Handler {
        Handler(HandlerKind::Each(Box::new(self)))
    }
}

impl<F: Fn(&Received) -> EventMediator + Send + Sync + 'static> EachHandler for PerDelivery<F> {
    /// Its types are known only when it is built; an event without a handler becomes a dead letter.
    fn handles(&self, _types: [TypeId; 2]) -> bool {
        true
    }

    fn has_unit(&self, _unit: TypeId) -> bool {
        true
    }

    fn handle<'a>(
        &'a self,
        event: Box<dyn AnyEvent>,
        received: Received,
        scope: Scope,
        monitor: &'a Monitor,
    ) -> BoxFuture<'a, Result<(), AttemptFailure>> {
        Box::pin(async move {
            let mediator = (self.0)(&received);
            let (first, second) = event.handler_arguments();
            let types = [first.0, second.map_or(first.0, |view| view.0)];
            if !EventMediator::handles(&mediator, types) {
                let text = format!("the mediator has no handler of {}", event.name());
                return Err(AttemptFailure::permanent("NoHandler", text));
            }
            send(&mediator, event, scope.with(received), monitor).await
        })
    }
}
