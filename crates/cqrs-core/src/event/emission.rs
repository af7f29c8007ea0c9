//! An emitted event with its type erased, as the dispatch and the scope hold it.

use std::any::{Any, TypeId};
use std::fmt;

use super::notification::{Notification, NotificationEvent};
use super::{DomainEvent, Event, EventRoute};
use crate::codec::SerializeError;
use crate::message::Message;

/// An emitted event, with its type erased and its route chosen.
pub struct Emission(pub(crate) Route);

pub(crate) enum Route {
    /// To the handlers of this process.
    Domain(Box<dyn AnyEvent>),
    /// To the broker.
    Notification(Box<dyn OutgoingEvent>),
}

impl Emission {
    /// To the handlers of this process.
    pub fn domain<E: DomainEvent>(event: E) -> Self {
        Self(Route::Domain(Box::new(event)))
    }

    /// To the broker. Takes the payload, or a [`NotificationEvent`] with an id, time or topic of its own.
    pub fn notification<P: Notification>(event: impl Into<NotificationEvent<P>>) -> Self {
        Self(Route::Notification(Box::new(event.into())))
    }

    /// The event's name.
    pub fn name(&self) -> &str {
        match &self.0 {
            Route::Domain(event) => event.name(),
            Route::Notification(event) => event.name(),
        }
    }

    pub(crate) fn into_event(self) -> Box<dyn AnyEvent> {
        match self.0 {
            Route::Domain(event) => event,
            Route::Notification(event) => event,
        }
    }
}

impl fmt::Debug for Emission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let route = match self.0 {
            Route::Domain(_) => "Domain",
            Route::Notification(_) => "Notification",
        };
        f.debug_tuple(route).field(&self.name()).finish()
    }
}

/// A view of an event: the type its handlers are bound to, and the value they get.
pub(crate) type View<'a> = (TypeId, &'a (dyn Any + Send + Sync));

/// An event of any type, as the dispatch sees it.
pub(crate) trait AnyEvent: Send + Sync {
    fn name(&self) -> &str;
    /// A notification has two: its payload and the whole event.
    fn views(&self) -> (View<'_>, Option<View<'_>>);
    /// The event itself, to be downcast.
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send + Sync>;
}

/// A notification event of any payload, as the publishing side sees it.
pub(crate) trait OutgoingEvent: AnyEvent {
    fn payload_type(&self) -> TypeId;
    /// Sends it to `topic`, unless the emitter chose another topic than the type's own.
    fn override_topic(&mut self, topic: &str);
    fn encode(&self) -> Result<Message, SerializeError>;
}

impl<E: DomainEvent> AnyEvent for E {
    fn name(&self) -> &str {
        E::NAME
    }

    fn views(&self) -> (View<'_>, Option<View<'_>>) {
        ((TypeId::of::<E>(), self), None)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send + Sync> {
        self
    }
}

/// Keeps the blanket impl for domain events apart from the one for notifications.
impl<P: Notification> AnyEvent for NotificationEvent<P> {
    fn name(&self) -> &str {
        &self.event_name
    }

    fn views(&self) -> (View<'_>, Option<View<'_>>) {
        ((TypeId::of::<P>(), &self.payload), Some((TypeId::of::<Self>(), self)))
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send + Sync> {
        self
    }
}

impl<P: Notification> OutgoingEvent for NotificationEvent<P> {
    fn payload_type(&self) -> TypeId {
        TypeId::of::<P>()
    }

    fn override_topic(&mut self, topic: &str) {
        if self.topic == P::topic() {
            self.topic = topic.to_owned().into();
        }
    }

    fn encode(&self) -> Result<Message, SerializeError> {
        self.to_message()
    }
}

impl<P: Notification> Event for NotificationEvent<P> {
    const NAME: &'static str = P::NAME;
    const ROUTE: EventRoute = EventRoute::Notification;

    fn into_emission(self) -> Emission {
        Emission::notification(self)
    }
}
