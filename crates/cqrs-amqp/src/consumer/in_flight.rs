//! Counts deliveries in flight, for the source's bound and for the quarantine.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// A count of deliveries over all channels of a source; the server's own count begins anew on every channel.
/// At most one task waits for it.
#[derive(Debug, Clone)]
pub(super) struct InFlight(Arc<Count>);

#[derive(Debug)]
struct Count {
    count: AtomicUsize,
    fewer: AtomicWaker,
}

/// One delivery in flight, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit(InFlight);

impl InFlight {
    pub(super) fn new() -> Self {
        Self(Arc::new(Count { count: AtomicUsize::new(0), fewer: AtomicWaker::new() }))
    }

    /// Counts one more.
    pub(super) fn add(&self) -> Permit {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        Permit(self.clone())
    }

    /// Ready if fewer than `max` are in flight.
    pub(super) fn poll_fewer(&self, max: usize, cx: &mut Context<'_>) -> Poll<()> {
        if self.count() >= max {
            self.0.fewer.register(cx.waker());
            if self.count() >= max {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// Waits until none is in flight. Cancel safe.
    pub(super) async fn none(&self) {
        poll_fn(|cx| self.poll_fewer(1, cx)).await;
    }

    pub(super) fn count(&self) -> usize {
        self.0.count.load(Ordering::Acquire)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.0.fewer.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn dropped_permit_makes_room() {
        let in_flight = InFlight::new();
        let mut cx = Context::from_waker(Waker::noop());
        let first = in_flight.add();
        assert!(in_flight.poll_fewer(2, &mut cx).is_ready());
        let _second = in_flight.add();
        assert!(in_flight.poll_fewer(2, &mut cx).is_pending());
        drop(first);
        assert_eq!(in_flight.count(), 1);
        assert!(in_flight.poll_fewer(2, &mut cx).is_ready());
    }
}
