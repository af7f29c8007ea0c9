//! The map that binds request types to their handlers, given to a mediator's builder.

use std::any::{Any, TypeId, type_name};
use std::fmt;

use super::Request;
use super::handler::{Built, DynRequestHandler, RequestHandler};
use crate::scope::Scope;
use crate::type_map::TypeIdMap;

/// Binds each type of command or query to its one handler.
///
/// A second binding of a type is kept as a conflict, which `build()` reports.
#[derive(Default)]
#[must_use = "a map does nothing until a mediator is built from it"]
pub struct RequestMap {
    entries: TypeIdMap<Entry>,
    conflicts: Vec<RequestConflict>,
}

struct Entry {
    request: &'static str,
    handler: &'static str,
    /// A `Box<dyn DynRequestHandler<R>>` for the request type of the map's key.
    erased: Box<dyn Any + Send + Sync>,
}

/// Two handlers for one type of request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestConflict {
    pub(crate) request: &'static str,
    pub(crate) first: &'static str,
    pub(crate) second: &'static str,
}

impl RequestMap {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Binds `R` to `handler`, which serves all calls.
    pub fn bind<R: Request, H: RequestHandler<R>>(self, handler: H) -> Self {
        self.insert::<R>(Box::new(handler), type_name::<H>())
    }

    /// Binds `R` to a handler that `factory` builds for each call from the scope.
    pub fn bind_with<R: Request, H: RequestHandler<R>>(
        self,
        factory: impl Fn(&Scope) -> H + Send + Sync + 'static,
    ) -> Self {
        self.insert::<R>(Box::new(Built(factory)), type_name::<H>())
    }

    /// Adds all bindings of `other`.
    pub fn merge(mut self, other: Self) -> Self {
        self.conflicts.extend(other.conflicts);
        for (request, entry) in other.entries {
            self.insert_entry(request, entry);
        }
        self
    }

    fn insert<R: Request>(
        mut self,
        typed: Box<dyn DynRequestHandler<R>>,
        handler: &'static str,
    ) -> Self {
        let entry = Entry { request: type_name::<R>(), handler, erased: Box::new(typed) };
        self.insert_entry(TypeId::of::<R>(), entry);
        self
    }

    fn insert_entry(&mut self, request: TypeId, entry: Entry) {
        match self.entries.get(&request) {
            Some(first) => self.conflicts.push(RequestConflict {
                request: entry.request,
                first: first.handler,
                second: entry.handler,
            }),
            None => drop(self.entries.insert(request, entry)),
        }
    }

    pub(crate) fn get<R: Request>(&self) -> Option<&dyn DynRequestHandler<R>> {
        let entry = self.entries.get(&TypeId::of::<R>())?;
        let typed = entry.erased.downcast_ref::<Box<dyn DynRequestHandler<R>>>()?;
        Some(&**typed)
    }

    pub(crate) fn contains(&self, request: TypeId) -> bool {
        self.entries.contains_key(&request)
    }

    pub(crate) fn conflicts(&self) -> &[RequestConflict] {
        &self.conflicts
    }
}

impl fmt::Debug for RequestMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.entries.values().map(|entry| (entry.request, entry.handler)))
            .finish()
    }
}
