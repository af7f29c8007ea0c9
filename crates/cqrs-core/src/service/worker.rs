//! A worker: takes jobs from the lanes and handles them one after the other.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::coop;

use super::job::Job;
use super::lanes::{LaneId, Placed, Run};
use super::outcome::End;
use super::runner::{FETCH, Runner, step_aside};

/// A handler that takes longer counts as one that has to wait: what is taken beyond it waits for it.
const SHORT: Duration = Duration::from_millis(1);

/// Takes jobs until the subscription stops.
pub(super) async fn work(runner: Arc<Runner>) {
    let (mut run, mut ended, mut most) = (Run::new(), Vec::new(), 1);
    while let Some(aside) = runner.take(&mut run, most).await {
        if aside {
            step_aside().await;
        }
        let (begun, jobs) = (Instant::now(), run.len());
        let waited = runner.process_run(&mut run, &mut ended).await;
        runner.finish(&mut ended);
        // While handlers wait, all that is taken beyond the first would be put back.
        let slow = begun.elapsed() > SHORT * u32::try_from(jobs).unwrap_or(u32::MAX);
        most = if waited || slow { 1 } else { (2 * most).min(FETCH) };
    }
}

impl Runner {
    /// Handles and settles the jobs of a run one after the other, until one has to wait: whether one had
    /// to. `ended` gets the lanes whose job has ended.
    async fn process_run(&self, run: &mut Run<Job>, ended: &mut Vec<LaneId>) -> bool {
        let mut waited = false;
        while let Some(Placed { lane, job }) = run.pop_front() {
            let mut process = pin!(self.process(job));
            let end = poll_fn(|cx| {
                let polled = process.as_mut().poll(cx);
                if polled.is_pending() && !std::mem::replace(&mut waited, true) {
                    // Whoever was woken may run: this task waits.
                    let _ = self.spread(lane, run, ended);
                }
                polled
            });
            let mut aside = false;
            match end.await {
                End::Done => {
                    let goes_on = run.front().is_some_and(|next| next.lane == lane);
                    ended.extend(lane.filter(|_| !goes_on));
                }
                // Its handler is done, and strict order is one lane for all: the others go on.
                End::Hold(job, until) if job.held.is_some() && self.is_strict() => {
                    let goes_on = run.front().is_some_and(|next| next.lane == lane);
                    ended.extend(lane.filter(|_| !goes_on));
                    aside |= self.hold(None, job, until);
                }
                End::Hold(job, until) => {
                    aside |= self.spread(lane, run, ended);
                    aside |= self.hold(lane, job, until);
                }
                End::Fatal(error) => self.fail(error),
            }
            if self.stop.is_cancelled() {
                run.clear();
            } else if self.watched.is_paused() || !coop::has_budget_remaining() {
                aside |= self.spread(None, run, ended);
            }
            if aside {
                step_aside().await;
            }
            // A handler that never waits must not keep the other tasks of its thread from running.
            coop::consume_budget().await;
        }
        waited
    }
}
