//! The functions that handle events: `each`, `manual` and `batch`.

use std::any::{Any, TypeId, type_name};
use std::sync::Arc;
use std::time::Duration;

use super::delivery::Delivery;
use super::runtime::{AttemptFailure, Attempted, BatchLimits, EachHandler, Events, HandlerKind};
use super::target::Handler;
use crate::broker::BoxFuture;
use crate::consume::Received;
use crate::event::{EventSlot, HandlerError, Notification, NotificationEvent, Slot};

/// A function that [`each`] takes: an alias of its `Fn` bound, so that the compiler's error says what to
/// write.
#[diagnostic::on_unimplemented(
    message = "`each` takes a function \
               `async fn(NotificationEvent<E>, Received) -> Result<(), HandlerError>`",
    label = "not such a function",
    note = "a closure names the type of its event and, if nothing else does, of its error: \
            `each(|event: NotificationEvent<UserCreated>, received: Received| async move {{ .. \
            Ok::<(), HandlerError>(()) }})`"
)]
pub trait EachFunction<P>: Fn(NotificationEvent<P>, Received) -> Self::Future {
    /// The future of one run.
    type Future: Future<Output = Result<(), HandlerError>>;
}

#[diagnostic::do_not_recommend]
impl<P, F, Fut> EachFunction<P> for F
where
    F: Fn(NotificationEvent<P>, Received) -> Fut,
    Fut: Future<Output = Result<(), HandlerError>>,
{
    type Future = Fut;
}

/// A function that [`manual`] takes, as [`EachFunction`] is one that [`each`] takes.
#[diagnostic::on_unimplemented(
    message = "`manual` takes a function `async fn(NotificationEvent<E>, Delivery)` that returns nothing",
    label = "not such a function",
    note = "it settles the delivery itself, on errors too: \
            `manual(|event: NotificationEvent<UserCreated>, delivery: Delivery| async move {{ .. }})`"
)]
pub trait ManualFunction<P>: Fn(NotificationEvent<P>, Delivery) -> Self::Future {
    /// The future of one run.
    type Future: Future<Output = ()>;
}

#[diagnostic::do_not_recommend]
impl<P, F, Fut> ManualFunction<P> for F
where
    F: Fn(NotificationEvent<P>, Delivery) -> Fut,
    Fut: Future<Output = ()>,
{
    type Future = Fut;
}

/// A function that [`batch`] takes, as [`EachFunction`] is one that [`each`] takes.
#[diagnostic::on_unimplemented(
    message = "`batch` takes a function \
               `async fn(Vec<(NotificationEvent<E>, Received)>) -> Result<(), HandlerError>`",
    label = "not such a function",
    note = "a closure names the type of its events and, if nothing else does, of its error: \
            `batch(100, wait, |events: Vec<(NotificationEvent<UserCreated>, Received)>| async move {{ .. \
            Ok::<(), HandlerError>(()) }})`"
)]
pub trait BatchFunction<P>: Fn(Vec<(NotificationEvent<P>, Received)>) -> Self::Future {
    /// The future of one run.
    type Future: Future<Output = Result<(), HandlerError>>;
}

#[diagnostic::do_not_recommend]
impl<P, F, Fut> BatchFunction<P> for F
where
    F: Fn(Vec<(NotificationEvent<P>, Received)>) -> Fut,
    Fut: Future<Output = Result<(), HandlerError>>,
{
    type Future = Fut;
}

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
pub fn each<P, F>(function: F) -> Handler
where
    P: Notification,
    F: EachFunction<P> + Send + Sync + 'static,
    F::Future: Send + 'static,
{
    let run =
        move |(event, received)| attempted(typed(event).map(|event| function(event, received)));
    Handler(HandlerKind::Each(EachHandler::Function(TypeId::of::<P>(), Box::new(run))))
}

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
pub fn manual<P, F>(function: F) -> Handler
where
    P: Notification,
    F: ManualFunction<P> + Send + Sync + 'static,
    F::Future: Send + 'static,
{
    let run = move |(event, delivery): (_, Delivery)| match typed(event) {
        Ok(event) => Box::pin(function(event, delivery)) as BoxFuture<'static, ()>,
        Err(failure) => Box::pin(async move {
            let wrong = HandlerError::permanent(failure.error.clone());
            drop(delivery.dead_letter(wrong).await);
        }),
    };
    Handler(HandlerKind::Manual(TypeId::of::<P>(), Box::new(run)))
}

/// Runs the function once for up to `size` events of type `P`, at the latest `wait` after the first one
/// arrived. `Ok` acks them all.
///
/// One batch runs at a time, in order of arrival. A failed batch is tried again by the schedule's immediate
/// retries. If it still fails, each of its events is handled alone, as a batch of one, with its own
/// retries, so that one bad event does not fail the others. So the function must tolerate an event that it
/// has seen before.
pub fn batch<P, F>(size: usize, wait: Duration, function: F) -> Handler
where
    P: Notification,
    F: BatchFunction<P> + Send + Sync + 'static,
    F::Future: Send + 'static,
{
    let run = Arc::new(move |events: Events| {
        let typed = |(event, received)| Ok((typed(event)?, received));
        attempted(events.into_iter().map(typed).collect::<Result<_, _>>().map(&function))
    });
    let one = Arc::clone(&run);
    let alone = Box::new(move |one_event| one(vec![one_event]));
    Handler(HandlerKind::Batch {
        alone: EachHandler::Function(TypeId::of::<P>(), alone),
        together: Box::new(move |events| run(events)),
        limits: BatchLimits { size, wait },
    })
}

/// The payload's event. `Err` is never returned: `build` checks that every type of a subscription has a handler.
fn typed<P: Notification>(
    event: Box<dyn EventSlot>,
) -> Result<NotificationEvent<P>, AttemptFailure> {
    let slot = (event as Box<dyn Any>).downcast::<Slot<P>>().ok();
    slot.and_then(|slot| slot.into_event()).ok_or_else(|| {
        let text = format!("the handler takes {} only", type_name::<P>());
        AttemptFailure::permanent("NoHandler", text)
    })
}

/// The future of a run that may not have begun.
fn attempted<Fut>(run: Result<Fut, AttemptFailure>) -> BoxFuture<'static, Attempted>
where
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    Box::pin(async move { run?.await.map_err(AttemptFailure::from) })
}
