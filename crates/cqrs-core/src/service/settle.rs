use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::held::{HeldSettlement, Refused};
use super::job::{Job, log_dead, log_unacked};
use super::outcome::{End, Ended, Verdict};
use super::repeats::{Logged, log_first};
use super::runner::{Paused, Runner};
use super::state::{Counter, Counters};
use crate::broker::far_deadline;
use crate::causes::causes;
use crate::consume::{DeadLetter, DeadLetterReason, DeadLetterTarget, Delayed, SettleError};

/// How many held messages are named in error lines in a period of the log; further ones are counted.
const NAMED_PER_PERIOD: u64 = 10;

/// How long to wait before a settlement that the broker did not confirm is tried again: first, at most.
const SETTLE_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long a message is held whose settlement the broker refuses for good: first, at most.
const HELD_BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// How long a delivery rests that a handler gave back, or that could not be tried: first, at most.
const RETURN_BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

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
        self.dead_letter(job, letter).await
    }

    async fn dead_letter(&self, mut job: Job, letter: DeadLetter) -> End {
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
        self.spec.dead_letter == DeadLetterTarget::Discard
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

    /// Holds a job whose settlement retrying cannot fix. An error line names it, or counts it beside
    /// [`NAMED_PER_PERIOD`] others.
    pub(super) fn hold_refused(&self, job: Job, what: Refused, error: &SettleError) -> End {
        let of = match what {
            Refused::DeadLetter(_) => "dead letter",
            Refused::RetryCopy(_) => "retry copy",
        };
        let (message, cause) = (&job.message, causes(error));
        let place = match (message.partition, message.offset) {
            (Some(partition), Some(offset)) => {
                format!("{} [{partition}] at offset {offset}", message.topic)
            }
            _ => message.topic.to_string(),
        };
        let reason: Arc<str> =
            format!("{place}: the broker refuses its {of}, so it and its key are held: {cause}")
                .into();
        log_first!(
            self.watched.repeats.is_among_first(NAMED_PER_PERIOD, Logged::Refused, of),
            error,
            subscription = %self.watched.name,
            topic = %message.topic,
            partition = message.partition,
            offset = message.offset,
            id = message.id.as_deref(),
            error = cause,
            "the broker refuses the {of} of a message: it and its key are held, the others go on"
        );
        let shown = self.watched.hold(reason);
        let backoff = Backoff::new(HELD_BACKOFF.0, HELD_BACKOFF.1);
        keep(job, HeldSettlement { what, backoff, shown })
    }

    /// Tries to settle a held job again.
    pub(super) async fn settle_held(&self, mut job: Job, held: HeldSettlement) -> End {
        let settled = match &held.what {
            Refused::DeadLetter(letter) => job.settle.dead_letter(letter).await.map(|()| None),
            Refused::RetryCopy(delay) => {
                let delayed = job.settle.retry_later(*delay, &job.retry).await;
                delayed.map(|delayed| Some((delayed, *delay)))
            }
        };
        let Ok(settled) = settled else { return keep(job, held) };
        drop(held.shown);
        match settled {
            None => ack(job, |counters| &counters.dead_lettered).await,
            Some((Delayed::Scheduled, _)) => ack(job, |counters| &counters.rescheduled).await,
            Some((Delayed::Hold, delay)) => End::Hold(job, far_deadline(delay)),
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

fn keep(mut job: Job, mut held: HeldSettlement) -> End {
    let until = Instant::now() + held.backoff.next();
    // A revoke does not wait for what is held.
    job.settle.rest();
    job.held = Some(Box::new(held));
    End::Hold(job, until)
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
