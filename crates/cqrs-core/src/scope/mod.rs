//! What handlers and middlewares of one `send` share: values, emitted events, the unit of work.

mod unit_of_work;
mod values;

use std::fmt;
use std::sync::Arc;

use crate::event::{Emission, Event};

use unit_of_work::OpenUnit;
pub(crate) use unit_of_work::{ErasedUnit, UnitSource, roll_back};
pub use unit_of_work::{UnitOfWork, UnitOfWorkError, UnitOfWorkFactory};
pub(crate) use values::Values;

/// One per `send` and per delivery: typed values, the events emitted so far, and the unit of work.
///
/// An unused scope costs no allocation.
///
/// # Cancel safety
/// A scope that is dropped with a unit of work still open rolls it back, in a task that the
/// mediator's `shutdown` waits for.
#[derive(Default)]
pub struct Scope {
    values: Values,
    emitted: Vec<Emission>,
    units: Units,
}

#[derive(Default)]
enum Units {
    /// The mediator has no unit of work.
    #[default]
    None,
    /// Parallel event handlers must not touch the transaction.
    Withheld,
    Ready(Arc<UnitSource>),
    Open(OpenUnit),
}

impl Scope {
    /// An empty scope, to be filled with [`with`](Self::with) and given to `send_in`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value; see [`insert`](Self::insert).
    #[must_use]
    pub fn with<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.insert(value);
        self
    }

    /// Stores `value` under its type, replacing an earlier one. Everything that runs later in this
    /// scope sees it. Use a type of your own, not `String`.
    pub fn insert<T: Send + Sync + 'static>(&mut self, value: T) {
        self.values.insert(value);
    }

    /// The value of type `T`. To change one in place, store an atomic or a mutex.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.values.get()
    }

    /// Emits `event`: after the handler returned `Ok`, a domain event goes to its handlers, and a
    /// notification to the broker once the unit of work is committed. When the handler fails,
    /// nothing is emitted.
    pub fn emit<E: Event>(&mut self, event: E) {
        self.emitted.push(event.into_emission());
    }

    /// The unit of work, begun on first use. `U` is the [`UnitOfWorkFactory::Unit`] of the factory
    /// the mediator was built with.
    ///
    /// # Errors
    /// When the mediator has none, or one of another type; when beginning it fails; in an event
    /// handler that runs in parallel to others.
    ///
    /// # Cancel safety
    /// Dropped while beginning, no unit of work is open; the next call begins again.
    pub async fn unit_of_work<U: UnitOfWork>(&mut self) -> Result<&mut U, UnitOfWorkError> {
        if let Units::Ready(source) = &self.units {
            let unit = OpenUnit::begin(Arc::clone(source)).await?;
            self.units = Units::Open(unit);
        }
        match &mut self.units {
            Units::Open(unit) => unit.downcast(),
            Units::Withheld => Err(UnitOfWorkError::Parallel),
            Units::None | Units::Ready(_) => Err(UnitOfWorkError::NotConfigured),
        }
    }

    pub(crate) fn set_units(&mut self, source: Option<&Arc<UnitSource>>) {
        if let Some(source) = source {
            self.units = Units::Ready(Arc::clone(source));
        }
    }

    /// A scope for an event handler that runs in parallel to others: the same values, no transaction.
    pub(crate) fn child(&self) -> Self {
        Self { values: self.values.clone(), emitted: Vec::new(), units: Units::Withheld }
    }

    pub(crate) fn push(&mut self, emission: Emission) {
        self.emitted.push(emission);
    }

    pub(crate) fn has_work(&self) -> bool {
        !self.emitted.is_empty() || matches!(self.units, Units::Open(_))
    }

    pub(crate) fn emitted_len(&self) -> usize {
        self.emitted.len()
    }

    /// Takes back what was emitted since there were `len`.
    pub(crate) fn truncate_emitted(&mut self, len: usize) {
        self.emitted.truncate(len);
    }

    pub(crate) fn take_emitted(&mut self) -> Vec<Emission> {
        std::mem::take(&mut self.emitted)
    }

    /// Takes the open unit of work out, if there is one; whoever has it must finish it.
    pub(crate) fn take_unit(&mut self) -> Option<Box<dyn ErasedUnit>> {
        match std::mem::take(&mut self.units) {
            Units::Open(unit) => unit.into_inner(),
            _ => None,
        }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.units {
            Units::None => "none",
            Units::Withheld => "withheld",
            Units::Ready(_) => "not begun",
            Units::Open(_) => "open",
        };
        f.debug_struct("Scope")
            .field("values", &self.values)
            .field("emitted", &self.emitted)
            .field("unit_of_work", &unit)
            .finish()
    }
}
