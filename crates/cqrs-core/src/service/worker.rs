use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::attempt::{Handling, run_chain};
use super::backoff::Backoff;
use super::delivery::{Delivery, Ended, log_double};
use super::failure::{Failure, FailureClass, causes};
use super::job::Job;
use super::policy::{DecodeError, OnDecodeError, Undecodable};
use super::runner::{End, Runner};
use super::state::Counter;
use super::target::{EachHandler, Kind, ManualHandler};
use super::{RETURN_BACKOFF, Received, SETTLE_BACKOFF};
use crate::codec::{DeserializeError, DeserializeErrorKind};
use crate::consume::{
    DeadLetter, DeadLetterReason, DeadLetterTo, Delayed, Incoming, NextAttempt, SettleError,
};
use crate::dispatch::{caught, panic_message};
use crate::event::AnyEvent;
use crate::{CorrelationId, Scope, Timestamp};

/// What the handling of a message came to.
pub(super) enum Verdict {
    Handled,
    Skipped,
    Failed(Failure),
    /// To be buried without any retry: never an attempt of a handler.
    Undecodable(Undecodable),
    /// By policy, the subscription ends.
    Stop(Undecodable),
    /// Killed the process too often.
    Crashed,
}

/// Takes jobs until the subscription stops.
pub(super) async fn work(runner: Arc<Runner>) {
    while let Some(placed) = runner.take().await {
        let end = runner.process(placed.job).await;
        runner.finish(placed.lane, end);
        // A handler that never waits must not keep the other tasks of its thread from running.
        tokio::task::coop::consume_budget().await;
    }
}

impl Runner {
    /// Handles and settles one message.
    pub(super) async fn process(&self, mut job: Job) -> End {
        if !job.settle.begin() {
            self.watched.counters.revoked.one();
            return End::Done;
        }
        self.process_begun(job).await
    }

    /// The same for a message that has begun already.
    pub(super) async fn process_begun(&self, job: Job) -> End {
        match &self.spec.handler {
            Kind::Each(handler) => self.process_each(job, &**handler).await,
            Kind::Manual(handler) => self.process_manual(job, &**handler).await,
            Kind::Batch(handler, _) => {
                let alone = super::batch::Alone(&**handler);
                self.process_each(job, &alone).await
            }
        }
    }

    /// Tries it until it succeeds, has to wait for long, or has failed for good.
    async fn process_each(&self, mut job: Job, handler: &dyn EachHandler) -> End {
        loop {
            match self.attempt(job.received(&self.spec.group), handler).await {
                Verdict::Failed(failure) => match self.after_failure(job, failure).await {
                    Ok(again) => job = again,
                    Err(end) => return end,
                },
                verdict => return self.settle(job, verdict).await,
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
            let (delivery, ended) = Delivery::new(job, received);
            if let Err(panic) = caught(|| handler.handle(event, delivery)).await {
                self.watched.counters.failed_attempts.one();
                self.watched.counters.panics.one();
                tracing::error!(subscription = %self.watched.name, panic, "handler panicked");
            }
            // Settled or dropped by now, or in the hands of another task.
            return self.ended(ended.await.ok());
        }
    }

    /// What comes after a failed attempt: the job, to be tried again at once, or how it ended.
    pub(super) async fn after_failure(&self, mut job: Job, failure: Failure) -> Result<Job, End> {
        if failure.class == FailureClass::NotTried {
            return Err(self.drop_job(job));
        }
        self.note_failure(&mut job, &failure);
        let next = match failure.class {
            FailureClass::Permanent => NextAttempt::Never,
            _ => self.spec.retry.after(job.retry.attempts),
        };
        match next {
            NextAttempt::Immediately(delay) => {
                tokio::select! {
                    () = tokio::time::sleep(delay) => Ok(job),
                    () = self.stop.cancelled() => Err(self.drop_job(job)),
                }
            }
            NextAttempt::Later(delay) => Err(self.retry_later(job, delay).await),
            NextAttempt::Never => Err(self.settle(job, Verdict::Failed(failure)).await),
        }
    }

    fn note_failure(&self, job: &mut Job, failure: &Failure) {
        job.retry = job.retry.failed(Timestamp::now());
        let counters = &self.watched.counters;
        counters.failed_attempts.one();
        if failure.class == FailureClass::Panicked {
            counters.panics.one();
        }
        tracing::warn!(
            subscription = %self.watched.name,
            topic = %job.message.topic,
            partition = job.message.partition,
            offset = job.message.offset,
            id = job.message.id.as_deref(),
            attempt = job.retry.attempts,
            error = failure.error,
            "handling a message failed"
        );
    }

    async fn attempt(&self, received: Received, handler: &dyn EachHandler) -> Verdict {
        let event = match self.read(&received).await {
            Ok(event) => event,
            Err(verdict) => return verdict,
        };
        let scope = scope_of(&received);
        let run = async {
            match self.spec.middlewares.is_empty() {
                true => caught(|| handler.handle(event, received, scope)).await,
                false => {
                    let handling = Handling::new(handler, event, received);
                    run_chain(&self.spec.middlewares, handling, scope).await
                }
            }
        };
        let handled = match self.spec.limits.timeout {
            None => run.await,
            Some(limit) => match tokio::time::timeout(limit, run).await {
                Ok(handled) => handled,
                Err(_) => {
                    let text = format!("the handler took longer than {limit:?}");
                    Ok(Err(Failure::retryable("Timeout", text)))
                }
            },
        };
        match handled {
            Ok(Ok(())) => Verdict::Handled,
            Ok(Err(failure)) => Verdict::Failed(failure),
            Err(panic) => Verdict::Failed(Failure::panicked(&panic)),
        }
    }

    /// The event in a message, or what else becomes of it.
    pub(super) async fn read(&self, received: &Received) -> Result<Box<dyn AnyEvent>, Verdict> {
        if received.retry.crashes >= self.spec.limits.max_crashes {
            return Err(Verdict::Crashed);
        }
        let undecodable = match self.decode(&received.message).await {
            Ok(event) => return Ok(event),
            Err(verdict) => verdict,
        };
        let Verdict::Undecodable(case) = undecodable else { return Err(undecodable) };
        Err(match self.spec.policies.of(&case) {
            OnDecodeError::DeadLetter => Verdict::Undecodable(case),
            OnDecodeError::Stop => Verdict::Stop(case),
            OnDecodeError::Skip => {
                tracing::info!(
                    subscription = %self.watched.name,
                    topic = %received.topic,
                    offset = received.offset,
                    reason = %case,
                    "skipped a message"
                );
                Verdict::Skipped
            }
            OnDecodeError::Handle => match &self.spec.undecodable {
                None => Verdict::Undecodable(case), // `build` refuses that
                Some(function) => match caught(|| function(case, received.clone())).await {
                    Ok(Ok(())) => Verdict::Handled,
                    Ok(Err(error)) => Verdict::Failed(error.into()),
                    Err(panic) => Verdict::Failed(Failure::panicked(&panic)),
                },
            },
        })
    }

    async fn decode(&self, message: &Arc<Incoming>) -> Result<Box<dyn AnyEvent>, Verdict> {
        if self.spec.decoders.is_empty() {
            return self.decode_plain(message);
        }
        let mut decoded = Incoming::clone(message);
        for decoder in &self.spec.decoders {
            decoded = match caught(|| decoder(decoded)).await {
                Ok(Ok(Some(decoded))) => decoded,
                Ok(Ok(None)) => return Err(Verdict::Skipped),
                Ok(Err(DecodeError::Failed(error))) => return Err(Verdict::Failed(error.into())),
                Ok(Err(DecodeError::Malformed(text))) => return Err(malformed(message, &text)),
                Err(panic) => {
                    return Err(malformed(message, &format!("the decoder panicked: {panic}")));
                }
            };
        }
        self.decode_plain(&decoded)
    }

    fn decode_plain(&self, message: &Incoming) -> Result<Box<dyn AnyEvent>, Verdict> {
        let Some(body) = &message.body else {
            return Err(Verdict::Undecodable(Undecodable::Tombstone));
        };
        if body.is_empty() {
            return Err(Verdict::Undecodable(Undecodable::Empty));
        }
        let max = self.spec.limits.max_body_size;
        if body.len() > max {
            let text = format!("{} bytes, at most {max} are decoded", body.len());
            let kind = DeserializeErrorKind::TooLarge;
            let error = DeserializeError::new(kind, text, body.clone());
            return Err(Verdict::Undecodable(Undecodable::Malformed(error)));
        }
        // Deserializers are code of others.
        match catch_unwind(AssertUnwindSafe(|| self.spec.routes.read(message))) {
            Ok(read) => read.map_err(Verdict::Undecodable),
            Err(panic) => {
                let text = format!("the deserializer panicked: {}", panic_message(panic));
                Err(malformed(message, &text))
            }
        }
    }

    /// Settles a job that has no further attempt here.
    pub(super) async fn settle(&self, job: Job, verdict: Verdict) -> End {
        let counters = &self.watched.counters;
        let (reason, error_type, error) = match verdict {
            Verdict::Handled => return self.ack(job, &counters.handled).await,
            Verdict::Skipped => return self.ack(job, &counters.skipped).await,
            Verdict::Stop(case) => {
                let text = format!(
                    "a message of {:?} (offset {:?}) stopped it, as its policy says: {case}",
                    job.message.topic, job.message.offset
                );
                self.drop_job(job);
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
            Verdict::Failed(failure) => (failure.reason(), failure.error_type, failure.error),
        };
        let letter = job.letter(&self.spec.group, reason, &error_type, &error);
        self.bury(job, &letter).await
    }

    async fn bury(&self, mut job: Job, letter: &DeadLetter) -> End {
        let reason = letter.reason;
        tracing::error!(
            subscription = %self.watched.name,
            topic = letter.topic,
            partition = letter.partition,
            offset = letter.offset,
            id = job.message.id.as_deref(),
            attempts = letter.attempts,
            %reason,
            error = letter.error,
            "a message becomes a dead letter"
        );
        if self.spec.dead_letter == DeadLetterTo::Discard {
            return self.ack(job, &self.watched.counters.discarded).await;
        }
        let mut backoff = Backoff::new(SETTLE_BACKOFF.0, SETTLE_BACKOFF.1);
        loop {
            let Err(error) = job.settle.dead_letter(letter).await else { break };
            if !self.wait_after(&error, "dead letter", &mut backoff).await {
                return self.drop_job(job);
            }
        }
        self.ack(job, &self.watched.counters.dead_lettered).await
    }

    async fn retry_later(&self, mut job: Job, delay: Duration) -> End {
        let mut backoff = Backoff::new(SETTLE_BACKOFF.0, SETTLE_BACKOFF.1);
        let until = Instant::now() + delay;
        loop {
            match job.settle.retry_later(delay, &job.retry).await {
                Ok(Delayed::Hold) => return End::Hold(job, until),
                Ok(Delayed::Scheduled) => {
                    return self.ack(job, &self.watched.counters.rescheduled).await;
                }
                Err(error) => {
                    if !self.wait_after(&error, "retry copy", &mut backoff).await {
                        return self.drop_job(job);
                    }
                }
            }
        }
    }

    /// Holds the subscription back for a while. `false` when it stops meanwhile.
    async fn wait_after(&self, error: &SettleError, what: &str, backoff: &mut Backoff) -> bool {
        let reason = format!("a {what} is not confirmed: {}", causes(error));
        tracing::error!(subscription = %self.watched.name, reason, "paused");
        let _paused = self.pause(&reason);
        tokio::select! {
            () = backoff.wait() => true,
            () = self.stop.cancelled() => false,
        }
    }

    async fn ack(&self, mut job: Job, counter: &Counter) -> End {
        match job.settle.ack().await {
            Ok(()) => counter.one(),
            Err(error) => {
                self.watched.counters.unacked.one();
                log_double(&Err(error));
            }
        }
        End::Done
    }

    /// Gives it back.
    fn drop_job(&self, job: Job) -> End {
        self.watched.counters.given_back.one();
        drop(job);
        End::Done
    }

    /// After a handler that settles itself.
    fn ended(&self, ended: Option<Ended>) -> End {
        let counters = &self.watched.counters;
        match ended {
            Some(Ended::Acked) => counters.handled.one(),
            Some(Ended::DeadLettered) => counters.dead_lettered.one(),
            Some(Ended::Scheduled) => counters.rescheduled.one(),
            Some(Ended::Hold(job, delay)) => return End::Hold(job, Instant::now() + delay),
            Some(Ended::Returned(job)) if self.stop.is_cancelled() => return self.drop_job(job),
            Some(Ended::Returned(mut job)) => {
                let (first, max) = RETURN_BACKOFF;
                let pause = first.saturating_mul(1 << job.returned.min(16)).min(max);
                job.returned = job.returned.saturating_add(1);
                return End::Hold(job, Instant::now() + pause);
            }
            // It was leaked.
            None => counters.given_back.one(),
        }
        End::Done
    }
}

fn malformed(message: &Incoming, text: &str) -> Verdict {
    let error = DeserializeError::new(DeserializeErrorKind::Syntax, text, message.bytes());
    Verdict::Undecodable(Undecodable::Malformed(error))
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
