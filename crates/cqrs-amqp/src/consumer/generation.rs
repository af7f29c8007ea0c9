//! The state that the deliveries of one channel share with it, part of the consumer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lapin::Acker;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, mpsc};

use super::incoming::Original;

/// What the deliveries of a line share with it.
pub(super) struct Generation {
    over: AtomicBool,
    ended: Notify,
    acked: AtomicU64,
    returns: mpsc::UnboundedSender<Returned>,
}

impl Generation {
    pub(super) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Returned>) {
        let (returns, returned) = mpsc::unbounded_channel();
        let generation = Self {
            over: AtomicBool::new(false),
            ended: Notify::new(),
            acked: AtomicU64::new(0),
            returns,
        };
        (Arc::new(generation), returned)
    }

    /// Whether its channel is gone, and its deliveries with it.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Ends with the generation. To be made before [`is_over`](Self::is_over) is asked.
    pub(super) fn ended(&self) -> Notified<'_> {
        self.ended.notified()
    }

    /// From here on its deliveries cannot be settled.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.ended.notify_waiters();
    }

    /// Never blocks: the task that owns the channel does the rest.
    pub(super) fn give_back(&self, returned: Returned) {
        let _goes_back_with_its_channel = self.returns.send(returned);
    }

    /// Acknowledgements written.
    pub(super) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    pub(super) fn count_ack(&self) {
        self.acked.fetch_add(1, Ordering::Relaxed);
    }
}

/// A delivery that was dropped unsettled.
pub(super) struct Returned {
    pub(super) tag: u64,
    pub(super) acker: Acker,
    /// From a stream, to which nothing goes back: it is handed out again from here.
    pub(super) again: Option<Again>,
}

/// A message that is handed out again, of the queue of this number.
pub(super) struct Again {
    pub(super) queue: usize,
    pub(super) original: Original,
}
