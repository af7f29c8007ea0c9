//! Domain events, notification events, their handlers, and the map that binds them.

mod emission;
mod handler;
mod key;
mod map;
mod notification;
mod place;
mod slot;
mod timestamp;

pub use emission::Emission;
pub(crate) use emission::{AnyEvent, EmissionKind, OutgoingEvent};
pub(crate) use handler::Class;
pub use handler::{EventHandler, HandlerError, HandlerResultExt};
pub use key::message_key;
pub(crate) use map::BoundHandler;
pub use map::EventMap;
pub use notification::{
    DEFAULT_OUTPUT_TOPIC, Notification, NotificationEvent, Serializer, default_topic,
};
pub(crate) use place::{Ended, HandlerPlace};
pub(crate) use slot::{EventSlot, Slot};
pub use timestamp::{InvalidTimestamp, Timestamp};

/// Something that happened. [`Scope::emit`](crate::Scope::emit) takes it.
///
/// One trait for both routes: `#[derive(DomainEvent)]` writes an impl that keeps the event in this
/// process, `#[derive(Notification)]` one that sends it to the broker.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event: add `#[derive(DomainEvent)]` or `#[derive(Notification)]`",
    label = "not an event",
    note = "`DomainEvent` keeps it in this process, `Notification` sends it to the broker"
)]
pub trait Event: Sized + Send + Sync + 'static {
    /// The event's name in logs, errors and, for notifications, on the wire.
    const NAME: &'static str;

    /// The route that [`into_emission`](Self::into_emission) picks, so that wiring can be checked.
    const ROUTE: EventRoute;

    /// Picks the event's route: [`Emission::domain`] or [`Emission::notification`].
    fn into_emission(self) -> Emission;
}

/// The destination of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventRoute {
    /// To the handlers of this process.
    Domain,
    /// To the broker.
    Notification,
}

/// An event whose handlers run in this process, inside the unit of work that caused it.
pub trait DomainEvent: Event {}
