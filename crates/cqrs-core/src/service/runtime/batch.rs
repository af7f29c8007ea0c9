//! The worker of a batch subscription: collects jobs, handles them together, and settles each.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;

use super::context::{SubscriptionContext, WaitEnd};
use super::failure::{AttemptFailure, FailureClass};
use super::guard::{guarded, limited};
use super::handler::{Attempted, BatchLimits, Erased, Events, HandlerKind};
use super::job::Job;
use super::lanes::Run;
use super::outcome::{JobOutcome, Verdict};
use super::process::{not_before, process};
use super::read::read_for_batch;
use super::repeats::{Logged, log_first};
use super::settle::settle;
use crate::consume::support::far_deadline;
use crate::consume::{NextAttempt, Spare};

/// Collects and handles batches until the subscription stops.
pub(super) async fn work(ctx: Arc<SubscriptionContext>, limits: BatchLimits) {
    let HandlerKind::Batch { together, .. } = &ctx.spec.handler else { return };
    let (size, mut run) = (limits.size.max(1), Run::new());
    while ctx.scheduler.take(&mut run, size).await.is_some() {
        let until = far_deadline(limits.wait);
        while run.len() < size && ctx.scheduler.take_before(until, &mut run, size).await {}
        let jobs = run.drain(..).map(|placed| placed.job).collect();
        if !ctx.scheduler.is_stopped() {
            process_batch(&ctx, jobs, together).await;
        }
        // The jobs of a batch are in no lane.
        ctx.scheduler.finish(&mut Vec::new(), &mut Spare::default());
        // As in `worker::work`.
        tokio::task::coop::consume_budget().await;
    }
}

/// Handles the jobs together and settles each. Jobs that fail together are handled alone, in order.
async fn process_batch(
    ctx: &SubscriptionContext,
    jobs: Vec<Job>,
    handler: &Erased<Events, Attempted>,
) {
    let (held, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.held.is_some());
    for job in held {
        let end = process(ctx, job).await;
        finish_alone(ctx, end).await;
    }
    let mut waiting = VecDeque::from(jobs);
    let mut failed = 0;
    while !waiting.is_empty() && !ctx.scheduler.is_stopped() {
        let (mut jobs, events) = read_together(ctx, &mut waiting).await;
        if jobs.len() > 1 {
            match run_batch(ctx, handler, events).await {
                Ok(()) => {
                    for job in jobs.drain(..) {
                        settle(ctx, job, Verdict::Handled).await;
                    }
                }
                Err(failure) => {
                    failed += 1;
                    if wait_after_batch(ctx, &mut jobs, failed, &failure).await {
                        if jobs.is_empty() {
                            failed = 0;
                        }
                        jobs.extend(waiting);
                        waiting = jobs.into();
                        continue;
                    }
                }
            }
        } else {
            let _dropped = guarded(pin!(async { drop(events) })).await;
        }
        // All jobs before it are done, so the first one that could not be read is next.
        jobs.extend(waiting.pop_front());
        for job in jobs {
            if ctx.scheduler.is_stopped() {
                return;
            }
            // It may have been revoked while the jobs before it waited.
            if job.settle.is_revoked() {
                job.count_as(|counters| &counters.revoked);
                continue;
            }
            let end = process(ctx, job).await;
            finish_alone(ctx, end).await;
        }
        failed = 0;
    }
}

/// Takes the first jobs that can be handled together, and settles those that cannot be decoded.
async fn read_together(
    ctx: &SubscriptionContext,
    waiting: &mut VecDeque<Job>,
) -> (Vec<Job>, Events) {
    let (mut jobs, mut events) = (Vec::new(), Vec::new());
    while let Some(mut job) = waiting.pop_front() {
        if not_before(ctx, &job).is_some() {
            waiting.push_front(job);
            break;
        }
        // It may have been revoked while a failed batch waited for its next attempt.
        if job.settle.is_revoked() || !job.settle.begin() {
            job.count_as(|counters| &counters.revoked);
            continue;
        }
        let received = job.received.clone();
        match read_for_batch(ctx, &received).await {
            Some(Ok(event)) => {
                events.push((event, received));
                jobs.push(job);
            }
            Some(Err(verdict)) => finish_alone(ctx, settle(ctx, job, verdict).await).await,
            None => {
                waiting.push_front(job);
                break;
            }
        }
    }
    (jobs, events)
}

/// Waits for the next attempt of a batch after `failed` failures, and drops the jobs that are revoked
/// meanwhile. `false` if each job must be handled alone, or the subscription stops.
async fn wait_after_batch(
    ctx: &SubscriptionContext,
    jobs: &mut Vec<Job>,
    failed: u32,
    failure: &AttemptFailure,
) -> bool {
    ctx.monitor.counters.failed_attempts.one();
    if failure.class == FailureClass::Panicked {
        ctx.monitor.counters.panics.one();
    }
    let next = match ctx.spec.retry.after(failed) {
        NextAttempt::Immediately(delay) if failure.class != FailureClass::Permanent => Some(delay),
        _ => None,
    };
    log_first!(
        ctx.monitor.repeats.is_first(Logged::FailedBatch, &failure.error_type),
        warn,
        subscription = %ctx.monitor.name,
        size = jobs.len(),
        attempt = failed,
        next_attempt = %match next {
            Some(delay) => format!("in {delay:?}"),
            None => "each alone".to_owned(),
        },
        error = failure.error,
        "handling a batch failed"
    );
    let Some(delay) = next else { return false };
    let until = far_deadline(delay);
    while !jobs.is_empty() {
        match ctx.wait(until, || jobs.iter().any(|job| job.settle.is_revoked())).await {
            WaitEnd::Due => return true,
            WaitEnd::Revoked => jobs
                .extract_if(.., |job| job.settle.is_revoked())
                .for_each(|job| job.count_as(|counters| &counters.revoked)),
            WaitEnd::Stopped => return false,
        }
    }
    true
}

async fn run_batch(
    ctx: &SubscriptionContext,
    handler: &Erased<Events, Attempted>,
    events: Events,
) -> Result<(), AttemptFailure> {
    let run = async { handler(events).await };
    limited(ctx.spec.limits.timeout, run).await.flatten()
}

/// Handles one job of a batch to its end. Later batches wait for it, which keeps the order.
async fn finish_alone(ctx: &SubscriptionContext, mut end: JobOutcome) {
    loop {
        let (job, until) = match end {
            JobOutcome::Done | JobOutcome::Acked(_) => return,
            // Only its copy is missing: later batches go on.
            JobOutcome::Hold(job, until) if job.held.is_some() => {
                ctx.scheduler.hold(None, job, until);
                return;
            }
            JobOutcome::Hold(job, until) => (job, until),
            JobOutcome::Fatal(error) => return ctx.scheduler.fail(error),
        };
        match ctx.wait(until, || job.settle.is_revoked()).await {
            WaitEnd::Due => {}
            WaitEnd::Revoked => return job.count_as(|counters| &counters.revoked),
            WaitEnd::Stopped => return, // given back
        }
        end = Box::pin(process(ctx, job)).await;
    }
}
