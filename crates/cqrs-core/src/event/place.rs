//! The place of a handler: an allocation in which a worker runs it for one event after the other.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::handler::HandlerError;
use super::slot::{EventSlot, MOST_KEPT};
use crate::scope::Scope;

/// A handler's run that has ended, with what it was started with.
pub(crate) struct Ended {
    pub(crate) handled: Result<(), HandlerError>,
    pub(crate) event: Box<dyn EventSlot>,
    pub(crate) scope: Scope,
}

/// Runs one handler, with its type erased, for one event at a time.
///
/// A run owns its event and its scope, so the allocation outlives it. A panic of the handler is the result of the run.
pub(crate) trait HandlerPlace: Send {
    /// Starts a run. One that has not ended is dropped.
    fn start(&mut self, event: Box<dyn EventSlot>, scope: Scope);

    /// Continues the run. Pending if there is none.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended>;

    /// Drops a run that has not ended: its future, then its scope, which rolls back, and its event.
    fn clear(&mut self);
}

/// The place of the handler `H`, whose runs are futures `F`.
pub(super) struct Place<H, F> {
    handler: Arc<H>,
    run: fn(Arc<H>, Box<dyn EventSlot>, Scope) -> F,
    /// A clone for the next run. Each run returns it: so no count that workers share changes for each event.
    spare: Option<Arc<H>>,
    running: Option<Pin<Box<Option<F>>>>,
}

impl<H, F> Place<H, F> {
    /// `None` if the future is large: it is copied into its place, which costs more than an allocation then.
    pub(super) fn new(
        handler: Arc<H>,
        run: fn(Arc<H>, Box<dyn EventSlot>, Scope) -> F,
    ) -> Option<Self> {
        (size_of::<F>() <= MOST_KEPT).then(|| Self { handler, run, spare: None, running: None })
    }
}

impl<H, F> HandlerPlace for Place<H, F>
where
    H: Send + Sync,
    F: Future<Output = (Arc<H>, Ended)> + Send,
{
    fn start(&mut self, event: Box<dyn EventSlot>, scope: Scope) {
        let handler = self.spare.take().unwrap_or_else(|| Arc::clone(&self.handler));
        let run = (self.run)(handler, event, scope);
        match &mut self.running {
            Some(running) => running.set(Some(run)),
            None => self.running = Some(Box::pin(Some(run))),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let running = self.running.as_mut().and_then(|running| running.as_mut().as_pin_mut());
        let Some(running) = running else { return Poll::Pending };
        let (handler, ended) = ready!(running.poll(cx));
        self.spare = Some(handler);
        self.clear();
        Poll::Ready(ended)
    }

    fn clear(&mut self) {
        if let Some(running) = &mut self.running {
            running.set(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    use super::*;
    use crate::event::NotificationEvent;
    use crate::event::handler::{DynEventHandler, EventHandler, Typed};
    use crate::event::slot::Slot;

    #[derive(serde::Serialize, cqrs_macros::Notification)]
    #[cqrs(crate = "crate")]
    struct Told(u32);

    /// Waits at 1, fails at 2, panics at 3; counts its futures that exist.
    struct Acts<const SIZE: usize>(Arc<AtomicUsize>);

    struct Counted<'c>(&'c AtomicUsize);

    impl<'c> Counted<'c> {
        fn new(count: &'c AtomicUsize) -> Self {
            count.fetch_add(1, Ordering::SeqCst);
            Self(count)
        }
    }

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl<const SIZE: usize> EventHandler<Told> for Acts<SIZE> {
        async fn handle(&self, event: &Told, scope: &mut Scope) -> Result<(), HandlerError> {
            let (_counted, held) = (Counted::new(&self.0), [0_u8; SIZE]);
            scope.insert(event.0);
            match event.0 {
                1 => std::future::pending::<()>().await,
                2 => return Err(HandlerError::permanent("it fails")),
                3 => panic!("it panics"),
                _ => {}
            }
            std::hint::black_box(&held);
            Ok(())
        }
    }

    fn place<const SIZE: usize>(count: &Arc<AtomicUsize>) -> Option<Box<dyn HandlerPlace>> {
        let handler = Acts::<SIZE>(Arc::clone(count));
        Arc::new(Typed(handler, PhantomData::<fn(Told)>)).place()
    }

    fn start(place: &mut dyn HandlerPlace, number: u32) {
        place.start(Slot::fill(None, NotificationEvent::new(Told(number))), Scope::new());
    }

    fn poll(place: &mut dyn HandlerPlace) -> Option<Ended> {
        match place.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ended) => Some(ended),
            Poll::Pending => None,
        }
    }

    fn outcomes_do_not_depend_on_the_runs_before(clears: bool) {
        let running = Arc::new(AtomicUsize::new(0));
        let mut place = place::<8>(&running).unwrap();
        assert!(poll(&mut *place).is_none(), "nothing runs");
        for number in [0, 3, 0, 2, 1, 0, 1, 3, 1, 1, 2, 0] {
            start(&mut *place, number);
            match poll(&mut *place) {
                None => {
                    assert_eq!((number, running.load(Ordering::SeqCst)), (1, 1));
                    // Else the next start drops it.
                    if clears {
                        place.clear();
                        assert_eq!(running.load(Ordering::SeqCst), 0);
                    }
                }
                Some(Ended { handled, event, scope }) => {
                    assert_eq!(handled.is_ok(), number == 0);
                    assert_eq!(handled.is_err_and(|error| error.is_panic()), number == 3);
                    assert_eq!(scope.get::<u32>(), Some(&number));
                    assert_eq!(event.name(), "Told");
                    assert_eq!(running.load(Ordering::SeqCst), 0, "its future is dropped");
                    assert!(poll(&mut *place).is_none(), "it ended");
                }
            }
        }
        drop(place);
        assert_eq!((running.load(Ordering::SeqCst), Arc::strong_count(&running)), (0, 1));
    }

    #[test]
    fn runs_are_independent() {
        outcomes_do_not_depend_on_the_runs_before(false);
        outcomes_do_not_depend_on_the_runs_before(true);
    }

    #[test]
    fn large_future_has_no_place() {
        assert!(place::<MOST_KEPT>(&Arc::default()).is_none());
    }
}
