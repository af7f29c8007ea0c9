//! The slot of a consumed event: an allocation that a worker fills again and again. Used by the service runtime.

use std::any::{Any, TypeId};

use uuid::Uuid;

use super::emission::{AnyEvent, HandlerArgument};
use super::notification::{Notification, NotificationEvent};

/// A consumed event in an allocation that is used again, with its type erased.
///
/// An empty one has the name of its type, no id, and nothing for a handler.
pub(crate) trait EventSlot: AnyEvent {
    /// Drops the event. The empty slot is for the next one, unless it is too large to be kept.
    fn into_spare(self: Box<Self>) -> Option<Box<dyn EventSlot>>;
}

/// The size of the largest slot, and of the largest future of a handler, that a worker keeps: it has one for each route
/// and one for each handler.
pub(super) const MOST_KEPT: usize = 2_048;

/// The slot of one type of events.
pub(crate) struct Slot<P>(Option<NotificationEvent<P>>);

impl<P: Notification> Slot<P> {
    /// `event` in `spare`, if that is a slot of this type, else in a new one.
    pub(crate) fn fill(
        spare: Option<Box<dyn EventSlot>>,
        event: NotificationEvent<P>,
    ) -> Box<dyn EventSlot> {
        if let Some(spare) = spare
            && let Ok(mut slot) = (spare as Box<dyn Any>).downcast::<Self>()
        {
            slot.0 = Some(event);
            return slot;
        }
        Box::new(Self(Some(event)))
    }

    pub(crate) fn into_event(self) -> Option<NotificationEvent<P>> {
        self.0
    }
}

impl<P: Notification> EventSlot for Slot<P> {
    fn into_spare(mut self: Box<Self>) -> Option<Box<dyn EventSlot>> {
        self.0 = None;
        match size_of::<Self>() > MOST_KEPT {
            true => None,
            false => Some(self),
        }
    }
}

impl<P: Notification> AnyEvent for Slot<P> {
    fn name(&self) -> &str {
        self.0.as_ref().map_or(P::NAME, AnyEvent::name)
    }

    fn id(&self) -> Option<Uuid> {
        self.0.as_ref().and_then(AnyEvent::id)
    }

    fn handler_arguments(&self) -> (HandlerArgument<'_>, Option<HandlerArgument<'_>>) {
        match &self.0 {
            Some(event) => event.handler_arguments(),
            None => ((TypeId::of::<()>(), &()), None),
        }
    }

    fn argument(&self, of: TypeId) -> Option<&(dyn Any + Send + Sync)> {
        self.0.as_ref()?.argument(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize, cqrs_macros::Notification)]
    #[cqrs(crate = "crate")]
    struct Told(u32);

    #[derive(serde::Serialize, cqrs_macros::Notification)]
    #[cqrs(crate = "crate")]
    struct Other;

    #[derive(serde::Serialize, cqrs_macros::Notification)]
    #[cqrs(crate = "crate")]
    struct Large {
        #[serde(skip)]
        _filling: [u8; MOST_KEPT],
    }

    fn told(number: u32) -> NotificationEvent<Told> {
        NotificationEvent::new(Told(number))
    }

    fn number(slot: &dyn EventSlot) -> Option<u32> {
        slot.argument(TypeId::of::<Told>())?.downcast_ref::<Told>().map(|told| told.0)
    }

    #[test]
    fn slot_of_the_type_is_filled_again() {
        let slot = Slot::fill(None, told(1));
        let at = std::ptr::from_ref(&*slot).addr();
        assert_eq!(number(&*slot), Some(1));
        let slot = slot.into_spare().unwrap();
        assert_eq!((number(&*slot), slot.id(), slot.name()), (None, None, "Told"));
        let event = told(2);
        let id = event.event_id;
        let filled = Slot::fill(Some(slot), event);
        assert_eq!(std::ptr::from_ref(&*filled).addr(), at);
        assert_eq!((number(&*filled), filled.id()), (Some(2), Some(id)));
    }

    #[test]
    fn slot_of_another_type_is_not_used() {
        let other = Slot::fill(None, NotificationEvent::new(Other));
        assert_eq!(number(&*Slot::fill(other.into_spare(), told(1))), Some(1));
    }

    #[test]
    fn large_slot_is_not_kept() {
        let large = Slot::fill(None, NotificationEvent::new(Large { _filling: [0; MOST_KEPT] }));
        assert!(large.into_spare().is_none());
    }
}
