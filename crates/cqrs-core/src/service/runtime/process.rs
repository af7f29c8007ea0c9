//! Handles one message: decodes it, runs its handler, and decides what follows a failure.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::context::{SubscriptionContext, WaitEnd};
use super::failure::{AttemptFailure, FailureClass};
use super::guard::guarded;
use super::handler::{EachHandler, Erased, HandlerKind};
use super::job::Job;
use super::middlewares::{Handling, run_chain};
use super::outcome::{JobOutcome, ManualOutcome, Verdict};
use super::read::{decode_at_once, read, read_further};
use super::repeats::{Logged, log_first};
use super::settle::{ack, after_manual, hold_events, postpone, retry_later, settle, settle_held};
use crate::consume::support::far_deadline;
use crate::consume::{NextAttempt, Received};
use crate::dispatch::caught;
use crate::event::{EventSlot, Timestamp};
use crate::mediator::track_commits;
use crate::scope::{Committing, Scope, SubscriptionInbox};
use crate::service::delivery::Delivery;

/// Handles and settles one message: until it is handled, must wait for long, or has failed permanently.
pub(super) async fn process(ctx: &SubscriptionContext, mut job: Job) -> JobOutcome {
    if let Some(until) = not_before(ctx, &job) {
        job.delayed = true;
        return JobOutcome::Hold(job, until);
    }
    if !begin(&mut job) {
        return revoked(job);
    }
    if let Some(held) = job.held.take() {
        return Box::pin(settle_held(ctx, job, *held)).await;
    }
    // Rare or expensive branches are boxed: this future is built and moved for each message.
    let handler = match &ctx.spec.handler {
        HandlerKind::Each(handler) | HandlerKind::Batch { alone: handler, .. } => handler,
        HandlerKind::Manual(_, handler) => {
            return Box::pin(process_manual(ctx, job, handler)).await;
        }
    };
    let verdict = attempt(ctx, &job, handler).await;
    conclude(ctx, job, handler, verdict).await
}

/// Begins a job. `false` if it is revoked.
pub(super) fn begin(job: &mut Job) -> bool {
    job.delayed = true;
    job.settle.begin()
}

pub(super) fn revoked(job: Job) -> JobOutcome {
    job.count_as(|counters| &counters.revoked);
    JobOutcome::Done
}

/// Decodes and handles a message once. A panic in user code is a failure.
async fn attempt(ctx: &SubscriptionContext, job: &Job, handler: &EachHandler) -> Verdict {
    let scope = scope_of(ctx, &job.received);
    let attempted = match ctx.spec.limits.timeout {
        None => guarded(pin!(read_and_handle(ctx, &job.received, scope, handler))).await,
        Some(limit) => {
            let attempt = attempt_within(ctx, limit, &job.received, scope, handler);
            guarded(Box::pin(attempt).as_mut()).await
        }
    };
    attempted.unwrap_or_else(Verdict::Failed)
}

/// Settles a job whose first attempt ended with `verdict`, after further attempts if the retry schedule has some.
pub(super) async fn conclude(
    ctx: &SubscriptionContext,
    mut job: Job,
    handler: &EachHandler,
    mut verdict: Verdict,
) -> JobOutcome {
    loop {
        match verdict {
            Verdict::Handled => return ack(job, |counters| &counters.handled).await,
            Verdict::Failed(failure) => match Box::pin(after_failure(ctx, job, failure)).await {
                Ok(retried) => job = retried,
                Err(end) => return end,
            },
            verdict => return Box::pin(settle(ctx, job, verdict)).await,
        }
        verdict = attempt(ctx, &job, handler).await;
    }
}

/// The end of the delay after a job's last failure, if that was in another process or delivery.
#[inline]
pub(super) fn not_before(ctx: &SubscriptionContext, job: &Job) -> Option<tokio::time::Instant> {
    if job.delayed || job.received.retry().attempts == 0 {
        return None;
    }
    let remaining = ctx.spec.retry.remaining(job.received.retry(), Timestamp::now())?;
    Some(far_deadline(remaining))
}

async fn process_manual(
    ctx: &SubscriptionContext,
    mut job: Job,
    handler: &Erased<(Box<dyn EventSlot>, Delivery), ()>,
) -> JobOutcome {
    loop {
        let event = match read(ctx, &job.received).await {
            Ok(event) => event,
            Err(Verdict::Failed(failure)) => match after_failure(ctx, job, failure).await {
                Ok(retried) => {
                    job = retried;
                    continue;
                }
                Err(end) => return end,
            },
            Err(verdict) => return settle(ctx, job, verdict).await,
        };
        let (delivery, ended) = Delivery::new(job, ctx.discards());
        let handled = pin!(caught(|| handler((event, delivery))));
        let (handled, committed) = track_commits(handled).await;
        let panicked = handled.err();
        // `Err` if another task has the delivery and drops it unsettled with the subscription.
        let ended = ended.await.ok();
        let Some(panic) = panicked else { return after_manual(ctx, ended) };
        match ended {
            // The delivery was dropped by the panic: a failed attempt.
            Some(ManualOutcome::Returned(returned)) => {
                match after_failure(ctx, returned, AttemptFailure::of_panic(&panic, committed))
                    .await
                {
                    Ok(retried) => job = retried,
                    Err(end) => return end,
                }
            }
            ended => {
                ctx.monitor.counters.failed_attempts.one();
                ctx.monitor.counters.panics.one();
                log_first!(
                    ctx.monitor.repeats.is_first(Logged::FailedAttempt, "panic"),
                    error,
                    subscription = %ctx.monitor.name,
                    panic,
                    "handler panicked"
                );
                return after_manual(ctx, ended);
            }
        }
    }
}

/// Continues after a failed attempt: `Ok` is the job to be tried again now, `Err` is its outcome.
pub(super) async fn after_failure(
    ctx: &SubscriptionContext,
    mut job: Job,
    mut failure: AttemptFailure,
) -> Result<Job, JobOutcome> {
    if let Some(events) = failure.take_held() {
        return Err(hold_events(ctx, job, events).await);
    }
    if failure.class == FailureClass::NotTried {
        return Err(postpone(ctx, job));
    }
    job.received.note_failure();
    job.settle.note_attempt(job.received.retry());
    let next = match failure.class {
        FailureClass::Permanent => NextAttempt::Never,
        _ => ctx.spec.retry.after(job.received.retry().attempts),
    };
    log_failure(ctx, &job, &failure, next);
    match next {
        NextAttempt::Immediately(delay) => {
            match ctx.wait(far_deadline(delay), || job.settle.is_revoked()).await {
                WaitEnd::Due => Ok(job),
                WaitEnd::Revoked => {
                    job.count_as(|counters| &counters.revoked);
                    Err(JobOutcome::Done)
                }
                WaitEnd::Stopped => Err(JobOutcome::Done),
            }
        }
        NextAttempt::Later(delay) => Err(retry_later(ctx, job, delay).await),
        NextAttempt::Never => Err(settle(ctx, job, Verdict::Failed(failure)).await),
    }
}

/// Counts and logs a failed attempt.
fn log_failure(ctx: &SubscriptionContext, job: &Job, failure: &AttemptFailure, next: NextAttempt) {
    let counters = &ctx.monitor.counters;
    counters.failed_attempts.one();
    if failure.class == FailureClass::Panicked {
        counters.panics.one();
    }
    log_first!(
        ctx.monitor.repeats.is_first(Logged::FailedAttempt, &failure.error_type),
        warn,
        subscription = %ctx.monitor.name,
        topic = %job.received.topic,
        partition = job.received.partition,
        offset = job.received.offset,
        id = job.received.id.as_deref(),
        attempt = %format!("{} of {}", job.received.retry().attempts, ctx.spec.retry.max_attempts()),
        next_attempt = %match next {
            NextAttempt::Immediately(delay) | NextAttempt::Later(delay) => {
                format!("in {delay:?}")
            }
            NextAttempt::Never => "none".to_owned(),
        },
        error = failure.error,
        "handling a message failed"
    );
}

/// As [`read_and_handle`], for no longer than `limit`. A handler that began to commit is not cancelled: its work would
/// be done twice.
async fn attempt_within(
    ctx: &SubscriptionContext,
    limit: Duration,
    received: &Received,
    mut scope: Scope,
    handler: &EachHandler,
) -> Verdict {
    let committing = Committing::default();
    scope.insert(committing.clone());
    let run = read_and_handle(ctx, received, scope, handler);
    let blocked = |time| log_blocked(ctx, received.name.as_deref(), limit, time);
    let mut run = pin!(watch_polls(run, limit, blocked));
    match tokio::time::timeout(limit, &mut run).await {
        Ok(verdict) => verdict,
        Err(_) if committing.began() => run.await,
        Err(_) => Verdict::Failed(AttemptFailure::timeout(limit)),
    }
}

/// Runs `run`, and calls `blocked` with the time of each poll that took longer than `limit`.
async fn watch_polls<T>(
    run: impl Future<Output = T>,
    limit: Duration,
    blocked: impl Fn(Duration),
) -> T {
    let mut run = pin!(run);
    poll_fn(|cx| {
        let started = Instant::now();
        let polled = run.as_mut().poll(cx);
        let time = started.elapsed();
        if time > limit {
            blocked(time);
        }
        polled
    })
    .await
}

fn log_blocked(ctx: &SubscriptionContext, event: Option<&str>, limit: Duration, time: Duration) {
    log_first!(
        ctx.monitor.repeats.is_first(Logged::Blocked, event.unwrap_or_default()),
        warn,
        subscription = %ctx.monitor.name,
        event,
        "a handler blocked its thread for {time:?}, beyond its timeout of {limit:?}, and could not be \
         cancelled: await, or use tokio::task::spawn_blocking"
    );
}

/// Decodes and handles a message once. A panic in user code is not caught here.
async fn read_and_handle(
    ctx: &SubscriptionContext,
    received: &Received,
    scope: Scope,
    handler: &EachHandler,
) -> Verdict {
    let event = match decode_at_once(ctx, received) {
        Ok(event) => event,
        Err(undecoded) => match Box::pin(read_further(ctx, received, undecoded)).await {
            Ok(event) => event,
            Err(verdict) => return verdict,
        },
    };
    let handled = if ctx.spec.middlewares.is_empty() {
        handler.handle(event, received, scope, &ctx.monitor).await
    } else {
        let handling = Handling::new(handler, event, received, &ctx.monitor);
        let chained = Box::pin(run_chain(&ctx.spec.middlewares, handling, scope)).await;
        chained.unwrap_or_else(|panic| Err(AttemptFailure::panicked(&panic)))
    };
    Verdict::of(handled)
}

/// A scope with the message, for its handlers and the events they emit, and with the inbox, for its mediator.
fn scope_of(ctx: &SubscriptionContext, received: &Received) -> Scope {
    let mut scope = Scope::of_message(received.clone());
    if let Some(inbox) = &ctx.spec.inbox {
        let (inbox, consumer) = (Arc::clone(inbox), Arc::clone(&ctx.spec.group));
        scope.insert(SubscriptionInbox { inbox, consumer });
    }
    scope
}
