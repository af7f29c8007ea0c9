//! [`Meter`]: counts handled messages; the clock runs from the first to the last, as the harness's does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;

use crate::Answered;
use crate::cpu::{Elapsed, Stopwatch};
use crate::event::Benched;
use crate::protocol::Answer;

const LIMIT: Duration = Duration::from_secs(300);

#[derive(Clone, Default)]
pub(crate) struct Meter(Arc<Shared>);

#[derive(Default)]
struct Shared {
    messages: usize,
    seen: AtomicUsize,
    first: OnceLock<Stopwatch>,
    elapsed: OnceLock<Elapsed>,
    done: Notify,
}

impl Meter {
    pub(crate) fn new(messages: usize) -> Self {
        Self(Arc::new(Shared { messages, ..Shared::default() }))
    }

    pub(crate) fn count(&self, event: &Benched) {
        assert_eq!(event.user_id.len(), 4);
        let seen = self.0.seen.fetch_add(1, Ordering::Relaxed) + 1;
        if seen == 1 {
            self.0.first.get_or_init(Stopwatch::start);
        }
        if seen == self.0.messages
            && let Some(first) = self.0.first.get()
        {
            self.0.elapsed.get_or_init(|| first.elapsed());
            self.0.done.notify_one();
        }
    }

    /// Waits for the last message.
    pub(crate) async fn answer(&self) -> Answered {
        let seen = || self.0.seen.load(Ordering::Relaxed);
        tokio::time::timeout(LIMIT, self.0.done.notified())
            .await
            .map_err(|_| format!("{} of {} messages after {LIMIT:?}", seen(), self.0.messages))?;
        let elapsed = self.0.elapsed.get().ok_or("no last message")?;
        Ok(per_second(self.0.messages - 1, elapsed))
    }
}

pub(crate) fn per_second(count: usize, elapsed: &Elapsed) -> Answer {
    Answer::Measured {
        value: count as f64 / elapsed.wall.as_secs_f64(),
        cpu_us: elapsed.cpu_us(count),
        cores: elapsed.cores(),
    }
}
