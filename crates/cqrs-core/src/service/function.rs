//! The functions that handle events: `each`, `manual` and `batch`.

use std::any::{Any, TypeId, type_name};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::delivery::Delivery;
use super::received::Received;
use super::runtime::{
    AttemptFailure, BatchHandler, BatchLimits, EachHandler, HandlerKind, ManualHandler, Monitor,
};
use super::target::{Handler, sealed};
use crate::broker::BoxFuture;
use crate::event::{AnyEvent, HandlerError, Notification, NotificationEvent};
use crate::scope::Scope;

/// Runs the function once for each event of type `P`; its result settles the message.
///
/// ```
/// # use cqrs_core::{HandlerError, Notification, NotificationEvent, Received, each};
/// # fn f<UserCreated: Notification>() {
/// let target = each(|event: NotificationEvent<UserCreated>, received: Received| async move {
///     println!("{} came as attempt {}", event.event_id, received.attempt());
///     Ok::<(), HandlerError>(())
/// });
/// # }
/// ```
pub fn each<P, F, Fut>(function: F) -> Each<P, F>
where
    P: Notification,
    F: Fn(NotificationEvent<P>, Received) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    Each(Arc::new(function), PhantomData)
}

/// See [`each`].
pub struct Each<P, F>(Arc<F>, PhantomData<fn() -> P>);

/// Runs the function once for each event of type `P`; it settles the message itself.
///
/// The next message of its key starts when this one is settled or given back, even if the function returned
/// before. If the function panics with the delivery unsettled, the retry schedule applies, as for any other
/// handler.
///
/// ```
/// # use cqrs_core::{Delivery, Notification, NotificationEvent, manual};
/// # fn f<UserCreated: Notification>() {
/// let target = manual(|event: NotificationEvent<UserCreated>, delivery: Delivery| async move {
///     if let Err(error) = delivery.ack().await {
///         eprintln!("{} comes again: {error}", event.event_id);
///     }
/// });
/// # }
/// ```
pub fn manual<P, F, Fut>(function: F) -> Manual<P, F>
where
    P: Notification,
    F: Fn(NotificationEvent<P>, Delivery) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    Manual(Arc::new(function), PhantomData)
}

/// See [`manual`].
pub struct Manual<P, F>(Arc<F>, PhantomData<fn() -> P>);

/// Runs the function once for up to `size` events of type `P`, at the latest `wait` after the first one
/// arrived. `Ok` acks them all.
///
/// One batch runs at a time, in order of arrival. A failed batch is tried again by the schedule's immediate
/// retries. If it still fails, each of its events is handled alone, as a batch of one, with its own
/// retries, so that one bad event does not fail the others. So the function must tolerate an event that it
/// has seen before.
pub fn batch<P, F, Fut>(size: usize, wait: Duration, function: F) -> Batch<P, F>
where
    P: Notification,
    F: Fn(Vec<(NotificationEvent<P>, Received)>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    Batch { function: Arc::new(function), limits: BatchLimits { size, wait }, payload: PhantomData }
}

/// See [`batch`].
pub struct Batch<P, F> {
    function: Arc<F>,
    limits: BatchLimits,
    payload: PhantomData<fn() -> P>,
}

/// The `Debug` of a target: its name and the payload type.
macro_rules! debug_as_type {
    ($name:ident) => {
        impl<P, F> fmt::Debug for $name<P, F> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "<{}>"), type_name::<P>())
            }
        }
    };
}
debug_as_type!(Each);
debug_as_type!(Manual);
debug_as_type!(Batch);

fn is_of<P: Notification>(types: [TypeId; 2]) -> bool {
    types.contains(&TypeId::of::<P>())
}

fn typed<P: Notification>(event: Box<dyn AnyEvent>) -> Option<NotificationEvent<P>> {
    let event: Box<dyn Any + Send + Sync> = event.into_any();
    event.downcast::<NotificationEvent<P>>().ok().map(|event| *event)
}

/// Never returned: `build` checks that every type of a subscription has a handler.
fn wrong_type<P>() -> AttemptFailure {
    AttemptFailure::permanent("NoHandler", format!("the handler takes {} only", type_name::<P>()))
}

impl<P, F, Fut> sealed::Sealed for Each<P, F>
where
    P: Notification,
    F: Fn(NotificationEvent<P>, Received) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    fn into_handler(self) -> Handler {
        Handler(HandlerKind::Each(Box::new(self)))
    }
}

impl<P, F, Fut> EachHandler for Each<P, F>
where
    P: Notification,
    F: Fn(NotificationEvent<P>, Received) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    fn handles(&self, types: [TypeId; 2]) -> bool {
        is_of::<P>(types)
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
        let Some(event) = typed::<P>(event) else {
            return Box::pin(async { Err(wrong_type::<P>()) });
        };
        let run = (self.0)(event, received);
        Box::pin(async move { run.await.map_err(AttemptFailure::from) })
    }
}

impl<P, F, Fut> sealed::Sealed for Manual<P, F>
where
    P: Notification,
    F: Fn(NotificationEvent<P>, Delivery) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    fn into_handler(self) -> Handler {
        Handler(HandlerKind::Manual(Box::new(self)))
    }
}

impl<P, F, Fut> ManualHandler for Manual<P, F>
where
    P: Notification,
    F: Fn(NotificationEvent<P>, Delivery) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    fn handles(&self, types: [TypeId; 2]) -> bool {
        is_of::<P>(types)
    }

    fn handle(&self, event: Box<dyn AnyEvent>, delivery: Delivery) -> BoxFuture<'_, ()> {
        match typed::<P>(event) {
            Some(event) => Box::pin((self.0)(event, delivery)),
            None => Box::pin(async move {
                let wrong = HandlerError::permanent(wrong_type::<P>().error.clone());
                drop(delivery.dead_letter(wrong).await);
            }),
        }
    }
}

impl<P, F, Fut> sealed::Sealed for Batch<P, F>
where
    P: Notification,
    F: Fn(Vec<(NotificationEvent<P>, Received)>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    fn into_handler(self) -> Handler {
        let limits = self.limits;
        Handler(HandlerKind::Batch(Box::new(self), limits))
    }
}

impl<P, F, Fut> BatchHandler for Batch<P, F>
where
    P: Notification,
    F: Fn(Vec<(NotificationEvent<P>, Received)>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    fn handles(&self, types: [TypeId; 2]) -> bool {
        is_of::<P>(types)
    }

    fn handle(
        &self,
        events: Vec<(Box<dyn AnyEvent>, Received)>,
    ) -> BoxFuture<'_, Result<(), AttemptFailure>> {
        let events: Option<Vec<_>> = events
            .into_iter()
            .map(|(event, received)| Some((typed::<P>(event)?, received)))
            .collect();
        let Some(events) = events else { return Box::pin(async { Err(wrong_type::<P>()) }) };
        let run = (self.function)(events);
        Box::pin(async move { run.await.map_err(AttemptFailure::from) })
    }
}
