//! A job: one delivery in the runtime, from the source to its settlement.

use std::sync::Arc;

use super::held::HeldSettlement;
use super::monitor::{Counter, Counters, Monitor};
use super::repeats::{Logged, log_first};
use crate::consume::support::error_chain;
use crate::consume::{
    DeadLetter, DeadLetterReason, Received, RetryState, Settle, SettleError, SourceDelivery, Spare,
};
use crate::event::Timestamp;

/// One delivery in the runtime. Dropped, it is given back to the broker.
///
/// It is counted once: as given back when it is dropped, unless [`count_as`](Self::count_as) counted it
/// before. So the counts are right wherever it is dropped: in a cancelled worker, in a lane, or in a
/// [`Delivery`](crate::Delivery) that a handler keeps.
pub(crate) struct Job {
    uncounted: Uncounted,
    pub(crate) received: Received,
    /// Set if the delay after its last failure is over, or if the runtime has scheduled it.
    pub(crate) delayed: bool,
    /// The number of times that it was postponed: given back, or not tried.
    pub(crate) postponed: u32,
    pub(crate) settle: Box<dyn Settle>,
    /// The settlement that the broker refused, to be tried again.
    pub(super) held: Option<Box<HeldSettlement>>,
}

/// A job that is not counted yet. Dropped, it counts as given back.
struct Uncounted(Option<Arc<Monitor>>);

impl Uncounted {
    #[inline]
    fn count_as(&mut self, counter: impl FnOnce(&Counters) -> &Counter) {
        if let Some(monitor) = self.0.take() {
            counter(&monitor.counters).one();
        }
    }
}

impl Drop for Uncounted {
    fn drop(&mut self) {
        self.count_as(|counters| &counters.given_back);
    }
}

impl Job {
    /// The job of a delivery that the caller has counted as received.
    #[inline]
    pub(crate) fn new(delivery: SourceDelivery, monitor: &Arc<Monitor>, spare: &mut Spare) -> Self {
        Self {
            uncounted: Uncounted(Some(Arc::clone(monitor))),
            received: spare.received.fill(delivery.message, &monitor.group, delivery.retry),
            delayed: delivery.delayed,
            postponed: 0,
            settle: delivery.settle,
            held: None,
        }
    }

    /// Counts it, and drops it. The broker takes a settled one as done, and redelivers another.
    pub(crate) fn count_as(mut self, counter: impl FnOnce(&Counters) -> &Counter) {
        self.uncounted.count_as(counter);
    }

    /// As [`count_as`](Self::count_as), of an acked one, but keeps it.
    #[inline]
    pub(super) fn count_acked(&mut self, counter: impl FnOnce(&Counters) -> &Counter) {
        self.uncounted.count_as(counter);
    }

    /// Keeps the parts of an acked one that can be used again.
    #[inline]
    pub(super) fn recycle(self, spare: &mut Spare) {
        let message = spare.received.keep(self.received);
        spare.keep(message, self.settle);
    }

    /// `true` if a log line of this cause must be written.
    pub(super) fn is_first(&self, logged: Logged, cause: &str) -> bool {
        self.uncounted.0.as_ref().is_none_or(|monitor| monitor.repeats.is_first(logged, cause))
    }

    /// The subscription's name.
    pub(crate) fn subscription(&self) -> &str {
        self.uncounted.0.as_ref().map_or("", |monitor| &monitor.name)
    }

    /// Its dead letter, after the attempts in `retry`.
    pub(crate) fn dead_letter(
        &self,
        retry: &RetryState,
        reason: DeadLetterReason,
        error_type: &str,
        error: &str,
    ) -> DeadLetter {
        let message = self.received.message();
        let mut letter = DeadLetter::new(reason, &*message.topic, self.received.group())
            .with_error(error_type, error);
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

crate::debug_fields!(Job { received });

/// Logs that a message becomes a dead letter.
pub(crate) fn log_dead_letter(job: &Job, letter: &DeadLetter) {
    log_first!(
        job.is_first(Logged::DeadLetter, &letter.error_type),
        error,
        subscription = job.subscription(),
        topic = letter.topic,
        partition = letter.partition,
        offset = letter.offset,
        id = job.received.id.as_deref(),
        attempts = letter.attempts,
        reason = %letter.reason,
        error = letter.error,
        "a message becomes a dead letter"
    );
}

/// Logs that a message is done but could not be acked.
pub(crate) fn log_unacked(job: &Job, error: &SettleError) {
    log_first!(
        job.is_first(Logged::Unacked, ""),
        warn,
        subscription = job.subscription(),
        topic = %job.received.topic,
        partition = job.received.partition,
        offset = job.received.offset,
        error = %error_chain(error),
        "done, but not acked: it is redelivered"
    );
}
