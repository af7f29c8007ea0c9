//! An emitted event with its type erased, as the dispatch and the scope hold it.

use std::any::{Any, TypeId};
use std::fmt;

use uuid::Uuid;

use super::notification::{Notification, NotificationEvent};
use super::{DomainEvent, Event, EventRoute};
use crate::codec::SerializeError;
use crate::message::Message;

/// An emitted event, with its type erased and its route chosen.
pub struct Emission(pub(crate) EmissionKind);

/// The two kinds of emitted events.
pub(crate) enum EmissionKind {
    /// A domain event, for the handlers of this process.
    Domain(Box<dyn AnyEvent>),
    /// A notification, for the broker.
    Notification(Box<dyn OutgoingEvent>),
}

impl Emission {
    /// A domain event, for the handlers of this process.
    pub fn domain<E: DomainEvent>(event: E) -> Self {
        Self(EmissionKind::Domain(Box::new(event)))
    }

    /// A notification, for the broker. Takes the payload, or a [`NotificationEvent`] with an id, time or topic of
    /// its own.
    pub fn notification<P: Notification>(event: impl Into<NotificationEvent<P>>) -> Self {
        Self(EmissionKind::Notification(Box::new(event.into())))
    }

    /// The event's name.
    pub fn name(&self) -> &str {
        match &self.0 {
            EmissionKind::Domain(event) => event.name(),
            EmissionKind::Notification(event) => event.name(),
        }
    }

    pub(crate) fn into_notification(self) -> Option<Box<dyn OutgoingEvent>> {
        match self.0 {
            EmissionKind::Domain(_) => None,
            EmissionKind::Notification(event) => Some(event),
        }
    }

    pub(crate) fn into_event(self) -> Box<dyn AnyEvent> {
        match self.0 {
            EmissionKind::Domain(event) => event,
            EmissionKind::Notification(event) => event,
        }
    }
}

impl fmt::Debug for Emission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let route = match self.0 {
            EmissionKind::Domain(_) => "Domain",
            EmissionKind::Notification(_) => "Notification",
        };
        f.debug_tuple(route).field(&self.name()).finish()
    }
}

/// The argument of a handler: the type that it is bound to, and the value that it gets.
pub(crate) type HandlerArgument<'a> = (TypeId, &'a (dyn Any + Send + Sync));

/// An event of any type, as the dispatch sees it.
pub(crate) trait AnyEvent: Any + Send + Sync {
    fn name(&self) -> &str;
    /// The id of a notification.
    fn id(&self) -> Option<Uuid>;
    /// A notification offers two: its payload, and the whole event around it.
    fn handler_arguments(&self) -> (HandlerArgument<'_>, Option<HandlerArgument<'_>>);
    /// The argument of the handlers that are bound to `of`.
    fn argument(&self, of: TypeId) -> Option<&(dyn Any + Send + Sync)> {
        let (first, second) = self.handler_arguments();
        [Some(first), second].into_iter().flatten().find(|view| view.0 == of).map(|view| view.1)
    }
}

/// A notification event of any payload, as the publishing side sees it.
pub(crate) trait OutgoingEvent: AnyEvent {
    fn payload_type(&self) -> TypeId;
    /// Replaces the topic with `topic` if it is still that of the type.
    fn set_topic_if_default(&mut self, topic: &str);
    fn encode(&self) -> Result<Message, SerializeError>;
}

impl<E: DomainEvent> AnyEvent for E {
    fn name(&self) -> &str {
        E::NAME
    }

    fn id(&self) -> Option<Uuid> {
        None
    }

    fn handler_arguments(&self) -> (HandlerArgument<'_>, Option<HandlerArgument<'_>>) {
        ((TypeId::of::<E>(), self), None)
    }
}

/// Keeps the blanket impl for domain events apart from the one for notifications.
impl<P: Notification> AnyEvent for NotificationEvent<P> {
    fn name(&self) -> &str {
        &self.event_name
    }

    fn id(&self) -> Option<Uuid> {
        Some(self.event_id)
    }

    fn handler_arguments(&self) -> (HandlerArgument<'_>, Option<HandlerArgument<'_>>) {
        ((TypeId::of::<P>(), &self.payload), Some((TypeId::of::<Self>(), self)))
    }

    /// As the trait's, in fewer instructions: consumed events need it.
    fn argument(&self, of: TypeId) -> Option<&(dyn Any + Send + Sync)> {
        if of == TypeId::of::<Self>() {
            Some(self)
        } else if of == TypeId::of::<P>() {
            Some(&self.payload)
        } else {
            None
        }
    }
}

impl<P: Notification> OutgoingEvent for NotificationEvent<P> {
    fn payload_type(&self) -> TypeId {
        TypeId::of::<P>()
    }

    fn set_topic_if_default(&mut self, topic: &str) {
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
