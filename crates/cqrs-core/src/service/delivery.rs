//! The delivery that a `manual` handler settles itself.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use tokio::sync::oneshot;

use super::runtime::{Counter, Counters, Job, ManualOutcome, log_dead_letter, log_unacked};
use crate::consume::support::error_chain;
use crate::consume::{DeadLetterReason, Delayed, Received, SettleError};
use crate::event::{HandlerError, Timestamp};

/// A message that its handler settles. See [`manual`](super::manual).
///
/// Settling consumes it, so a message is not settled twice:
///
/// ```compile_fail,E0382
/// # async fn handler(delivery: cqrs_core::Delivery) {
/// delivery.ack().await.unwrap();
/// delivery.ack().await.unwrap(); // error[E0382]: use of moved value
/// # }
/// ```
///
/// Dropped, it is given back, never acked: it is handled again before the later messages of its key, after
/// a pause that grows each time.
#[must_use = "dropping it gives the message back"]
pub struct Delivery(Option<Box<Inner>>);

struct Inner {
    job: Job,
    /// Set if dead letters are discarded.
    discards: bool,
    outcome: oneshot::Sender<ManualOutcome>,
}

/// The error of an unconfirmed settlement, with the delivery.
///
/// Try again if the cause may pass. A message whose channel is lost is redelivered: drop the delivery then.
#[derive(thiserror::Error)]
#[error("the delivery is not settled")]
pub struct NotSettled {
    /// The cause.
    #[source]
    pub error: SettleError,
    /// The delivery, not settled.
    pub delivery: Delivery,
}

crate::error_debug!(NotSettled, delivery);

impl Delivery {
    pub(super) fn new(job: Job, discards: bool) -> (Self, oneshot::Receiver<ManualOutcome>) {
        let (outcome, ended) = oneshot::channel();
        (Self(Some(Box::new(Inner { job, discards, outcome }))), ended)
    }

    /// The message, its group and its attempt.
    pub fn received(&self) -> &Received {
        match &self.0 {
            Some(inner) => &inner.job.received,
            None => unreachable!("settling consumes the delivery"),
        }
    }

    /// Acks the message: it is not redelivered.
    ///
    /// # Errors
    /// If the ack did not reach the broker; the delivery is in the error.
    ///
    /// # Cancel safety
    /// A dropped call gives the message back, or has acked it.
    pub async fn ack(mut self) -> Result<(), NotSettled> {
        let settled = self.inner().job.settle.ack().await;
        self.end(settled, |job| settled_as(job, |counters| &counters.handled))
    }

    /// Retries the message after `delay`, as a further attempt.
    ///
    /// RabbitMQ, and Kafka with retry topics, have one queue or topic for each delay of the retry schedule:
    /// the message waits in that of the shortest delay that is not shorter than `delay`, on RabbitMQ for
    /// that whole delay. Without delayed retries in the schedule the consumer holds the message and its key
    /// waits.
    ///
    /// # Errors
    /// If the broker did not confirm, or `delay` is longer than all delays of the schedule; the delivery is
    /// in the error.
    ///
    /// # Cancel safety
    /// A dropped call gives the message back; a retry copy may exist beside it.
    pub async fn retry_later(mut self, delay: Duration) -> Result<(), NotSettled> {
        let inner = self.inner();
        let state = inner.job.received.retry().failed(Timestamp::now());
        match inner.job.settle.retry_later(delay, &state).await {
            Ok(Delayed::Hold) => {
                inner.job.received.set_retry(state);
                self.report(|job| ManualOutcome::Hold(job, delay));
                Ok(())
            }
            Ok(Delayed::Scheduled) => {
                self.ack_after_copy(|counters| &counters.rescheduled).await;
                Ok(())
            }
            Err(error) => Err(NotSettled { error, delivery: self }),
        }
    }

    /// Makes the message a dead letter because of `error`.
    ///
    /// # Errors
    /// If the broker did not confirm; the delivery is in the error.
    ///
    /// # Cancel safety
    /// A dropped call gives the message back; a dead letter may exist beside it.
    pub async fn dead_letter(mut self, error: impl Into<HandlerError>) -> Result<(), NotSettled> {
        let error = error.into();
        let inner = self.inner();
        // For the dead letter only: a second try of it is no further attempt.
        let retry = inner.job.received.retry().failed(Timestamp::now());
        let text = error_chain(error.source());
        let letter =
            inner.job.dead_letter(&retry, DeadLetterReason::Permanent, error.type_name(), &text);
        log_dead_letter(&inner.job, &letter);
        if inner.discards {
            let settled = inner.job.settle.ack().await;
            return self.end(settled, |job| settled_as(job, |counters| &counters.discarded));
        }
        if let Err(error) = inner.job.settle.dead_letter(&letter).await {
            return Err(NotSettled { error, delivery: self });
        }
        self.ack_after_copy(|counters| &counters.dead_lettered).await;
        Ok(())
    }

    /// Gives it back, as dropping it does.
    pub fn give_back(self) {}

    /// Acks after a confirmed copy: the message is done even if the ack fails.
    async fn ack_after_copy(mut self, counter: fn(&Counters) -> &Counter) {
        let acked = self.inner().job.settle.ack().await;
        self.report(|job| match acked {
            Ok(()) => settled_as(job, counter),
            Err(error) => {
                log_unacked(&job, &error);
                settled_as(job, |counters| &counters.unacked)
            }
        });
    }

    fn inner(&mut self) -> &mut Inner {
        match &mut self.0 {
            Some(inner) => inner,
            None => unreachable!("settling consumes the delivery"),
        }
    }

    fn end(
        self,
        settled: Result<(), SettleError>,
        ended: impl FnOnce(Job) -> ManualOutcome,
    ) -> Result<(), NotSettled> {
        if let Err(error) = settled {
            return Err(NotSettled { error, delivery: self });
        }
        self.report(ended);
        Ok(())
    }

    fn report(mut self, ended: impl FnOnce(Job) -> ManualOutcome) {
        if let Some(inner) = self.0.take() {
            let Inner { job, outcome, .. } = *inner;
            // After the end of the subscription there is no receiver; a job in `outcome` is then given
            // back.
            let _unheard = outcome.send(ended(job));
        }
    }
}

fn settled_as(job: Job, counter: fn(&Counters) -> &Counter) -> ManualOutcome {
    job.count_as(counter);
    ManualOutcome::Settled
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(inner) = self.0.take() {
            let Inner { job, outcome, .. } = *inner;
            let _unheard = outcome.send(ManualOutcome::Returned(job));
        }
    }
}

impl Deref for Delivery {
    type Target = Received;

    fn deref(&self) -> &Received {
        self.received()
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Delivery").field(&self.0.as_ref().map(|inner| &inner.job.received)).finish()
    }
}
