use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::delivery::{Ended, log_double};
use super::failure::causes;
use super::job::Job;
use super::runner::{End, Runner};
use super::state::Counter;
use super::worker::Verdict;
use super::{RETURN_BACKOFF, SETTLE_BACKOFF};
use crate::consume::{DeadLetter, DeadLetterReason, DeadLetterTo, Delayed, SettleError};

impl Runner {
    /// Settles a job that has no further attempt here.
    pub(super) async fn settle(&self, job: Job, verdict: Verdict) -> End {
        let counters = &self.watched.counters;
        let (reason, error_type, error) = match verdict {
            Verdict::Handled => return self.ack(job, &counters.handled).await,
            Verdict::Skipped => return self.ack(job, &counters.skipped).await,
            Verdict::Stop(case) => {
                let text = format!(
                    "a message of {:?} (offset {:?}) stopped it, as its policy says: {case}",
                    job.message.topic, job.message.offset
                );
                self.drop_job(job);
                return End::Fatal(text);
            }
            Verdict::Undecodable(case) => {
                (case.reason(), case.type_name().to_owned(), case.to_string())
            }
            Verdict::Crashed => {
                let text =
                    format!("its handling was started {} times and never ended", job.retry.crashes);
                (DeadLetterReason::Exhausted, "Crash".to_owned(), text)
            }
            Verdict::Failed(failure) => (failure.reason(), failure.error_type, failure.error),
        };
        let letter = job.letter(&self.spec.group, reason, &error_type, &error);
        self.bury(job, &letter).await
    }

    async fn bury(&self, mut job: Job, letter: &DeadLetter) -> End {
        let reason = letter.reason;
        tracing::error!(
            subscription = %self.watched.name,
            topic = letter.topic,
            partition = letter.partition,
            offset = letter.offset,
            id = job.message.id.as_deref(),
            attempts = letter.attempts,
            %reason,
            error = letter.error,
            "a message becomes a dead letter"
        );
        if self.spec.dead_letter == DeadLetterTo::Discard {
            return self.ack(job, &self.watched.counters.discarded).await;
        }
        let mut backoff = Backoff::new(SETTLE_BACKOFF.0, SETTLE_BACKOFF.1);
        loop {
            let Err(error) = job.settle.dead_letter(letter).await else { break };
            if !self.wait_after(&error, "dead letter", &mut backoff).await {
                return self.drop_job(job);
            }
        }
        self.ack(job, &self.watched.counters.dead_lettered).await
    }

    pub(super) async fn retry_later(&self, mut job: Job, delay: Duration) -> End {
        let mut backoff = Backoff::new(SETTLE_BACKOFF.0, SETTLE_BACKOFF.1);
        let until = Instant::now() + delay;
        loop {
            match job.settle.retry_later(delay, &job.retry).await {
                Ok(Delayed::Hold) => return End::Hold(job, until),
                Ok(Delayed::Scheduled) => {
                    return self.ack(job, &self.watched.counters.rescheduled).await;
                }
                Err(error) => {
                    if !self.wait_after(&error, "retry copy", &mut backoff).await {
                        return self.drop_job(job);
                    }
                }
            }
        }
    }

    /// Holds the subscription back for a while. `false` when it stops meanwhile.
    async fn wait_after(&self, error: &SettleError, what: &str, backoff: &mut Backoff) -> bool {
        let reason = format!("a {what} is not confirmed: {}", causes(error));
        tracing::error!(subscription = %self.watched.name, reason, "paused");
        let _paused = self.pause(&reason);
        tokio::select! {
            () = backoff.wait() => true,
            () = self.stop.cancelled() => false,
        }
    }

    async fn ack(&self, mut job: Job, counter: &Counter) -> End {
        match job.settle.ack().await {
            Ok(()) => counter.one(),
            Err(error) => {
                self.watched.counters.unacked.one();
                log_double(&Err(error));
            }
        }
        End::Done
    }

    /// Gives it back.
    pub(super) fn drop_job(&self, job: Job) -> End {
        self.watched.counters.given_back.one();
        drop(job);
        End::Done
    }

    /// It is to be handled again, after a pause that grows with the number of times.
    pub(super) fn rest(&self, mut job: Job) -> End {
        if self.stop.is_cancelled() {
            return self.drop_job(job);
        }
        let (first, max) = RETURN_BACKOFF;
        let pause = first.saturating_mul(1 << job.returned.min(16)).min(max);
        job.returned = job.returned.saturating_add(1);
        End::Hold(job, Instant::now() + pause)
    }

    /// After a handler that settles itself.
    pub(super) fn ended(&self, ended: Option<Ended>) -> End {
        let counters = &self.watched.counters;
        match ended {
            Some(Ended::Acked) => counters.handled.one(),
            Some(Ended::DeadLettered) => counters.dead_lettered.one(),
            Some(Ended::Scheduled) => counters.rescheduled.one(),
            Some(Ended::Hold(job, delay)) => return End::Hold(job, Instant::now() + delay),
            Some(Ended::Returned(job)) => return self.rest(job),
            // It was leaked.
            None => counters.given_back.one(),
        }
        End::Done
    }
}
