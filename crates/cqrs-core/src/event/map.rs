//! The map that binds event types to their handlers, given to a mediator's builder.

use std::any::{TypeId, type_name};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::handler::{BuiltEvent, DynEventHandler, EventHandler, Typed};
use super::place::HandlerPlace;
use super::{Event, EventRoute};
use crate::scope::Scope;
use crate::type_map::TypeIdMap;

/// Binds types of events to their handlers, any number each, run in the order of binding.
#[derive(Default)]
#[must_use = "a map does nothing until a mediator is built from it"]
pub struct EventMap {
    entries: TypeIdMap<Entry>,
}

struct Entry {
    event: &'static str,
    route: EventRoute,
    handlers: Vec<BoundHandler>,
}

/// A handler and its name in errors.
pub(crate) struct BoundHandler {
    pub(crate) name: &'static str,
    pub(crate) handler: Arc<dyn DynEventHandler>,
}

impl BoundHandler {
    /// A place for runs of the handler. `None` if its future is large.
    pub(crate) fn place(&self) -> Option<Box<dyn HandlerPlace>> {
        Arc::clone(&self.handler).place()
    }
}

impl EventMap {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `handler` to those of `E`; one value serves all events.
    pub fn bind<E: Event, H: EventHandler<E>>(self, handler: H) -> Self {
        self.insert::<E>(type_name::<H>(), Arc::new(Typed(handler, PhantomData::<fn(E)>)))
    }

    /// Adds a handler of `E` that `factory` builds for each event from the scope.
    pub fn bind_with<E: Event, H: EventHandler<E>>(
        self,
        factory: impl Fn(&Scope) -> H + Send + Sync + 'static,
    ) -> Self {
        let handler = Typed(BuiltEvent(factory), PhantomData::<fn(E)>);
        self.insert::<E>(type_name::<H>(), Arc::new(handler))
    }

    /// Adds all bindings of `other` after the present ones.
    pub fn merge(mut self, other: Self) -> Self {
        for (event, entry) in other.entries {
            match self.entries.get_mut(&event) {
                Some(known) => known.handlers.extend(entry.handlers),
                None => drop(self.entries.insert(event, entry)),
            }
        }
        self
    }

    fn insert<E: Event>(mut self, name: &'static str, handler: Arc<dyn DynEventHandler>) -> Self {
        self.entries
            .entry(TypeId::of::<E>())
            .or_insert_with(|| Entry {
                event: type_name::<E>(),
                route: E::ROUTE,
                handlers: Vec::new(),
            })
            .handlers
            .push(BoundHandler { name, handler });
        self
    }

    pub(crate) fn handlers(&self, event: TypeId) -> &[BoundHandler] {
        self.entries.get(&event).map_or(&[], |entry| &entry.handlers)
    }

    /// Notifications and their first handlers.
    pub(crate) fn notifications(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let entries = self.entries.values().filter(|entry| entry.route == EventRoute::Notification);
        entries.filter_map(|entry| Some((entry.event, entry.handlers.first()?.name)))
    }

    pub(crate) fn contains(&self, event: TypeId) -> bool {
        self.entries.contains_key(&event)
    }
}

impl fmt::Debug for EventMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names =
            |entry: &Entry| entry.handlers.iter().map(|bound| bound.name).collect::<Vec<_>>();
        f.debug_map()
            .entries(self.entries.values().map(|entry| (entry.event, names(entry))))
            .finish()
    }
}
