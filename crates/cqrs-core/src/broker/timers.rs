//! The timers of receipts, kept for the next ones; part of the intake.

use std::fmt;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, Sleep};

/// Timers that receipts no longer need.
///
/// A kept timer stays registered, and its deadline is nearly always earlier than that of the next receipt. tokio
/// postpones such a timer without its lock, so the timer of a confirmed message costs no registration.
///
/// Invariant: all kept timers are of one runtime, the last that gave one back.
#[derive(Default)]
pub(super) struct Timers(Mutex<Vec<Timer>>);

/// A timer. Belongs to one runtime, after whose shutdown it must not be polled.
pub(super) struct Timer {
    /// tokio may reuse the id of a runtime that has ended. It does not today: they are counted.
    runtime: Id,
    pub(super) sleep: Pin<Box<Sleep>>,
}

/// The number of timers that are kept.
const KEPT: usize = 128;

impl Timers {
    /// A timer of the current runtime.
    pub(super) fn take(&self, deadline: Instant) -> Timer {
        let runtime = Handle::current().id();
        let kept = self.lock().pop_if(|timer| timer.runtime == runtime);
        match kept {
            Some(mut timer) => {
                timer.sleep.as_mut().reset(deadline);
                timer
            }
            None => Timer { runtime, sleep: Box::pin(tokio::time::sleep_until(deadline)) },
        }
    }

    /// Keeps a timer of the current runtime for a later receipt.
    pub(super) fn keep(&self, mut timer: Timer) {
        if Handle::try_current().map(|current| current.id()).ok() != Some(timer.runtime) {
            return;
        }
        // Unregisters the waker, which keeps its task in memory.
        let _elapsed = timer.sleep.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let mut kept = self.lock();
        let foreign = match kept.first() {
            Some(first) if first.runtime != timer.runtime => std::mem::take(&mut *kept),
            _ => Vec::new(),
        };
        let surplus = match kept.len() < KEPT {
            true => {
                kept.push(timer);
                None
            }
            false => Some(timer),
        };
        drop(kept);
        // They take a lock of their runtime.
        drop((foreign, surplus));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Timer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Timers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Timers")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::broker::{Confirmation, Intake, PublishErrorKind, Window};
    use crate::message::Message;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn message() -> Message {
        Message::new("t", "")
    }

    /// Publishes a message whose receipt waits for its confirm, and so needs a timer.
    async fn publish(intake: &Intake) {
        let (pending, mut receipt) = intake.try_admit(message()).unwrap();
        assert!((&mut receipt).now_or_never().is_none());
        pending.confirm(Confirmation::default());
        receipt.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn kept_timer_expires_the_next_receipt_at_its_deadline() {
        let intake = Intake::new(Window::default(), TIMEOUT);
        for pause in [0, 3, 4, 7] {
            publish(&intake).await;
            assert_eq!(intake.timers().lock().len(), 1);
            tokio::time::sleep(Duration::from_secs(pause)).await;
            let started = Instant::now();
            let (_pending, receipt) = intake.try_admit(message()).unwrap();
            assert_eq!(receipt.await.unwrap_err().kind(), PublishErrorKind::NotSent);
            assert_eq!(started.elapsed(), TIMEOUT);
        }
    }

    #[test]
    fn timer_of_another_runtime_is_not_used() {
        let intake = Intake::new(Window::default(), TIMEOUT);
        for _ in 0..3 {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(publish(&intake));
            assert_eq!(intake.timers().lock().len(), 1);
        }
    }

    #[tokio::test]
    async fn kept_timer_keeps_no_waker() {
        struct Task;

        impl Wake for Task {
            fn wake(self: Arc<Self>) {}
        }

        let (intake, task) = (Intake::new(Window::default(), TIMEOUT), Arc::new(Task));
        let (pending, mut receipt) = intake.try_admit(message()).unwrap();
        let waker = Waker::from(Arc::clone(&task));
        let mut poll = || Pin::new(&mut receipt).poll(&mut Context::from_waker(&waker));
        assert!(poll().is_pending());
        pending.confirm(Confirmation::default());
        assert!(poll().is_ready());
        drop(waker);
        assert_eq!(intake.timers().lock().len(), 1);
        assert_eq!(Arc::strong_count(&task), 1);
    }

    #[tokio::test]
    async fn only_some_timers_are_kept() {
        let intake = Intake::new(Window::default(), TIMEOUT);
        let mut receipts = Vec::new();
        for _ in 0..2 * KEPT {
            let (pending, mut receipt) = intake.try_admit(message()).unwrap();
            assert!((&mut receipt).now_or_never().is_none());
            receipts.push((pending, receipt));
        }
        for (pending, receipt) in receipts {
            pending.confirm(Confirmation::default());
            receipt.await.unwrap();
        }
        assert_eq!(intake.timers().lock().len(), KEPT);
    }
}
