//! Settles jobs: acks, retry copies, dead letters, and what the broker refuses.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::context::SubscriptionContext;
use super::failure::AttemptFailure;
use super::held::{HeldSettlement, Refused};
use super::held_events::HeldEvents;
use super::job::{Job, log_dead_letter, log_unacked};
use super::monitor::{Counter, Counters, HeldEntry};
use super::outcome::{JobOutcome, ManualOutcome, Verdict};
use super::repeats::{Logged, log_first};
use super::scheduler::Paused;
use crate::consume::support::error_chain;
use crate::consume::support::far_deadline;
use crate::consume::{DeadLetter, DeadLetterReason, Delayed, Incoming, SettleError};

/// The number of held messages that error lines name in a period of the log; further ones are counted.
const NAMED_PER_PERIOD: u64 = 10;

/// The wait before an unconfirmed settlement is tried again: the first and the longest.
const SETTLE_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The wait before a permanently refused settlement is tried again: the first and the longest.
const HELD_BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// The wait of a delivery that a handler gave back or that could not be tried: the first and the longest.
const RETURN_BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// Settles a job that has no further attempt in this process.
pub(super) async fn settle(ctx: &SubscriptionContext, job: Job, verdict: Verdict) -> JobOutcome {
    let (reason, error_type, error) = match verdict {
        Verdict::Handled => return ack(job, |counters| &counters.handled).await,
        Verdict::Skipped => return ack(job, |counters| &counters.skipped).await,
        Verdict::Stop(case) => {
            let text = format!(
                "a message of {:?} (offset {:?}) stopped it, as its policy says: {case}",
                job.received.topic, job.received.offset
            );
            drop(job);
            return JobOutcome::Fatal(text);
        }
        Verdict::Undecodable(case) => {
            (case.reason(), case.type_name().to_owned(), case.to_string())
        }
        Verdict::Crashed => {
            let text = format!(
                "its handling was started {} times and never ended",
                job.received.retry().crashes
            );
            (DeadLetterReason::Exhausted, "Crash".to_owned(), text)
        }
        Verdict::Failed(failure) => {
            (failure.reason(), failure.error_type.clone(), failure.error.clone())
        }
    };
    let letter = job.dead_letter(job.received.retry(), reason, &error_type, &error);
    dead_letter(ctx, job, letter).await
}

async fn dead_letter(ctx: &SubscriptionContext, mut job: Job, letter: DeadLetter) -> JobOutcome {
    log_dead_letter(&job, &letter);
    if ctx.discards() {
        return ack(job, |counters| &counters.discarded).await;
    }
    let mut confirmation = Confirmation::of(ctx, "dead letter");
    loop {
        let Err(error) = job.settle.dead_letter(&letter).await else { break };
        if error.is_permanent() {
            let refused = Refused::DeadLetter(Box::new(letter));
            return hold(ctx, job, refused, error_chain(&error));
        }
        if !confirmation.wait_after(&error).await {
            return JobOutcome::Done;
        }
    }
    ack(job, |counters| &counters.dead_lettered).await
}

pub(super) async fn retry_later(
    ctx: &SubscriptionContext,
    mut job: Job,
    delay: Duration,
) -> JobOutcome {
    let mut confirmation = Confirmation::of(ctx, "retry copy");
    let until = far_deadline(delay);
    loop {
        match job.settle.retry_later(delay, job.received.retry()).await {
            Ok(Delayed::Hold) => return JobOutcome::Hold(job, until),
            Ok(Delayed::Scheduled) => {
                return ack(job, |counters| &counters.rescheduled).await;
            }
            Err(error) if error.is_permanent() => {
                return hold(ctx, job, Refused::RetryCopy(delay), error_chain(&error));
            }
            Err(error) => {
                if !confirmation.wait_after(&error).await {
                    return JobOutcome::Done;
                }
            }
        }
    }
}

/// Holds a job whose copy was refused permanently.
fn hold(ctx: &SubscriptionContext, job: Job, what: Refused, cause: String) -> JobOutcome {
    let shown = ctx.monitor.hold(held_reason(&job.received, &what, &cause));
    start_hold(ctx, job, what, cause, shown)
}

/// Holds a handled job until its events are published, within the bounds of [`HeldEvents`].
pub(super) async fn hold_events(
    ctx: &SubscriptionContext,
    job: Job,
    events: HeldEvents,
) -> JobOutcome {
    if let Some(error) = events.expired() {
        return give_up(ctx, job, AttemptFailure::undelivered(error)).await;
    }
    let (most, cause) = (ctx.spec.most_held, events.cause());
    let too_many = events.error(&format!("{most} messages are held already, and: {cause}"));
    let what = Refused::Events(events);
    match ctx.monitor.hold_beside_fewer(most, held_reason(&job.received, &what, &cause)) {
        Some(shown) => start_hold(ctx, job, what, cause, shown),
        None => give_up(ctx, job, AttemptFailure::undelivered(too_many)).await,
    }
}

/// Dead-letters a job that was handled.
async fn give_up(ctx: &SubscriptionContext, mut job: Job, failure: AttemptFailure) -> JobOutcome {
    job.received.note_failure();
    settle(ctx, job, Verdict::Failed(failure)).await
}

fn start_hold(
    ctx: &SubscriptionContext,
    job: Job,
    what: Refused,
    cause: String,
    shown: HeldEntry,
) -> JobOutcome {
    log_held(ctx, &job.received, &what, &cause);
    let backoff = Backoff::new(HELD_BACKOFF.0, HELD_BACKOFF.1);
    keep(job, HeldSettlement { what, cause, backoff, shown })
}

/// The reason in health.
fn held_reason(message: &Incoming, what: &Refused, cause: &str) -> Arc<str> {
    let place = match (message.partition, message.offset) {
        (Some(partition), Some(offset)) => {
            format!("{} [{partition}] at offset {offset}", message.topic)
        }
        _ => message.topic.to_string(),
    };
    let of = what.name();
    format!("{place}: the broker refuses its {of}, so it and its key are held: {cause}").into()
}

/// An error line names a held message; after [`NAMED_PER_PERIOD`] lines it is only counted.
fn log_held(ctx: &SubscriptionContext, message: &Incoming, what: &Refused, cause: &str) {
    let of = what.name();
    let limit = match what {
        Refused::Events(_) => ", for 10 min at most",
        Refused::DeadLetter(_) | Refused::RetryCopy(_) => "",
    };
    log_first!(
        ctx.monitor.repeats.is_among_first(NAMED_PER_PERIOD, Logged::Refused, of),
        error,
        subscription = %ctx.monitor.name,
        topic = %message.topic,
        partition = message.partition,
        offset = message.offset,
        id = message.id.as_deref(),
        error = cause,
        "the broker refuses the {of} of a message: it and its key are held{limit}, the others go on"
    );
}

/// Tries the refused settlement of a held job again.
pub(super) async fn settle_held(
    ctx: &SubscriptionContext,
    mut job: Job,
    mut held: HeldSettlement,
) -> JobOutcome {
    let settled = match &mut held.what {
        Refused::Events(events) => {
            if events.publish().await {
                drop(held.shown);
                return ack(job, |counters| &counters.handled).await;
            }
            if let Some(error) = events.expired() {
                drop(held.shown);
                return give_up(ctx, job, AttemptFailure::undelivered(error)).await;
            }
            Err(events.cause())
        }
        Refused::DeadLetter(letter) => {
            let stored = job.settle.dead_letter(letter).await;
            stored.map(|()| None).map_err(|error| error_chain(&error))
        }
        Refused::RetryCopy(delay) => {
            let delayed = job.settle.retry_later(*delay, job.received.retry()).await;
            delayed.map(|delayed| Some((delayed, *delay))).map_err(|error| error_chain(&error))
        }
    };
    let settled = match settled {
        Ok(settled) => settled,
        Err(cause) => {
            if cause != held.cause {
                log_held(ctx, &job.received, &held.what, &cause);
                held.shown.show(held_reason(&job.received, &held.what, &cause));
                held.cause = cause;
            }
            return keep(job, held);
        }
    };
    drop(held.shown);
    match settled {
        None => ack(job, |counters| &counters.dead_lettered).await,
        Some((Delayed::Scheduled, _)) => ack(job, |counters| &counters.rescheduled).await,
        Some((Delayed::Hold, delay)) => JobOutcome::Hold(job, far_deadline(delay)),
    }
}

/// Holds a job that must be handled again, for a time that doubles with each call. No attempt is counted.
pub(super) fn postpone(ctx: &SubscriptionContext, mut job: Job) -> JobOutcome {
    if ctx.scheduler.is_stopped() {
        return JobOutcome::Done;
    }
    let (first, max) = RETURN_BACKOFF;
    let pause = first.saturating_mul(1 << job.postponed.min(16)).min(max);
    job.postponed = job.postponed.saturating_add(1);
    job.settle.postpone();
    JobOutcome::Hold(job, far_deadline(pause))
}

/// Continues after a manual handler.
pub(super) fn after_manual(ctx: &SubscriptionContext, ended: Option<ManualOutcome>) -> JobOutcome {
    match ended {
        Some(ManualOutcome::Hold(job, delay)) => JobOutcome::Hold(job, far_deadline(delay)),
        Some(ManualOutcome::Returned(mut job)) => {
            job.received.note_return();
            postpone(ctx, job)
        }
        Some(ManualOutcome::Settled) | None => JobOutcome::Done,
    }
}

fn keep(mut job: Job, mut held: HeldSettlement) -> JobOutcome {
    let now = Instant::now();
    let mut until = now + held.backoff.next();
    if let Refused::Events(events) = &held.what
        && now < events.deadline
    {
        until = until.min(events.deadline);
    }
    // A revocation does not wait for held messages.
    job.settle.postpone();
    job.held = Some(Box::new(held));
    JobOutcome::Hold(job, until)
}

pub(super) async fn ack(mut job: Job, counter: fn(&Counters) -> &Counter) -> JobOutcome {
    let acked = job.settle.ack().await;
    after_ack(job, acked, counter)
}

/// The outcome of a job after its ack.
pub(super) fn after_ack(
    mut job: Job,
    acked: Result<(), SettleError>,
    counter: impl FnOnce(&Counters) -> &Counter,
) -> JobOutcome {
    match acked {
        Ok(()) => {
            job.count_acked(counter);
            JobOutcome::Acked(job)
        }
        Err(error) => {
            log_unacked(&job, &error);
            job.count_as(|counters| &counters.unacked);
            JobOutcome::Done
        }
    }
}

/// Pauses the subscription from the first unconfirmed settlement of a job until it is confirmed or
/// abandoned.
struct Confirmation<'r> {
    ctx: &'r SubscriptionContext,
    of: &'static str,
    backoff: Backoff,
    paused: Option<Paused<'r>>,
}

impl<'r> Confirmation<'r> {
    fn of(ctx: &'r SubscriptionContext, of: &'static str) -> Self {
        let backoff = Backoff::new(SETTLE_BACKOFF.0, SETTLE_BACKOFF.1);
        Self { ctx, of, backoff, paused: None }
    }

    /// Waits until the next try. `false` if the subscription stops meanwhile.
    async fn wait_after(&mut self, error: &SettleError) -> bool {
        let reason = format!("a {} is not confirmed: {}", self.of, error_chain(error));
        let monitor = &self.ctx.monitor;
        let is_first = monitor.repeats.is_first(Logged::Unconfirmed, self.of);
        log_first!(is_first, error, subscription = %monitor.name, reason, "paused");
        self.paused = Some(self.ctx.scheduler.pause(&reason));
        tokio::select! {
            () = self.backoff.wait() => true,
            () = self.ctx.scheduler.stop.cancelled() => false,
        }
    }
}
