use std::sync::Arc;

use super::Received;
use super::failure::{Failure, FailureClass};
use super::job::Job;
use super::runner::{End, Runner};
use super::target::{BatchHandler, BatchLimits, EachHandler};
use super::worker::Verdict;
use crate::Scope;
use crate::broker::{BoxFuture, far_deadline};
use crate::consume::NextAttempt;
use crate::dispatch::caught;
use crate::event::AnyEvent;

/// A batch of one.
pub(super) struct Alone<'h>(pub(super) &'h dyn BatchHandler);

impl EachHandler for Alone<'_> {
    fn handles(&self, types: [std::any::TypeId; 2]) -> bool {
        self.0.handles(types)
    }

    fn handle(
        &self,
        event: Box<dyn AnyEvent>,
        received: Received,
        _scope: Scope,
    ) -> BoxFuture<'_, Result<(), Failure>> {
        self.0.handle(vec![(event, received)])
    }
}

/// Collects and handles batches until the subscription stops.
pub(super) async fn work(runner: Arc<Runner>, limits: BatchLimits) {
    let super::target::Kind::Batch(handler, _) = &runner.spec.handler else { return };
    while let Some(first) = runner.take().await {
        let until = far_deadline(limits.wait);
        let mut jobs = vec![first.job];
        while jobs.len() < limits.size.max(1)
            && let Some(placed) = runner.take_before(until).await
        {
            jobs.push(placed.job);
        }
        if runner.stop.is_cancelled() {
            runner.watched.counters.given_back.add(jobs.len());
            return;
        }
        runner.process_batch(jobs, &**handler).await;
    }
}

impl Runner {
    /// Handles the jobs together and settles each; those that do not succeed together, alone and in order.
    async fn process_batch(&self, jobs: Vec<Job>, handler: &dyn BatchHandler) {
        let mut ours = Vec::with_capacity(jobs.len());
        for mut job in jobs {
            match job.settle.begin() {
                true => ours.push(job),
                false => self.watched.counters.revoked.one(),
            }
        }
        let (mut failed, mut again) = (0, Vec::new());
        loop {
            let mut events = Vec::with_capacity(ours.len());
            let mut readable = Vec::with_capacity(ours.len());
            for job in ours {
                let received = job.received(&self.spec.group);
                match self.read(&received).await {
                    Ok(event) => {
                        events.push((event, received));
                        readable.push(job);
                    }
                    Err(Verdict::Failed(failure)) => match self.after_failure(job, failure).await {
                        Ok(job) => again.push(job),
                        Err(end) => self.alone(end).await,
                    },
                    Err(verdict) => self.alone(self.settle(job, verdict).await).await,
                }
            }
            ours = readable;
            if ours.len() <= 1 {
                break; // to be handled alone, if there is one
            }
            let failure = match self.run_batch(handler, events).await {
                Ok(()) => {
                    for job in std::mem::take(&mut ours) {
                        self.settle(job, Verdict::Handled).await;
                    }
                    break;
                }
                Err(failure) => failure,
            };
            failed += 1;
            tracing::warn!(
                subscription = %self.watched.name,
                size = ours.len(),
                attempt = failed,
                error = failure.error,
                "handling a batch failed"
            );
            if failure.class == FailureClass::NotTried {
                self.watched.counters.given_back.add(ours.len());
                return;
            }
            self.watched.counters.failed_attempts.one();
            if failure.class == FailureClass::Panicked {
                self.watched.counters.panics.one();
            }
            match self.spec.retry.after(failed) {
                NextAttempt::Immediately(delay) if failure.class != FailureClass::Permanent => {
                    tokio::select! {
                        () = tokio::time::sleep(delay) => {}
                        () = self.stop.cancelled() => {
                            self.watched.counters.given_back.add(ours.len());
                            return;
                        }
                    }
                }
                _ => break,
            }
        }
        for job in ours.into_iter().chain(again) {
            if self.stop.is_cancelled() {
                self.watched.counters.given_back.one();
                continue;
            }
            let end = self.process_begun(job).await;
            self.alone(end).await;
        }
    }

    async fn run_batch(
        &self,
        handler: &dyn BatchHandler,
        events: Vec<(Box<dyn AnyEvent>, Received)>,
    ) -> Result<(), Failure> {
        let run = caught(|| handler.handle(events));
        let handled = match self.spec.limits.timeout {
            None => run.await,
            Some(limit) => match tokio::time::timeout(limit, run).await {
                Ok(handled) => handled,
                Err(_) => {
                    let text = format!("the handler took longer than {limit:?}");
                    return Err(Failure::retryable("Timeout", text));
                }
            },
        };
        handled.unwrap_or_else(|panic| Err(Failure::panicked(&panic)))
    }

    /// Sees one job of a batch through to its end: what has to wait keeps the batches behind it waiting,
    /// which keeps the order.
    async fn alone(&self, mut end: End) {
        loop {
            let (job, until) = match end {
                End::Done => return,
                End::Hold(job, until) => (job, until),
                fatal @ End::Fatal(_) => return self.finish(None, fatal),
            };
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = self.stop.cancelled() => {
                    self.watched.counters.given_back.one();
                    return;
                }
            }
            end = Box::pin(self.process(job)).await;
        }
    }
}
