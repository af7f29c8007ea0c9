//! [`Meter`]: counts handled messages; the clock runs from the first to the last.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;

use crate::cpu::{Elapsed, Stopwatch};
use crate::event::Benched;
use crate::measure::{Round, Unit};

const LIMIT: Duration = Duration::from_secs(300);

#[derive(Clone)]
pub(crate) struct Meter(Arc<Shared>);

struct Shared {
    messages: usize,
    seen: AtomicUsize,
    first: OnceLock<Stopwatch>,
    elapsed: OnceLock<Elapsed>,
    done: Notify,
}

impl Meter {
    pub(crate) fn new(messages: usize) -> Self {
        Self(Arc::new(Shared {
            messages,
            seen: AtomicUsize::new(0),
            first: OnceLock::new(),
            elapsed: OnceLock::new(),
            done: Notify::new(),
        }))
    }

    /// One more; `true` for the last.
    pub(crate) fn count(&self, event: &Benched) -> bool {
        assert_eq!(event.user_id.len(), 4);
        let seen = self.0.seen.fetch_add(1, Ordering::Relaxed) + 1;
        if seen == 1 {
            self.0.first.get_or_init(Stopwatch::start);
        }
        let is_last = seen == self.0.messages;
        if is_last && let Some(first) = self.0.first.get() {
            self.0.elapsed.get_or_init(|| first.elapsed());
            self.0.done.notify_one();
        }
        is_last
    }

    pub(crate) async fn done(&self) {
        tokio::time::timeout(LIMIT, self.0.done.notified()).await.unwrap_or_else(|_| {
            let seen = self.0.seen.load(Ordering::Relaxed);
            panic!("{seen} of {} messages after {LIMIT:?}", self.0.messages)
        });
    }

    /// Messages a second, after the last one.
    pub(crate) fn round(&self) -> Round {
        let elapsed = *self.0.elapsed.get().expect("all messages");
        Round::new(Unit::MessagesPerSecond, self.0.messages - 1, elapsed)
    }
}
