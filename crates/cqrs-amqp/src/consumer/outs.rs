use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// Counts the deliveries that are out. The server counts them too, but anew on every channel.
#[derive(Debug, Clone)]
pub(super) struct Outs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    count: AtomicUsize,
    room: AtomicWaker,
}

/// One delivery that is out, until it is dropped.
#[derive(Debug)]
pub(super) struct Out(Outs);

impl Outs {
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared { count: AtomicUsize::new(0), room: AtomicWaker::new() }))
    }

    /// Waits until fewer than `max` are out, and counts one more. For one task at a time.
    pub(super) fn poll_take(&self, max: usize, cx: &mut Context<'_>) -> Poll<Out> {
        if self.count() >= max {
            self.0.room.register(cx.waker());
            if self.count() >= max {
                return Poll::Pending;
            }
        }
        self.0.count.fetch_add(1, Ordering::AcqRel);
        Poll::Ready(Out(self.clone()))
    }

    pub(super) fn count(&self) -> usize {
        self.0.count.load(Ordering::Acquire)
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        self.0.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.0.room.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn what_is_dropped_makes_room() {
        let outs = Outs::new();
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(first) = outs.poll_take(2, &mut cx) else { panic!("room for two") };
        let second = outs.poll_take(2, &mut cx);
        assert!(second.is_ready() && outs.poll_take(2, &mut cx).is_pending());
        drop(first);
        assert_eq!(outs.count(), 1);
        assert!(outs.poll_take(2, &mut cx).is_ready());
    }
}
