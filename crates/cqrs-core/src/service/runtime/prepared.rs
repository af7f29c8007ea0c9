//! Handles a message with handlers that its worker has prepared: no future is built for it, and nothing is allocated.
//! Used by the worker.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use super::context::SubscriptionContext;
use super::failure::AttemptFailure;
use super::guard::guarded;
use super::handler::{EachHandler, HandlerKind, after_send};
use super::job::Job;
use super::outcome::{JobOutcome, Verdict};
use super::process::{begin, conclude, not_before, process, revoked};
use super::read::{by_policy, decode_prepared};
use super::routes::Decoded;
use super::settle::after_ack;
use super::spec::Spec;
use crate::broker::BoxFuture;
use crate::consume::Received;
use crate::dispatch::{PreparedEvent, panic_message};
use crate::mediator::{EventMediator, EventSendError, SendEnd, SendLevel, SendRun};
use crate::scope::Scope;

/// The handlers of a subscription, prepared for one worker.
pub(super) struct Prepared {
    mediator: EventMediator,
    /// Those of each route.
    events: Vec<PreparedEvent>,
}

impl Prepared {
    /// `None` if the handlers are not those of one mediator, or if something runs around them.
    pub(super) fn of(spec: &Spec) -> Option<Self> {
        let HandlerKind::Each(EachHandler::Mediator(mediator)) = &spec.handler else { return None };
        let runs_alone = spec.middlewares.is_empty()
            && spec.decoders.is_empty()
            && spec.inbox.is_none()
            && spec.limits.timeout.is_none();
        if !runs_alone {
            return None;
        }
        let events = spec.routes.iter().map(|route| mediator.prepare(route.types()));
        Some(Self { events: events.collect::<Option<_>>()?, mediator: mediator.clone() })
    }

    /// As [`process`], with these handlers for the first attempt.
    pub(super) fn process<'a>(
        &'a mut self,
        ctx: &'a SubscriptionContext,
        job: Job,
    ) -> PreparedProcess<'a> {
        let (mediator, stage) = (&self.mediator, Stage::New(&mut self.events));
        PreparedProcess { ctx, mediator, stage, level: SendLevel::default(), job: Some(job) }
    }
}

/// The future of [`Prepared::process`]. Dropped, it drops a handler that runs, with its scope, and then the job.
pub(super) struct PreparedProcess<'a> {
    ctx: &'a SubscriptionContext,
    mediator: &'a EventMediator,
    stage: Stage<'a>,
    level: SendLevel,
    /// `None` once another future has it, and at the end.
    job: Option<Job>,
}

enum Stage<'a> {
    New(&'a mut [PreparedEvent]),
    Running(SendRun<'a>),
    Acking,
    /// Whatever is rare.
    Other(BoxFuture<'a, JobOutcome>),
}

/// The end of the first attempt if its message is not handled, or not yet.
enum Unhandled<'a> {
    Verdict(Verdict),
    NotSent(EventSendError),
    Sent(SendEnd<'a>),
}

impl<'a> Future for PreparedProcess<'a> {
    type Output = JobOutcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<JobOutcome> {
        let this = self.get_mut();
        let ctx = this.ctx;
        if let Stage::New(_) = this.stage
            && let Some(job) = &mut this.job
        {
            if job.held.is_some() || not_before(ctx, job).is_some() {
                this.go_on(|job| Box::pin(process(ctx, job)));
            } else if !begin(job) {
                return this.end(revoked);
            }
        }
        if let Stage::New(_) | Stage::Running(_) = this.stage {
            match ready!(this.attempt(cx)) {
                Ok(()) => this.stage = Stage::Acking,
                Err(unhandled) => {
                    let (mediator, level) = (this.mediator, std::mem::take(&mut this.level));
                    let rest = |job| after_handlers(ctx, mediator, job, *unhandled, level);
                    this.go_on(|job| Box::pin(rest(job)));
                }
            }
        }
        match (&mut this.stage, &mut this.job) {
            (Stage::Other(other), _) => other.as_mut().poll(cx),
            (Stage::Acking, Some(job)) => {
                let acked = ready!(job.settle.poll_ack(cx));
                this.end(|job| after_ack(job, acked, |counters| &counters.handled))
            }
            _ => Poll::Pending,
        }
    }
}

impl<'a> PreparedProcess<'a> {
    /// Continues with another future.
    #[cold]
    fn go_on(&mut self, other: impl FnOnce(Job) -> BoxFuture<'a, JobOutcome>) {
        if let Some(job) = self.job.take() {
            self.stage = Stage::Other(other(job));
        }
    }

    fn end(&mut self, end: impl FnOnce(Job) -> JobOutcome) -> Poll<JobOutcome> {
        self.job.take().map_or(Poll::Pending, |job| Poll::Ready(end(job)))
    }

    /// Decodes the message in the first call, and runs its handlers. A panic in user code is a failure.
    fn attempt(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Box<Unhandled<'a>>>> {
        let Self { ctx, mediator, stage, level, job } = self;
        let Some(job) = job else { return Poll::Pending };
        level.call(|| {
            let run = || run_handlers(ctx, mediator, stage, &job.received, cx);
            catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
                let failure = AttemptFailure::panicked(&panic_message(panic));
                Poll::Ready(Err(Box::new(Unhandled::Verdict(Verdict::Failed(failure)))))
            })
        })
    }
}

fn run_handlers<'a>(
    ctx: &SubscriptionContext,
    mediator: &'a EventMediator,
    stage: &mut Stage<'a>,
    received: &Received,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Box<Unhandled<'a>>>> {
    if let Stage::New(events) = stage {
        let started = start_handlers(ctx, mediator, received, std::mem::take(events));
        *stage = Stage::Running(started.map_err(Box::new)?);
    }
    let Stage::Running(run) = stage else { return Poll::Pending };
    Poll::Ready(match ready!(run.poll(cx)) {
        None => Ok(()),
        Some(end) => Err(Box::new(Unhandled::Sent(end))),
    })
}

fn start_handlers<'a>(
    ctx: &SubscriptionContext,
    mediator: &'a EventMediator,
    received: &Received,
    events: &'a mut [PreparedEvent],
) -> Result<SendRun<'a>, Unhandled<'a>> {
    let Decoded { route, event } =
        decode_prepared(ctx, received, events).map_err(Unhandled::Verdict)?;
    let scope = Scope::of_message(received.clone());
    mediator.start(scope, &mut events[route], event).map_err(Unhandled::NotSent)
}

/// Ends the first attempt, and continues as [`process`].
async fn after_handlers(
    ctx: &SubscriptionContext,
    mediator: &EventMediator,
    job: Job,
    unhandled: Unhandled<'_>,
    level: SendLevel,
) -> JobOutcome {
    let HandlerKind::Each(handler) = &ctx.spec.handler else { return JobOutcome::Done };
    let end = async {
        let sent = match unhandled {
            Unhandled::Verdict(Verdict::Undecodable(case)) => {
                return by_policy(ctx, case, &job.received).await;
            }
            Unhandled::Verdict(verdict) => return verdict,
            Unhandled::NotSent(error) => Err(error),
            Unhandled::Sent(end) => end.end(level).await,
        };
        Verdict::of(after_send(mediator, sent, &ctx.monitor).await)
    };
    let verdict = guarded(pin!(end)).await.unwrap_or_else(Verdict::Failed);
    conclude(ctx, job, handler, verdict).await
}
