//! The handlers of one type of consumed events, prepared for one worker. Used by the service runtime through the
//! mediator of events.

use std::any::TypeId;
use std::task::{Context, Poll, ready};

use super::events::{EventFailure, EventRounds, EventsError, OnEventFailure, ended, stops};
use crate::event::{BoundHandler, Ended, EventSlot, HandlerError, HandlerPlace};
use crate::scope::Scope;

/// The handlers of one type of consumed events, found once, with the allocations in which one worker runs them.
///
/// One event is handled at a time: it is [started](Self::start), and a [`PreparedRun`] runs it.
pub(crate) struct PreparedEvent {
    /// At least one.
    handlers: Vec<PreparedHandler>,
    policy: OnEventFailure,
    /// The empty slot for the next event. `None` before the first event, while one is handled, and after one that was not
    /// handled to its end.
    slot: Option<Box<dyn EventSlot>>,
    /// The index of the handler that runs.
    running: Option<usize>,
    /// The length of the scope's emitted events before it.
    emitted: usize,
    failures: Vec<EventFailure>,
    /// The end of the last run, until its caller takes it.
    end: Option<PreparedEnd>,
}

struct PreparedHandler {
    name: &'static str,
    place: Box<dyn HandlerPlace>,
}

/// The run of a started event. Dropped before its end, it drops the running handler with its scope, which rolls back,
/// and the event.
pub(crate) struct PreparedRun<'p>(&'p mut PreparedEvent);

/// The end of a run that leaves work to commit, or that failed. The events that the handlers emitted are in the scope.
pub(crate) struct PreparedEnd {
    pub(crate) scope: Scope,
    pub(crate) answered: Result<(), EventsError>,
}

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

    #[inline(always)]
    fn start_handler(&mut self, index: usize, event: Box<dyn EventSlot>, scope: Scope) {
        self.emitted = scope.emitted_len();
        self.running = Some(index);
        if let Some(handler) = self.handlers.get_mut(index) {
            handler.place.start(event, scope);
        }
    }

    /// Most events have one handler, so this one is apart.
    #[inline(never)]
    fn start_next(&mut self, index: usize, event: Box<dyn EventSlot>, scope: Scope) {
        self.start_handler(index, event, scope);
    }

    /// Notes the failure of the running handler, whose events are dropped.
    #[cold]
    fn fail(
        &mut self,
        index: usize,
        error: HandlerError,
        event: &dyn EventSlot,
        scope: &mut Scope,
    ) {
        scope.truncate_emitted(self.emitted);
        if let Some(PreparedHandler { name, .. }) = self.handlers.get(index) {
            let event = event.name().to_owned();
            self.failures.push(EventFailure { event, handler: name, error });
        }
    }

    /// Runs all handlers of the event, and drops it. `true` as in [`PreparedRun::poll`]; `false` leaves an `end`.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            let running =
                self.running.and_then(|index| Some((index, self.handlers.get_mut(index)?)));
            let Some((index, handler)) = running else { unreachable!("polled after its end") };
            let Ended { handled, event, mut scope } = ready!(handler.place.poll(cx));
            if let Err(error) = handled {
                self.fail(index, error, &*event, &mut scope);
            }
            let next = index + 1;
            if next < self.handlers.len() && !stops(self.policy, &self.failures) {
                self.start_next(next, event, scope);
                continue;
            }
            self.running = None;
            let answered = match self.failures.is_empty() {
                true => Ok(()),
                false => ended(std::mem::take(&mut self.failures), self.policy),
            };
            self.slot = event.into_spare();
            let is_handled = answered.is_ok() && !scope.has_work();
            if !is_handled {
                self.end = Some(PreparedEnd { scope, answered });
            }
            return Poll::Ready(is_handled);
        }
    }
}

impl PreparedRun<'_> {
    /// Runs all handlers of the event, and drops it. `None` if they have handled it and left no work in the scope, which
    /// is dropped then.
    #[inline]
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<PreparedEnd>> {
        self.0.poll(cx).map(|is_handled| if is_handled { None } else { self.0.end.take() })
    }
}

impl Drop for PreparedRun<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(running) = self.0.running.take() {
            // Dropped after the handler, and not left to the next event.
            let _failures = std::mem::take(&mut self.0.failures);
            if let Some(handler) = self.0.handlers.get_mut(running) {
                handler.place.clear();
            }
        }
    }
}

impl EventRounds {
    /// The handlers of a consumed event of these types, for one worker. `None` if they run in parallel, if one has a large
    /// future, or if there are none.
    pub(crate) fn prepare(&self, types: [TypeId; 2]) -> Option<PreparedEvent> {
        let bound = types.into_iter().flat_map(|of| self.map.handlers(of));
        let prepare = |bound: &BoundHandler| {
            Some(PreparedHandler { name: bound.name, place: bound.place()? })
        };
        let handlers = bound.map(prepare).collect::<Option<Vec<_>>>()?;
        if self.options.concurrency > 1 || handlers.is_empty() {
            return None;
        }
        Some(PreparedEvent {
            running: None,
            handlers,
            policy: self.options.of_consumed(),
            slot: None,
            emitted: 0,
            failures: Vec::new(),
            end: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    use super::*;
    use crate::event::{EventHandler, EventMap, NotificationEvent, Slot};

    #[derive(serde::Serialize, cqrs_macros::Notification)]
    #[cqrs(crate = "crate")]
    struct Told(u32);

    /// Counts its futures that exist. The first one fails at 1, the second one waits at 1.
    struct Acts(bool, Arc<AtomicUsize>);

    struct Counted<'c>(&'c AtomicUsize);

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl EventHandler<Told> for Acts {
        async fn handle(&self, event: &Told, _: &mut Scope) -> Result<(), HandlerError> {
            self.1.fetch_add(1, Ordering::SeqCst);
            let _counted = Counted(&self.1);
            match (event.0, self.0) {
                (1, true) => return Err(HandlerError::permanent("it fails")),
                (1, false) => std::future::pending().await,
                _ => {}
            }
            Ok(())
        }
    }

    #[test]
    fn dropped_run_leaves_nothing_to_the_next_event() {
        let count = Arc::new(AtomicUsize::new(0));
        let [first, second] = [true, false].map(|is_first| Acts(is_first, Arc::clone(&count)));
        let mut rounds = EventRounds {
            map: EventMap::new().bind::<Told, _>(first).bind::<Told, _>(second),
            ..EventRounds::default()
        };
        rounds.options.on_failure = OnEventFailure::FinishRound;
        let types = [TypeId::of::<Told>(), TypeId::of::<NotificationEvent<Told>>()];
        let mut prepared = rounds.prepare(types).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        for number in [0, 1, 0, 1, 1, 0] {
            let event = Slot::fill(prepared.take_slot(), NotificationEvent::new(Told(number)));
            let mut run = prepared.start(event, Scope::new());
            match run.poll(&mut cx) {
                Poll::Ready(end) => assert!(number == 0 && end.is_none()),
                Poll::Pending => assert_eq!((number, count.load(Ordering::SeqCst)), (1, 1)),
            }
            drop(run);
            assert_eq!(count.load(Ordering::SeqCst), 0, "the handler that waits is dropped");
            assert_eq!(prepared.slot.is_some(), number == 0);
        }
    }
}
