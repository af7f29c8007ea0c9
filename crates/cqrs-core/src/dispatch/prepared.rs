//! The handlers of one type of consumed events, prepared for one worker. Used by the service runtime through the
//! mediator of events.

use std::any::TypeId;
use std::task::{Context, Poll, ready};

use super::events::{EventFailure, EventRounds, EventsError, OnEventFailure, ended};
use crate::event::{Ended, EventSlot, HandlerError, HandlerPlace};
use crate::scope::Scope;

/// The handlers of one type of consumed events, found once, with the allocations in which one worker runs them.
///
/// One event is handled at a time: it is [started](Self::start), and a [`PreparedRun`] runs it.
pub(crate) struct PreparedEvent {
    /// At least one.
    handlers: Vec<PreparedHandler>,
    policy: OnEventFailure,
    /// The empty slot for the next event. `None` before the first event, while one is handled, and after one whose run
    /// was dropped or whose destructor panicked.
    slot: Option<Box<dyn EventSlot>>,
    /// The index of the handler that runs. The number of handlers if none does.
    running: usize,
    /// The length of the scope's emitted events before it.
    emitted: usize,
    failures: Vec<EventFailure>,
}

struct PreparedHandler {
    name: &'static str,
    place: Box<dyn HandlerPlace>,
}

/// The run of a started event. Dropped before its end, it drops the running handler with its scope, which rolls back,
/// and the event.
pub(crate) struct PreparedRun<'p>(&'p mut PreparedEvent);

impl PreparedEvent {
    /// The empty slot for the next event.
    pub(crate) fn take_slot(&mut self) -> Option<Box<dyn EventSlot>> {
        self.slot.take()
    }

    /// Starts the first handler of `event`.
    #[inline]
    pub(crate) fn start(&mut self, event: Box<dyn EventSlot>, scope: Scope) -> PreparedRun<'_> {
        self.start_handler(0, event, scope);
        PreparedRun(self)
    }

    #[inline]
    fn start_handler(&mut self, index: usize, event: Box<dyn EventSlot>, scope: Scope) {
        self.emitted = scope.emitted_len();
        self.running = index;
        if let Some(handler) = self.handlers.get_mut(index) {
            handler.place.start(event, scope);
        }
    }

    /// Notes the failure of the running handler, whose events are dropped.
    #[cold]
    fn fail(&mut self, error: HandlerError, event: &dyn EventSlot, scope: &mut Scope) {
        scope.truncate_emitted(self.emitted);
        if let Some(PreparedHandler { name, .. }) = self.handlers.get(self.running) {
            let event = event.name().to_owned();
            self.failures.push(EventFailure { event, handler: name, error });
        }
    }

    /// Runs all handlers of the event, and drops it. The events that they emit stay in the scope.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Scope, Result<(), EventsError>)> {
        loop {
            let Some(handler) = self.handlers.get_mut(self.running) else { return Poll::Pending };
            let Ended { handled, mut event, mut scope } = ready!(handler.place.poll(cx));
            if let Err(error) = handled {
                self.fail(error, &*event, &mut scope);
            }
            let stops = self.policy == OnEventFailure::Fail && !self.failures.is_empty();
            let next = self.running + 1;
            if next < self.handlers.len() && !stops {
                self.start_handler(next, event, scope);
                continue;
            }
            self.running = self.handlers.len();
            let answered = match self.failures.is_empty() {
                true => Ok(()),
                false => ended(std::mem::take(&mut self.failures), self.policy),
            };
            event.clear();
            self.slot = Some(event);
            return Poll::Ready((scope, answered));
        }
    }
}

impl PreparedRun<'_> {
    /// Runs all handlers of the event, and drops it. The events that they emit stay in the scope.
    #[inline]
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Scope, Result<(), EventsError>)> {
        self.0.poll(cx)
    }
}

impl Drop for PreparedRun<'_> {
    #[inline]
    fn drop(&mut self) {
        let PreparedEvent { handlers, running, failures, .. } = &mut *self.0;
        if let Some(handler) = handlers.get_mut(*running) {
            *running = usize::MAX;
            failures.clear();
            handler.place.clear();
        }
    }
}

impl EventRounds {
    /// The handlers of a consumed event of these types, for one worker. `None` if they run in parallel, or if there are
    /// none.
    pub(crate) fn prepare(&self, types: [TypeId; 2]) -> Option<PreparedEvent> {
        let bound = types.into_iter().flat_map(|of| self.map.handlers(of));
        let handlers: Vec<_> =
            bound.map(|bound| PreparedHandler { name: bound.name, place: bound.place() }).collect();
        if self.options.concurrency > 1 || handlers.is_empty() {
            return None;
        }
        Some(PreparedEvent {
            running: handlers.len(),
            handlers,
            policy: self.options.of_consumed(),
            slot: None,
            emitted: 0,
            failures: Vec::new(),
        })
    }
}
