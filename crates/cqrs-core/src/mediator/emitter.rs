//! Emits events outside of a request, through a mediator.

use std::convert::Infallible;
use std::pin::pin;

use super::error::SendError;
use super::inner::route;
use super::nesting::nested;
use super::requests::Mediator;
use crate::event::Event;
use crate::scope::Scope;

/// Emits events outside of a request, from a timer or a start-up routine say.
///
/// Made by [`Mediator::emitter`]; uses that mediator's event handlers, unit of work and broker, and not
/// its middlewares, which wrap requests. Inside
/// a handler use [`Scope::emit`], which waits for the handler's success.
#[derive(Debug, Clone)]
pub struct EventEmitter(Mediator);

impl Mediator {
    /// Emits events outside of a request.
    pub fn emitter(&self) -> EventEmitter {
        EventEmitter(self.clone())
    }
}

impl EventEmitter {
    /// Runs the handlers of a domain event and of its follow-ups, or publishes a notification; then
    /// commits and publishes what they emitted, as [`Mediator::send`] does after its handler.
    ///
    /// # Errors
    /// See [`SendError`]; never `Handler`.
    ///
    /// # Cancel safety
    /// Dropped before the commit, the unit of work is rolled back and nothing is published. From the
    /// commit on, a task finishes it.
    pub async fn emit<E: Event>(&self, event: E) -> Result<(), SendError<(), Infallible>> {
        self.emit_in(Scope::new(), event).await
    }

    /// As [`emit`](Self::emit), in a scope that already holds values.
    ///
    /// # Errors
    /// As [`emit`](Self::emit).
    pub async fn emit_in<E: Event>(
        &self,
        mut scope: Scope,
        event: E,
    ) -> Result<(), SendError<(), Infallible>> {
        let inner = &self.0.0.inner;
        let _entered = inner.open(&mut scope)?;
        let mut scope = scope;
        scope.push(route(event)?);
        nested(pin!(inner.finish(&mut scope, Ok(())))).await
    }
}
