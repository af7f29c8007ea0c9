//! The event types of a subscription, and the deserializer of each.

use std::any::{TypeId, type_name};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::codec::{DeserializeError, DeserializeErrorKind, Deserializer};
use crate::consume::Incoming;
use crate::event::{AnyEvent, Notification, NotificationEvent};
use crate::service::policy::Undecodable;

/// The event types of a subscription and their deserializers.
#[derive(Clone, Default)]
pub(crate) struct Routes {
    routes: Vec<Arc<dyn Route>>,
    /// Every message is of the only type, whatever its name.
    pub(crate) any_name: bool,
}

/// One type of event.
pub(crate) trait Route: Send + Sync {
    fn name(&self) -> &'static str;
    fn type_name(&self) -> &'static str;
    /// The types that its handlers may be bound to: the payload, and the event with its frame.
    fn types(&self) -> [TypeId; 2];
    fn read(&self, message: &Incoming) -> Result<Box<dyn AnyEvent>, DeserializeError>;
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

    fn read(&self, message: &Incoming) -> Result<Box<dyn AnyEvent>, DeserializeError> {
        Ok(Box::new(self.deserializer.deserialize(message)?))
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

    /// Decodes `message`, which has a body.
    pub(crate) fn read(&self, message: &Incoming) -> Result<Box<dyn AnyEvent>, Box<Undecodable>> {
        if let [only] = &*self.routes {
            return self.read_only(&**only, message);
        }
        // A name in the frame saves reading the body. Only a known name is trusted: the property has other
        // uses, too.
        let framed = message.name.as_deref().and_then(|name| self.named(name));
        let route = match framed {
            Some(route) => route,
            None => {
                let name = self.peek(message).ok_or_else(|| self.nameless(message))?;
                self.named(&name).ok_or_else(|| unknown(name.into_owned()))?
            }
        };
        let event = route.read(message).map_err(undecodable)?;
        of_route(route, event)
    }

    /// Reads the body once if it is of the expected type.
    fn read_only(
        &self,
        route: &dyn Route,
        message: &Incoming,
    ) -> Result<Box<dyn AnyEvent>, Box<Undecodable>> {
        match route.read(message) {
            Ok(event) if self.any_name => Ok(event),
            Ok(event) => of_route(route, event),
            Err(error) if self.any_name => Err(undecodable(error)),
            Err(error) => match route.peek(message).filter(|name| name != route.name()) {
                Some(name) => Err(unknown(name.into_owned())),
                None => Err(undecodable(error)),
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
            let read = route.read(message);
            read.is_err_and(|error| error.kind() == DeserializeErrorKind::Empty)
        };
        let kind = match message.is_empty() && self.iter().all(is_none) {
            true => DeserializeErrorKind::Empty,
            false => DeserializeErrorKind::Syntax,
        };
        let text = "the name of its event cannot be read";
        undecodable(DeserializeError::new(kind, text, message.bytes()))
    }

    fn named(&self, name: &str) -> Option<&dyn Route> {
        self.iter().find(|route| route.name() == name)
    }
}

/// An event with the fields of the route's type but another name is another event.
fn of_route(
    route: &dyn Route,
    event: Box<dyn AnyEvent>,
) -> Result<Box<dyn AnyEvent>, Box<Undecodable>> {
    match event.name() == route.name() {
        true => Ok(event),
        false => Err(unknown(event.name().to_owned())),
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
