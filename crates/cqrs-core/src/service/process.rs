//! Handles one message: decodes it, runs its handler, and decides what follows a failure.

use std::pin::pin;
use std::time::Duration;

use super::attempt::{Handling, run_chain};
use super::delivery::Delivery;
use super::failure::{Failure, FailureClass};
use super::guard::guarded;
use super::job::Job;
use super::outcome::{End, Ended, Verdict};
use super::received::Received;
use super::repeats::{Logged, log_first};
use super::runner::{Runner, Waited};
use super::settle::ack;
use super::target::{BatchOfOne, EachHandler, Kind, ManualHandler, send};
use crate::broker::far_deadline;
use crate::consume::NextAttempt;
use crate::dispatch::caught;
use crate::event::Timestamp;
use crate::mediator::watched;
use crate::message::CorrelationId;
use crate::scope::{Committing, Scope};

impl Runner {
    /// Handles and settles one message.
    pub(super) async fn process(&self, mut job: Job) -> End {
        let until = self.not_before(&job);
        job.delayed = true;
        if let Some(until) = until {
            return End::Hold(job, until);
        }
        if !job.settle.begin() {
            job.end(|counters| &counters.revoked);
            return End::Done;
        }
        if let Some(held) = job.held.take() {
            return Box::pin(self.settle_held(job, *held)).await;
        }
        // Boxed is what is seldom, or has its own price: this future is made and moved for each message.
        match &self.spec.handler {
            Kind::Each(handler) => self.process_each(job, &**handler).await,
            Kind::Manual(handler) => Box::pin(self.process_manual(job, &**handler)).await,
            Kind::Batch(handler, _) => {
                let alone = BatchOfOne(&**handler);
                Box::pin(self.process_each(job, &alone)).await
            }
        }
    }

    /// When the delay after the last failure of a job ends, if that was in another process or delivery.
    pub(super) fn not_before(&self, job: &Job) -> Option<tokio::time::Instant> {
        if job.delayed || job.retry.attempts == 0 {
            return None;
        }
        let remaining = self.spec.retry.remaining(&job.retry, Timestamp::now())?;
        Some(far_deadline(remaining))
    }

    /// Tries it until it succeeds, has to wait for long, or has failed for good.
    async fn process_each(&self, mut job: Job, handler: &dyn EachHandler) -> End {
        loop {
            match self.attempt(job.received(&self.spec.group), handler).await {
                Verdict::Handled => return ack(job, |counters| &counters.handled).await,
                Verdict::Failed(failure) => {
                    match Box::pin(self.after_failure(job, failure)).await {
                        Ok(again) => job = again,
                        Err(end) => return end,
                    }
                }
                verdict => return Box::pin(self.settle(job, verdict)).await,
            }
        }
    }

    async fn process_manual(&self, mut job: Job, handler: &dyn ManualHandler) -> End {
        loop {
            let received = job.received(&self.spec.group);
            let event = match self.read(&received).await {
                Ok(event) => event,
                Err(Verdict::Failed(failure)) => match self.after_failure(job, failure).await {
                    Ok(again) => {
                        job = again;
                        continue;
                    }
                    Err(end) => return end,
                },
                Err(verdict) => return self.settle(job, verdict).await,
            };
            let (delivery, ended) = Delivery::new(job, received, self.discards());
            let handled = pin!(caught(|| handler.handle(event, delivery)));
            let (handled, committed) = watched(handled).await;
            let panicked = handled.err();
            // Settled or dropped by now, or in the hands of another task.
            let ended = ended.await.ok();
            let Some(panic) = panicked else { return self.ended(ended) };
            match ended {
                // It went down with its handler: a failed attempt as any other.
                Some(Ended::Returned(returned)) => {
                    match self.after_failure(returned, Failure::of_panic(&panic, committed)).await {
                        Ok(again) => job = again,
                        Err(end) => return end,
                    }
                }
                ended => {
                    self.watched.counters.failed_attempts.one();
                    self.watched.counters.panics.one();
                    log_first!(
                        self.watched.repeats.is_first(Logged::FailedAttempt, "panic"),
                        error,
                        subscription = %self.watched.name,
                        panic,
                        "handler panicked"
                    );
                    return self.ended(ended);
                }
            }
        }
    }

    /// What comes after a failed attempt: the job, to be tried again at once, or how it ended.
    pub(super) async fn after_failure(&self, mut job: Job, failure: Failure) -> Result<Job, End> {
        if failure.class == FailureClass::NotTried {
            return Err(self.rest(job));
        }
        job.retry = job.retry.failed(Timestamp::now());
        job.settle.note_attempt(&job.retry);
        let next = match failure.class {
            FailureClass::Permanent => NextAttempt::Never,
            _ => self.spec.retry.after(job.retry.attempts),
        };
        self.log_failure(&job, &failure, next);
        match next {
            NextAttempt::Immediately(delay) => {
                match self.wait(far_deadline(delay), || job.settle.is_revoked()).await {
                    Waited::Over => Ok(job),
                    Waited::Revoked => {
                        job.end(|counters| &counters.revoked);
                        Err(End::Done)
                    }
                    Waited::Stopped => Err(End::Done),
                }
            }
            NextAttempt::Later(delay) => Err(self.retry_later(job, delay).await),
            NextAttempt::Never => Err(self.settle(job, Verdict::Failed(failure)).await),
        }
    }

    /// Counts and logs a failed attempt.
    fn log_failure(&self, job: &Job, failure: &Failure, next: NextAttempt) {
        let counters = &self.watched.counters;
        counters.failed_attempts.one();
        if failure.class == FailureClass::Panicked {
            counters.panics.one();
        }
        log_first!(
            self.watched.repeats.is_first(Logged::FailedAttempt, &failure.error_type),
            warn,
            subscription = %self.watched.name,
            topic = %job.message.topic,
            partition = job.message.partition,
            offset = job.message.offset,
            id = job.message.id.as_deref(),
            attempt = job.retry.attempts,
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

    /// Reads and handles it once. What began to commit is not cancelled by the timeout any more: it would
    /// run again, although it is done.
    async fn attempt(&self, received: Received, handler: &dyn EachHandler) -> Verdict {
        let scope = scope_of(&received);
        let attempted = match self.spec.limits.timeout {
            None => guarded(pin!(self.read_and_handle(received, scope, handler))).await,
            Some(limit) => {
                let attempt = Box::pin(self.within(limit, received, scope, handler));
                guarded(pin!(attempt)).await
            }
        };
        attempted.unwrap_or_else(Verdict::Failed)
    }

    /// As [`read_and_handle`](Self::read_and_handle), for no longer than `limit`.
    async fn within(
        &self,
        limit: Duration,
        received: Received,
        mut scope: Scope,
        handler: &dyn EachHandler,
    ) -> Verdict {
        let committing = Committing::default();
        scope.insert(committing.clone());
        let mut run = pin!(self.read_and_handle(received, scope, handler));
        match tokio::time::timeout(limit, &mut run).await {
            Ok(verdict) => verdict,
            Err(_) if committing.began() => run.await,
            Err(_) => Verdict::Failed(Failure::timeout(limit)),
        }
    }

    /// Not guarded.
    async fn read_and_handle(
        &self,
        received: Received,
        scope: Scope,
        handler: &dyn EachHandler,
    ) -> Verdict {
        let event = match self.read_by_policy(&received).await {
            Ok(event) => event,
            Err(verdict) => return verdict,
        };
        let handled = match handler.mediator() {
            _ if !self.spec.middlewares.is_empty() => {
                let handling = Handling::new(handler, event, received, &self.watched);
                let chained = Box::pin(run_chain(&self.spec.middlewares, handling, scope)).await;
                chained.unwrap_or_else(|panic| Err(Failure::panicked(&panic)))
            }
            // Not by `handle`, which boxes.
            Some(mediator) => send(mediator, event, scope.with(received), &self.watched).await,
            None => handler.handle(event, received, scope, &self.watched).await,
        };
        match handled {
            Ok(()) => Verdict::Handled,
            Err(failure) => Verdict::Failed(failure),
        }
    }
}

/// What the sender says of the message's origin, for the handlers and what they emit.
fn scope_of(received: &Received) -> Scope {
    let mut scope = Scope::new();
    let headers = &received.headers;
    if headers.is_empty() {
        return scope;
    }
    if let Some(id) = headers.correlation_id() {
        scope.insert(CorrelationId::new(id));
    }
    if let Some(Ok(trace)) = headers.trace_context() {
        scope.insert(trace);
    }
    scope
}
