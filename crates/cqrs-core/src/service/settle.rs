use std::time::Duration;

use super::backoff::Backoff;
use super::delivery::{Ended, log_unacked};
use super::failure::causes;
use super::held::Refused;
use super::job::Job;
use super::repeats::{Logged, log_first};
use super::runner::{End, Paused, Runner};
use super::state::{Counter, Counters};
use super::worker::Verdict;
use super::{RETURN_BACKOFF, SETTLE_BACKOFF};
use crate::broker::far_deadline;
use crate::consume::{DeadLetter, DeadLetterReason, DeadLetterTo, Delayed, SettleError};

impl Runner {
    /// Settles a job that has no further attempt here.
    pub(super) async fn settle(&self, job: Job, verdict: Verdict) -> End {
        let (reason, error_type, error) = match verdict {
            Verdict::Handled => return ack(job, |counters| &counters.handled).await,
            Verdict::Skipped => return ack(job, |counters| &counters.skipped).await,
            Verdict::Stop(case) => {
                let text = format!(
                    "a message of {:?} (offset {:?}) stopped it, as its policy says: {case}",
                    job.message.topic, job.message.offset
                );
                drop(job);
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
            Verdict::Failed(failure) => {
                (failure.reason(), failure.error_type.clone(), failure.error.clone())
            }
        };
        let letter = job.letter(&job.retry, &self.spec.group, reason, &error_type, &error);
        self.bury(job, letter).await
    }

    async fn bury(&self, mut job: Job, letter: DeadLetter) -> End {
        log_dead(&job, &letter);
        if self.discards() {
            return ack(job, |counters| &counters.discarded).await;
        }
        let mut confirmation = Confirmation::of(self, "dead letter");
        loop {
            let Err(error) = job.settle.dead_letter(&letter).await else { break };
            if error.is_permanent() {
                return self.hold_refused(job, Refused::DeadLetter(Box::new(letter)), &error);
            }
            if !confirmation.wait_after(&error).await {
                return End::Done;
            }
        }
        ack(job, |counters| &counters.dead_lettered).await
    }

    pub(super) fn discards(&self) -> bool {
        self.spec.dead_letter == DeadLetterTo::Discard
    }

    pub(super) async fn retry_later(&self, mut job: Job, delay: Duration) -> End {
        let mut confirmation = Confirmation::of(self, "retry copy");
        let until = far_deadline(delay);
        loop {
            match job.settle.retry_later(delay, &job.retry).await {
                Ok(Delayed::Hold) => return End::Hold(job, until),
                Ok(Delayed::Scheduled) => {
                    return ack(job, |counters| &counters.rescheduled).await;
                }
                Err(error) if error.is_permanent() => {
                    return self.hold_refused(job, Refused::RetryCopy(delay), &error);
                }
                Err(error) => {
                    if !confirmation.wait_after(&error).await {
                        return End::Done;
                    }
                }
            }
        }
    }

    /// It is to be handled again, after a pause that grows with the number of times. That is no attempt.
    pub(super) fn rest(&self, mut job: Job) -> End {
        if self.stop.is_cancelled() {
            return End::Done;
        }
        let (first, max) = RETURN_BACKOFF;
        let pause = first.saturating_mul(1 << job.rests.min(16)).min(max);
        job.rests = job.rests.saturating_add(1);
        job.settle.rest();
        End::Hold(job, far_deadline(pause))
    }

    /// After a handler that settles itself.
    pub(super) fn ended(&self, ended: Option<Ended>) -> End {
        match ended {
            Some(Ended::Hold(job, delay)) => End::Hold(job, far_deadline(delay)),
            Some(Ended::Returned(mut job)) => {
                job.returned = job.returned.saturating_add(1);
                self.rest(job)
            }
            Some(Ended::Settled) | None => End::Done,
        }
    }
}

pub(super) async fn ack(mut job: Job, counter: fn(&Counters) -> &Counter) -> End {
    match job.settle.ack().await {
        Ok(()) => job.end(counter),
        Err(error) => {
            log_unacked(&job, &error);
            job.end(|counters| &counters.unacked);
        }
    }
    End::Done
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

/// Holds the subscription back from the first time that something is not confirmed until it is, or
/// is given up.
struct Confirmation<'r> {
    runner: &'r Runner,
    of: &'static str,
    backoff: Backoff,
    paused: Option<Paused<'r>>,
}

impl<'r> Confirmation<'r> {
    fn of(runner: &'r Runner, of: &'static str) -> Self {
        let backoff = Backoff::new(SETTLE_BACKOFF.0, SETTLE_BACKOFF.1);
        Self { runner, of, backoff, paused: None }
    }

    /// Waits until it is time to try again. `false` when the subscription stops meanwhile.
    async fn wait_after(&mut self, error: &SettleError) -> bool {
        let reason = format!("a {} is not confirmed: {}", self.of, causes(error));
        let watched = &self.runner.watched;
        let is_first = watched.repeats.is_first(Logged::Unconfirmed, self.of);
        log_first!(is_first, error, subscription = %watched.name, reason, "paused");
        self.paused = Some(self.runner.pause(&reason));
        tokio::select! {
            () = self.backoff.wait() => true,
            () = self.runner.stop.cancelled() => false,
        }
    }
}
