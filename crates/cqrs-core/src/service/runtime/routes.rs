//! The event types of a subscription, and the deserializer of each.

use std::any::{TypeId, type_name};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::codec::{DeserializeError, DeserializeErrorKind, Deserializer};
use crate::consume::Incoming;
use crate::dispatch::PreparedEvent;
use crate::event::{EventSlot, Notification, NotificationEvent, Slot};
use crate::service::policy::Undecodable;

/// The event types of a subscription and their deserializers.
#[derive(Clone, Default)]
pub(crate) struct Routes {
    routes: Vec<Arc<dyn Route>>,
    /// Every message is of the only type, whatever its name.
    pub(crate) any_name: bool,
}

/// A decoded event, and the index of its route.
pub(crate) struct Decoded {
    pub(crate) route: usize,
    pub(crate) event: Box<dyn EventSlot>,
}

/// One type of event.
pub(crate) trait Route: Send + Sync {
    fn name(&self) -> &'static str;
    fn type_name(&self) -> &'static str;
    /// The types that its handlers may be bound to: the payload, and the event with its frame.
    fn types(&self) -> [TypeId; 2];
    /// Decodes an event, in `spare` if that is a slot of this type. An event with the fields of the type but another
    /// name is another event, unless it may have `any_name`.
    fn read(
        &self,
        message: &Incoming,
        any_name: bool,
        spare: Option<Box<dyn EventSlot>>,
    ) -> Result<Box<dyn EventSlot>, Box<Undecodable>>;
    /// The name of the event in the message, of this type or another.
    fn peek<'m>(&self, message: &'m Incoming) -> Option<Cow<'m, str>>;
}

struct Typed<P, D> {
    deserializer: D,
    payload: PhantomData<fn() -> P>,
}

impl<P: Notification, D: Deserializer<P>> Route for Typed<P, D> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn type_name(&self) -> &'static str {
        type_name::<P>()
    }

    fn types(&self) -> [TypeId; 2] {
        [TypeId::of::<P>(), TypeId::of::<NotificationEvent<P>>()]
    }

    fn read(
        &self,
        message: &Incoming,
        any_name: bool,
        spare: Option<Box<dyn EventSlot>>,
    ) -> Result<Box<dyn EventSlot>, Box<Undecodable>> {
        let event = self.deserializer.deserialize(message).map_err(undecodable)?;
        match any_name || event.event_name == P::NAME {
            true => Ok(Slot::fill(spare, event)),
            false => Err(unknown(event.event_name.into_owned())),
        }
    }

    fn peek<'m>(&self, message: &'m Incoming) -> Option<Cow<'m, str>> {
        self.deserializer.event_name(message)
    }
}

impl Routes {
    pub(crate) fn add<P: Notification>(&mut self, deserializer: impl Deserializer<P>) {
        self.routes.push(Arc::new(Typed { deserializer, payload: PhantomData::<fn() -> P> }));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &dyn Route> {
        self.routes.iter().map(|route| &**route)
    }

    /// Decodes `message`, which has a body, in an empty slot of `prepared`, which has none or all routes.
    #[inline]
    pub(crate) fn read(
        &self,
        message: &Incoming,
        prepared: &mut [PreparedEvent],
    ) -> Result<Decoded, Box<Undecodable>> {
        if let [only] = &*self.routes {
            return self.read_only(&**only, message, prepared);
        }
        // A name in the frame saves reading the body. Only a known name is trusted: the property has other
        // uses, too.
        let framed = message.name.as_deref().and_then(|name| self.named(name));
        let (index, route) = match framed {
            Some(found) => found,
            None => {
                let name = self.peek(message).ok_or_else(|| self.nameless(message))?;
                self.named(&name).ok_or_else(|| unknown(name.into_owned()))?
            }
        };
        let spare = prepared.get_mut(index).and_then(PreparedEvent::take_slot);
        Ok(Decoded { route: index, event: route.read(message, false, spare)? })
    }

    /// Reads the body once if it is of the expected type.
    #[inline]
    fn read_only(
        &self,
        route: &dyn Route,
        message: &Incoming,
        prepared: &mut [PreparedEvent],
    ) -> Result<Decoded, Box<Undecodable>> {
        let spare = prepared.first_mut().and_then(PreparedEvent::take_slot);
        match route.read(message, self.any_name, spare) {
            Ok(event) => Ok(Decoded { route: 0, event }),
            Err(case) if self.any_name || matches!(*case, Undecodable::UnknownEvent { .. }) => {
                Err(case)
            }
            Err(case) => match route.peek(message).filter(|name| name != route.name()) {
                Some(name) => Err(unknown(name.into_owned())),
                None => Err(case),
            },
        }
    }

    /// Prefers a known name: a deserializer that reads the frame may find a name there with another
    /// meaning.
    fn peek<'m>(&self, message: &'m Incoming) -> Option<Cow<'m, str>> {
        let mut names = self.iter().filter_map(|route| route.peek(message));
        let first = names.next()?;
        if self.named(&first).is_some() {
            return Some(first);
        }
        names.find(|name| self.named(name).is_some()).or(Some(first))
    }

    /// A message without a name is empty only if it has no bytes and no deserializer reads an event from
    /// them.
    fn nameless(&self, message: &Incoming) -> Box<Undecodable> {
        let is_none = |route: &dyn Route| {
            let read = route.read(message, true, None);
            read.is_err_and(|case| matches!(*case, Undecodable::Empty))
        };
        let kind = match message.is_empty() && self.iter().all(is_none) {
            true => DeserializeErrorKind::Empty,
            false => DeserializeErrorKind::Syntax,
        };
        let text = "the name of its event cannot be read";
        undecodable(DeserializeError::new(kind, text, message.bytes()))
    }

    fn named(&self, name: &str) -> Option<(usize, &dyn Route)> {
        self.iter().enumerate().find(|(_, route)| route.name() == name)
    }
}

fn unknown(name: String) -> Box<Undecodable> {
    Box::new(Undecodable::UnknownEvent { name })
}

/// The format decides whether an empty body is an event: in Protobuf it is a message of defaults.
fn undecodable(error: DeserializeError) -> Box<Undecodable> {
    Box::new(match error.kind() {
        DeserializeErrorKind::Empty => Undecodable::Empty,
        _ => Undecodable::Malformed(error),
    })
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Route::type_name)).finish()
    }
}
