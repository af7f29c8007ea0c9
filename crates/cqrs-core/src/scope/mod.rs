//! The scope of one `send`: values, emitted events and the unit of work, shared by handlers and
//! middlewares.

mod outbox;
mod unit_of_work;
mod unit_source;
mod values;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::consume::Received;
use crate::event::{Emission, Event};

pub(crate) use outbox::{ErasedInbox, SubscriptionInbox};
pub use outbox::{Inbox, OutboxUnit};
pub use unit_of_work::{
    CommitError, TransactionEnded, UnitOfWork, UnitOfWorkError, UnitOfWorkFactory,
};
pub(crate) use unit_of_work::{ErasedUnit, roll_back};
use unit_source::OpenUnit;
pub(crate) use unit_source::UnitSource;
pub(crate) use values::Values;

/// The state of one `send` or delivery: typed values, emitted events, and the unit of work.
///
/// An unused scope costs no allocation.
///
/// # Cancel safety
/// A scope that is dropped with an open unit of work rolls it back, in a task that the mediator's
/// `shutdown` waits for.
#[derive(Default)]
pub struct Scope {
    /// A scope is three words: most are never changed, and each `send` moves and drops one.
    state: Option<Box<ScopeState>>,
    units: Option<Arc<UnitSource>>,
    /// The consumed message, in the scope of a delivery.
    received: Option<Received>,
}

#[derive(Default)]
struct ScopeState {
    values: Values,
    emitted: Vec<Emission>,
    unit: Option<OpenUnit>,
    /// Set for an event handler that runs in parallel to others: it must not use the transaction.
    is_child: bool,
}

/// Set once the commit of a scope's work began: the outcome of a cancelled scope is unknown from then on.
/// The service runtime puts it into the scope as a value.
#[derive(Debug, Clone, Default)]
pub(crate) struct Committing(Arc<AtomicBool>);

impl Committing {
    pub(crate) fn began(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Scope {
    /// An empty scope, to be filled with [`with`](Self::with) and given to `send_in`.
    #[inline]
    pub fn new() -> Self {
        Self::default()
    }

    /// The scope of a consumed message, with the correlation and trace of its headers.
    pub(crate) fn of_message(received: Received) -> Self {
        Self { state: None, units: None, received: Some(received) }
    }

    /// Adds a value; see [`insert`](Self::insert).
    #[must_use]
    pub fn with<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.insert(value);
        self
    }

    /// Stores `value` under its type, replacing an earlier one. All later code in this scope sees it, but
    /// not a value that a parallel event handler inserts. Use a type of your own, not `String`.
    pub fn insert<T: Send + Sync + 'static>(&mut self, value: T) {
        self.state_mut().values.insert(value);
    }

    /// The value of type `T`. To change one in place, store an atomic or a mutex.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        let inserted = self.state.as_ref().and_then(|state| state.values.get());
        inserted.or_else(|| self.received.as_ref()?.scope_value())
    }

    /// Emits `event`: after the handler returned `Ok`, a domain event is handled, and a notification is
    /// published once the unit of work is committed. If the handler fails, nothing is emitted.
    pub fn emit<E: Event>(&mut self, event: E) {
        self.push(event.into_emission());
    }

    /// The unit of work, begun on first use. `U` is the [`UnitOfWorkFactory::Unit`] of the factory
    /// the mediator was built with.
    ///
    /// # Errors
    /// If the mediator has none, or one of another type; if it cannot be begun; in an event handler that
    /// runs in parallel to others.
    ///
    /// # Cancel safety
    /// Dropped before it has begun, no unit of work is open; the next call begins a new one.
    pub async fn unit_of_work<U: UnitOfWork>(&mut self) -> Result<&mut U, UnitOfWorkError> {
        if self.state.as_ref().is_some_and(|state| state.is_child) {
            return Err(UnitOfWorkError::Parallel);
        }
        let source = self.units.clone().ok_or(UnitOfWorkError::NotConfigured)?;
        let state = self.state_mut();
        let unit = match &mut state.unit {
            Some(unit) => unit,
            none => none.insert(OpenUnit::begin(source).await?),
        };
        unit.downcast()
    }

    fn state_mut(&mut self) -> &mut ScopeState {
        self.state.get_or_insert_default()
    }

    #[inline]
    pub(crate) fn set_units(&mut self, source: Option<&Arc<UnitSource>>) {
        if let Some(source) = source {
            self.units = Some(Arc::clone(source));
        }
    }

    /// The source of its units, if they store the notifications.
    pub(crate) fn outbox(&self) -> Option<Arc<UnitSource>> {
        self.units.clone().filter(|source| source.has_outbox())
    }

    /// A scope for an event handler that runs in parallel to others: the same values, no transaction.
    pub(crate) fn child(&self) -> Self {
        let values = self.state.as_ref().map(|state| state.values.clone()).unwrap_or_default();
        let state = ScopeState { values, is_child: true, ..ScopeState::default() };
        Self { state: Some(Box::new(state)), units: None, received: self.received.clone() }
    }

    /// `true` if it belongs to a send: another send with it would commit the unfinished work of the first.
    #[inline]
    pub(crate) fn is_in_use(&self) -> bool {
        self.has_work() || self.units.is_some() || self.state.as_ref().is_some_and(|s| s.is_child)
    }

    /// Guards a handler's run: unless it is disarmed, dropping it undoes the handler's work.
    pub(crate) fn guard(&mut self) -> ScopeGuard<'_> {
        ScopeGuard(Some(self))
    }

    pub(crate) fn push(&mut self, emission: Emission) {
        self.state_mut().emitted.push(emission);
    }

    #[inline]
    pub(crate) fn has_work(&self) -> bool {
        self.state.as_ref().is_some_and(|state| !state.emitted.is_empty() || state.unit.is_some())
    }

    pub(crate) fn emitted_len(&self) -> usize {
        self.state.as_ref().map_or(0, |state| state.emitted.len())
    }

    /// Drops the events emitted after the first `len`.
    pub(crate) fn truncate_emitted(&mut self, len: usize) {
        if let Some(state) = &mut self.state {
            state.emitted.truncate(len);
        }
    }

    pub(crate) fn take_emitted(&mut self) -> Vec<Emission> {
        self.state.as_mut().map(|state| std::mem::take(&mut state.emitted)).unwrap_or_default()
    }

    /// Marks that its work is about to be committed.
    pub(crate) fn commits(&self) {
        if let Some(committing) = self.get::<Committing>() {
            committing.0.store(true, Ordering::Release);
        }
    }

    /// `true` if the open unit of work holds the inbox's mark of the consumed message.
    pub(crate) fn is_marked(&self) -> bool {
        let unit = self.state.as_ref().and_then(|state| state.unit.as_ref());
        unit.is_some_and(|unit| unit.is_marked)
    }

    fn set_marked(&mut self) {
        if let Some(unit) = self.state.as_mut().and_then(|state| state.unit.as_mut()) {
            unit.is_marked = true;
        }
    }

    /// Takes the open unit of work, if there is one; the caller must finish it.
    pub(crate) fn take_unit(&mut self) -> Option<Box<dyn ErasedUnit>> {
        self.state.as_mut()?.unit.take()?.into_inner()
    }
}

/// See [`Scope::guard`].
pub(crate) struct ScopeGuard<'s>(Option<&'s mut Scope>);

impl<'s> ScopeGuard<'s> {
    pub(crate) fn scope(&mut self) -> &mut Scope {
        match &mut self.0 {
            Some(scope) => scope,
            None => unreachable!("a disarmed guard is gone"),
        }
    }

    pub(crate) fn disarm(mut self) -> &'s mut Scope {
        match self.0.take() {
            Some(scope) => scope,
            None => unreachable!("a guard is disarmed once"),
        }
    }
}

impl Drop for ScopeGuard<'_> {
    fn drop(&mut self) {
        if let Some(state) = self.0.as_mut().and_then(|scope| scope.state.as_mut()) {
            state.emitted.clear();
            // Dropping it rolls back in a task.
            state.unit = None;
        }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut scope = f.debug_struct("Scope");
        if let Some(received) = &self.received {
            scope.field("received", received);
        }
        let Some(state) = &self.state else { return scope.finish() };
        scope
            .field("values", &state.values)
            .field("emitted", &state.emitted)
            .field("unit_of_work_open", &state.unit.is_some())
            .finish_non_exhaustive()
    }
}
