use std::fmt;
use std::sync::Arc;

use super::held::HeldSettlement;
use super::received::Received;
use super::repeats::{Logged, log_first};
use super::state::{Counter, Counters, Watched};
use crate::causes::causes;
use crate::consume::{
    DeadLetter, DeadLetterReason, Incoming, RetryState, Settle, SettleError, SourceDelivery,
};
use crate::event::Timestamp;

/// One delivery on its way through the runtime. Dropped, it is given back to the broker.
///
/// It counts itself, once: when it is dropped, as given back, unless [`end`](Self::end) counted it as
/// something else. So the counts add up whoever has it in the end: a worker that is cancelled, a lane,
/// somebody who keeps a [`Delivery`](super::Delivery).
pub(super) struct Job {
    pub(super) message: Arc<Incoming>,
    pub(super) retry: RetryState,
    /// Whether the delay after its last failure is over, or the runtime knows when it is.
    pub(super) delayed: bool,
    /// How often a handler gave it back.
    pub(super) returned: u32,
    /// How often it rested, be it given back or not tried.
    pub(super) rests: u32,
    pub(super) settle: Box<dyn Settle>,
    /// How it is to be settled, if the broker refused that.
    pub(super) held: Option<Box<HeldSettlement>>,
    /// `None` once it is counted.
    uncounted: Option<Arc<Watched>>,
}

impl Job {
    pub(super) fn new(delivery: SourceDelivery, watched: &Arc<Watched>) -> Self {
        let SourceDelivery { message, retry, delayed, settle } = delivery;
        watched.counters.received.one();
        let uncounted = Some(Arc::clone(watched));
        Self {
            message: Arc::new(message),
            retry,
            delayed,
            returned: 0,
            rests: 0,
            settle,
            held: None,
            uncounted,
        }
    }

    /// It ended, and not by being given back.
    pub(super) fn end(mut self, counter: impl FnOnce(&Counters) -> &Counter) {
        if let Some(watched) = self.uncounted.take() {
            counter(&watched.counters).one();
        }
    }

    /// Whether a log line of this cause is to be written.
    pub(super) fn is_first(&self, logged: Logged, cause: &str) -> bool {
        self.uncounted.as_ref().is_none_or(|watched| watched.repeats.is_first(logged, cause))
    }

    /// The subscription's name.
    pub(super) fn subscription(&self) -> &str {
        self.uncounted.as_ref().map_or("", |watched| &watched.name)
    }

    pub(super) fn received(&self, group: &Arc<str>) -> Received {
        Received {
            message: Arc::clone(&self.message),
            group: Arc::clone(group),
            retry: self.retry,
            returned: self.returned,
        }
    }

    /// Its dead letter after the attempts in `retry`.
    pub(super) fn letter(
        &self,
        retry: &RetryState,
        group: &str,
        reason: DeadLetterReason,
        error_type: &str,
        error: &str,
    ) -> DeadLetter {
        let message = &*self.message;
        let mut letter =
            DeadLetter::new(reason, &*message.topic, group).with_error(error_type, error);
        letter.attempts = retry.attempts;
        let now = Timestamp::now();
        letter.first_failure = retry.first_failure.unwrap_or(now);
        letter.last_failure = retry.last_failure.unwrap_or(now);
        letter.partition = message.partition;
        letter.offset = message.offset;
        letter.queue = message.queue.as_deref().map(str::to_owned);
        letter
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(watched) = &self.uncounted {
            watched.counters.given_back.one();
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("message", &self.message)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

/// A message is lost to its handler, wherever it goes.
pub(super) fn log_dead(job: &Job, letter: &DeadLetter) {
    log_first!(
        job.is_first(Logged::DeadLetter, &letter.error_type),
        error,
        subscription = job.subscription(),
        topic = letter.topic,
        partition = letter.partition,
        offset = letter.offset,
        id = job.message.id.as_deref(),
        attempts = letter.attempts,
        reason = %letter.reason,
        error = letter.error,
        "a message becomes a dead letter"
    );
}

/// What became of a message is safe, but it could not be acked.
pub(super) fn log_unacked(job: &Job, error: &SettleError) {
    log_first!(
        job.is_first(Logged::Unacked, ""),
        warn,
        subscription = job.subscription(),
        topic = %job.message.topic,
        partition = job.message.partition,
        offset = job.message.offset,
        error = %causes(error),
        "done, but not acked: it is redelivered"
    );
}
