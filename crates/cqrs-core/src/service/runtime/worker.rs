//! The worker of a subscription: takes jobs from the scheduler and handles them one after the other.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::context::SubscriptionContext;
use super::fetch::FETCH;
use super::job::Job;
use super::lanes::{LaneId, Placed, Run};
use super::outcome::JobOutcome;
use super::prepared::Prepared;
use super::process::process;
use super::scheduler::yield_lifo_slot;
use crate::consume::Spare;

/// A handler that takes longer counts as one that waits: jobs taken beyond its own would wait for it.
const SHORT: Duration = Duration::from_millis(1);

/// The jobs after which a worker lets the other tasks of its thread run: tokio's budget of a task, but counted without
/// access to the thread's state.
const TURN: u32 = 128;

/// Takes and handles jobs until the subscription stops.
pub(super) async fn work(ctx: Arc<SubscriptionContext>) {
    let (mut run, mut ended, mut max) = (Run::new(), Vec::new(), 1);
    let (mut spare, mut prepared) = (Spare::default(), Prepared::of(&ctx.spec));
    let mut in_turn = 0;
    while let Some(yields) = ctx.scheduler.take(&mut run, max).await {
        if yields {
            yield_lifo_slot().await;
        }
        let (start, jobs) = (Instant::now(), run.len());
        let process =
            process_run(&ctx, &mut run, &mut ended, &mut spare, &mut prepared, &mut in_turn);
        let waited = process.await;
        ctx.scheduler.finish(&mut ended, &mut spare);
        // While handlers wait, all jobs taken beyond the first would be returned.
        let slow = start.elapsed() > SHORT * u32::try_from(jobs).unwrap_or(u32::MAX);
        max = if waited || slow { 1 } else { (2 * max).min(FETCH) };
    }
}

/// Handles and settles the jobs of a run one after the other, until one has to wait; returns `true` if one
/// had to. Adds the lanes whose job has ended to `ended`, and the parts of acked ones to `spare`.
async fn process_run(
    ctx: &SubscriptionContext,
    run: &mut Run<Job>,
    ended: &mut Vec<LaneId>,
    spare: &mut Spare,
    prepared: &mut Option<Prepared<'_>>,
    in_turn: &mut u32,
) -> bool {
    let scheduler = &ctx.scheduler;
    let mut waited = false;
    while let Some(Placed { lane, job }) = run.pop_front() {
        let waits = || {
            if !std::mem::replace(&mut waited, true) {
                // This task waits, so a woken task can run.
                let _ = scheduler.return_jobs(lane, run, ended);
            }
        };
        let mut acked = None;
        let outcome = match prepared {
            Some(prepared) => {
                acked = Some(job);
                let outcome = noticing(pin!(prepared.process(ctx, &mut acked)), waits).await;
                outcome.map_or(JobOutcome::Done, |outcome| *outcome)
            }
            None => noticing(pin!(process(ctx, job)), waits).await,
        };
        let mut yields = false;
        match outcome {
            JobOutcome::Done => end_lane(lane, run, ended),
            JobOutcome::Acked(job) => {
                acked = Some(job);
                end_lane(lane, run, ended);
            }
            // The handler is done, and strict order is one lane for all: the others go on.
            JobOutcome::Hold(job, until) if job.held.is_some() && scheduler.is_strict() => {
                end_lane(lane, run, ended);
                yields |= scheduler.hold(None, job, until);
            }
            JobOutcome::Hold(job, until) => {
                yields |= scheduler.return_jobs(lane, run, ended);
                yields |= scheduler.hold(lane, job, until);
            }
            JobOutcome::Fatal(error) => scheduler.fail(error),
        }
        if let Some(acked) = acked {
            acked.recycle(spare);
        }
        *in_turn += 1;
        let turn_ends = *in_turn >= TURN;
        // Before a yield, other workers get the jobs, if there are others.
        if ctx.monitor.is_paused() || turn_ends && !scheduler.is_strict() {
            yields |= scheduler.return_jobs(None, run, ended);
        }
        if yields {
            yield_lifo_slot().await;
        }
        if turn_ends {
            *in_turn = 0;
            tokio::task::yield_now().await;
        }
        if scheduler.is_stopped() {
            run.clear();
        }
    }
    waited
}

/// Runs `future`, and calls `waits` each time that it has to wait.
async fn noticing<T>(mut future: Pin<&mut impl Future<Output = T>>, mut waits: impl FnMut()) -> T {
    poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() {
            waits();
        }
        polled
    })
    .await
}

/// Adds `lane` to `ended`, unless the next job of the run is of the same lane.
fn end_lane(lane: Option<LaneId>, run: &Run<Job>, ended: &mut Vec<LaneId>) {
    let continues = run.front().is_some_and(|next| next.lane == lane);
    ended.extend(lane.filter(|_| !continues));
}
