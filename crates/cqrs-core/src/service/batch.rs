use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;

use super::failure::{Failure, FailureClass};
use super::guard::{guarded, limited};
use super::job::Job;
use super::lanes::Run;
use super::outcome::{End, Verdict};
use super::received::Received;
use super::repeats::{Logged, log_first};
use super::runner::{Runner, Waited};
use super::target::{BatchHandler, BatchLimits, Kind};
use crate::broker::far_deadline;
use crate::consume::NextAttempt;
use crate::event::AnyEvent;

type Events = Vec<(Box<dyn AnyEvent>, Received)>;

/// Collects and handles batches until the subscription stops.
pub(super) async fn work(runner: Arc<Runner>, limits: BatchLimits) {
    let Kind::Batch(handler, _) = &runner.spec.handler else { return };
    let (size, mut run) = (limits.size.max(1), Run::new());
    while runner.take(&mut run, size).await.is_some() {
        let until = far_deadline(limits.wait);
        while run.len() < size && runner.take_before(until, &mut run, size).await {}
        let jobs = run.drain(..).map(|placed| placed.job).collect();
        if !runner.stop.is_cancelled() {
            runner.process_batch(jobs, &**handler).await;
        }
        // They are in no lane.
        runner.finish(&mut Vec::new());
        // As in `worker::work`.
        tokio::task::coop::consume_budget().await;
    }
}

impl Runner {
    /// Handles the jobs together and settles each; those that do not succeed together, alone and in order.
    async fn process_batch(&self, jobs: Vec<Job>, handler: &dyn BatchHandler) {
        let (held, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.held.is_some());
        for job in held {
            let end = self.process(job).await;
            self.alone(end).await;
        }
        let mut waiting = VecDeque::from(jobs);
        let mut failed = 0;
        while !waiting.is_empty() && !self.stop.is_cancelled() {
            let (mut jobs, events) = self.read_together(&mut waiting).await;
            if jobs.len() > 1 {
                match self.run_batch(handler, events).await {
                    Ok(()) => {
                        for job in jobs.drain(..) {
                            self.settle(job, Verdict::Handled).await;
                        }
                    }
                    Err(failure) => {
                        failed += 1;
                        if self.wait_after_batch(&mut jobs, failed, &failure).await {
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
            // All before it are done: it is the turn of the first that could not be read.
            jobs.extend(waiting.pop_front());
            for job in jobs {
                if self.stop.is_cancelled() {
                    return;
                }
                // It may have been started with the batch, and revoked while those before it waited.
                if job.settle.is_revoked() {
                    job.end(|counters| &counters.revoked);
                    continue;
                }
                let end = self.process(job).await;
                self.alone(end).await;
            }
            failed = 0;
        }
    }

    /// Takes the first ones that can be handled together, and settles what becomes no event.
    async fn read_together(&self, waiting: &mut VecDeque<Job>) -> (Vec<Job>, Events) {
        let (mut jobs, mut events) = (Vec::new(), Vec::new());
        while let Some(mut job) = waiting.pop_front() {
            if self.not_before(&job).is_some() {
                waiting.push_front(job);
                break;
            }
            // It may have been started with a batch that failed, and revoked while that waited.
            if job.settle.is_revoked() || !job.settle.begin() {
                job.end(|counters| &counters.revoked);
                continue;
            }
            let received = job.received(&self.spec.group);
            match self.read_for_batch(&received).await {
                Some(Ok(event)) => {
                    events.push((event, received));
                    jobs.push(job);
                }
                Some(Err(verdict)) => self.alone(self.settle(job, verdict).await).await,
                None => {
                    waiting.push_front(job);
                    break;
                }
            }
        }
        (jobs, events)
    }

    /// After a batch failed as often as that: waits until it is to be tried again, and drops the jobs that
    /// are revoked meanwhile. `false` when each is to be handled alone, or the subscription stops.
    async fn wait_after_batch(&self, jobs: &mut Vec<Job>, failed: u32, failure: &Failure) -> bool {
        self.watched.counters.failed_attempts.one();
        if failure.class == FailureClass::Panicked {
            self.watched.counters.panics.one();
        }
        let next = match self.spec.retry.after(failed) {
            NextAttempt::Immediately(delay) if failure.class != FailureClass::Permanent => {
                Some(delay)
            }
            _ => None,
        };
        log_first!(
            self.watched.repeats.is_first(Logged::FailedBatch, &failure.error_type),
            warn,
            subscription = %self.watched.name,
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
            match self.wait(until, || jobs.iter().any(|job| job.settle.is_revoked())).await {
                Waited::Over => return true,
                Waited::Revoked => jobs
                    .extract_if(.., |job| job.settle.is_revoked())
                    .for_each(|job| job.end(|counters| &counters.revoked)),
                Waited::Stopped => return false,
            }
        }
        true
    }

    async fn run_batch(&self, handler: &dyn BatchHandler, events: Events) -> Result<(), Failure> {
        let run = async { handler.handle(events).await };
        limited(self.spec.limits.timeout, run).await.flatten()
    }

    /// Sees one job of a batch through to its end: what has to wait keeps the batches behind it waiting,
    /// which keeps the order.
    async fn alone(&self, mut end: End) {
        loop {
            let (job, until) = match end {
                End::Done => return,
                // It is done but for its copy: the batches behind it go on.
                End::Hold(job, until) if job.held.is_some() => {
                    self.hold(None, job, until);
                    return;
                }
                End::Hold(job, until) => (job, until),
                End::Fatal(error) => return self.fail(error),
            };
            match self.wait(until, || job.settle.is_revoked()).await {
                Waited::Over => {}
                Waited::Revoked => return job.end(|counters| &counters.revoked),
                Waited::Stopped => return, // given back
            }
            end = Box::pin(self.process(job)).await;
        }
    }
}
