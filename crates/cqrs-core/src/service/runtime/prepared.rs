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
use super::read::{by_policy, decode_prepared, undecoded};
use super::routes::Decoded;
use super::settle::after_ack;
use super::spec::{Limits, Spec};
use crate::broker::BoxFuture;
use crate::consume::Received;
use crate::dispatch::{PreparedEvent, boxed, panic_message};
use crate::mediator::{EventMediator, EventSendError, SendEnd, SendLevel, SendRun};
use crate::scope::Scope;

/// The handlers of a subscription, prepared for one worker.
pub(super) struct Prepared<'c> {
    handler: &'c EachHandler,
    mediator: &'c EventMediator,
    /// Those of each route.
    events: Vec<PreparedEvent>,
}

impl<'c> Prepared<'c> {
    /// `None` if the handlers are not those of one mediator, or if something runs around them.
    pub(super) fn of(spec: &'c Spec) -> Option<Self> {
        // All fields, so that a new one is not forgotten here.
        let Spec {
            handler: HandlerKind::Each(handler @ EachHandler::Mediator(mediator)),
            routes,
            middlewares,
            decoders,
            inbox: None,
            limits: Limits { timeout: None, concurrency: _, max_body_size: _, max_crashes: _ },
            group: _,
            policies: _,
            undecodable: _,
            retry: _,
            dead_letter: _,
            most_held: _,
        } = spec
        else {
            return None;
        };
        if !middlewares.is_empty() || !decoders.is_empty() {
            return None;
        }
        let events = routes.iter().map(|route| mediator.prepare(route.types()));
        Some(Self { handler, mediator, events: events.collect::<Option<_>>()? })
    }

    /// As [`process`], with these handlers for the first attempt. An acked job stays in its place: `None`.
    pub(super) fn process<'a>(
        &'a mut self,
        ctx: &'a SubscriptionContext,
        job: &'a mut Option<Job>,
    ) -> PreparedProcess<'a> {
        PreparedProcess {
            ctx,
            handler: self.handler,
            mediator: self.mediator,
            progress: Progress::New(&mut self.events),
            level: SendLevel::default(),
            job,
        }
    }
}

/// The future of [`Prepared::process`]. Dropped, it drops a handler that runs, with its scope; the job is dropped after
/// it.
pub(super) struct PreparedProcess<'a> {
    ctx: &'a SubscriptionContext,
    handler: &'a EachHandler,
    mediator: &'a EventMediator,
    progress: Progress<'a>,
    level: SendLevel,
    /// `None` once another future has it, and at an end other than its ack.
    job: &'a mut Option<Job>,
}

enum Progress<'a> {
    New(&'a mut [PreparedEvent]),
    Running(SendRun<'a>),
    /// The handlers have run, but the attempt has not ended.
    Ending(BoxFuture<'a, Verdict>),
    Acking,
    Other(BoxFuture<'a, JobOutcome>),
}

/// The end of the handlers if the message is not handled, or not yet.
enum Unhandled<'a> {
    Verdict(Verdict),
    NotSent(EventSendError),
    Sent(SendEnd<'a>),
}

impl Unhandled<'_> {
    #[cold]
    fn boxed(self) -> Box<Self> {
        Box::new(self)
    }
}

impl<'a> Future for PreparedProcess<'a> {
    type Output = Option<Box<JobOutcome>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Box<JobOutcome>>> {
        let this = self.get_mut();
        let (ctx, handler) = (this.ctx, this.handler);
        if let Progress::New(_) = this.progress
            && let Some(job) = this.job
        {
            if job.held.is_some() || not_before(ctx, job).is_some() {
                this.go_on(|job| boxed(|| process(ctx, job)));
            } else if !begin(job) {
                return this.end(revoked);
            }
        }
        if let Progress::New(_) | Progress::Running(_) = this.progress {
            match ready!(this.run(cx)) {
                Ok(()) => return this.poll_ack(cx),
                Err(unhandled) => this.end_attempt(unhandled),
            }
        }
        if let Progress::Ending(end) = &mut this.progress {
            match ready!(end.as_mut().poll(cx)) {
                Verdict::Handled => this.progress = Progress::Acking,
                verdict => this.go_on(|job| boxed(|| conclude(ctx, job, handler, verdict))),
            }
        }
        match &mut this.progress {
            Progress::Other(other) => other.as_mut().poll(cx).map(|end| Some(Box::new(end))),
            Progress::Acking => this.poll_ack(cx),
            _ => unreachable!("polled after its end"),
        }
    }
}

impl<'a> PreparedProcess<'a> {
    /// Continues with another future.
    #[inline(never)]
    fn go_on(&mut self, other: impl FnOnce(Job) -> BoxFuture<'a, JobOutcome>) {
        if let Some(job) = self.job.take() {
            self.progress = Progress::Other(other(job));
        }
    }

    /// Acks a handled message. Most acks do not wait, so only one that does sets the progress.
    #[inline]
    fn poll_ack(&mut self, cx: &mut Context<'_>) -> Poll<Option<Box<JobOutcome>>> {
        let Some(job) = self.job else { unreachable!("polled after its end") };
        match job.settle.poll_ack(cx) {
            Poll::Ready(Ok(())) => {
                job.count_acked(|counters| &counters.handled);
                Poll::Ready(None)
            }
            Poll::Ready(refused) => {
                self.end(|job| after_ack(job, refused, |counters| &counters.handled))
            }
            Poll::Pending => {
                self.progress = Progress::Acking;
                Poll::Pending
            }
        }
    }

    #[inline(never)]
    fn end(&mut self, end: impl FnOnce(Job) -> JobOutcome) -> Poll<Option<Box<JobOutcome>>> {
        let Some(job) = self.job.take() else { unreachable!("polled after its end") };
        Poll::Ready(Some(Box::new(end(job))))
    }

    /// Decodes the message in the first call, and runs its handlers: `Ok` once they have handled it. A panic in user
    /// code is a failure.
    fn run(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Box<Unhandled<'a>>>> {
        let Self { ctx, mediator, progress, level, job, .. } = self;
        let Some(job) = &**job else { unreachable!("polled after its end") };
        level.call(|| {
            let run = || run_handlers(ctx, mediator, progress, &job.received, cx);
            // Made here, at the level of the send: it looks whether a nested send has committed.
            catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
                let verdict = match progress {
                    Progress::New([_, ..]) => undecoded(job.received.message(), panic),
                    _ => Verdict::Failed(AttemptFailure::panicked(&panic_message(panic))),
                };
                Poll::Ready(Err(Box::new(Unhandled::Verdict(verdict))))
            })
        })
    }

    /// Begins the end of the attempt: commits or rolls back, or applies a policy. Apart from `poll`, which is smaller so.
    #[inline(never)]
    fn end_attempt(&mut self, unhandled: Box<Unhandled<'a>>) {
        let (ctx, mediator, level) = (self.ctx, self.mediator, std::mem::take(&mut self.level));
        let Some(job) = &*self.job else { unreachable!("polled after its end") };
        let received = job.received.clone();
        self.progress = Progress::Ending(boxed(|| async move {
            let end = end_attempt(ctx, &received, mediator, unhandled, level);
            guarded(pin!(end)).await.unwrap_or_else(Verdict::Failed)
        }));
    }
}

fn run_handlers<'a>(
    ctx: &SubscriptionContext,
    mediator: &'a EventMediator,
    progress: &mut Progress<'a>,
    received: &Received,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Box<Unhandled<'a>>>> {
    if let Progress::New(events) = progress {
        *progress = Progress::Running(start_handlers(ctx, mediator, received, events)?);
    }
    let Progress::Running(run) = progress else { unreachable!("its handlers have run") };
    Poll::Ready(match ready!(run.poll(cx)) {
        None => Ok(()),
        Some(end) => Err(Box::new(Unhandled::Sent(end))),
    })
}

/// Leaves no `events` once the message is decoded.
#[inline]
fn start_handlers<'a>(
    ctx: &SubscriptionContext,
    mediator: &'a EventMediator,
    received: &Received,
    events: &mut &'a mut [PreparedEvent],
) -> Result<SendRun<'a>, Box<Unhandled<'a>>> {
    let decoded = decode_prepared(ctx, received, events);
    let Decoded { route, event } =
        decoded.map_err(|verdict| Unhandled::Verdict(verdict).boxed())?;
    let scope = Scope::of_message(received.clone());
    let started = mediator.start(scope, &mut std::mem::take(events)[route], event);
    started.map_err(|error| Unhandled::NotSent(error).boxed())
}

async fn end_attempt(
    ctx: &SubscriptionContext,
    received: &Received,
    mediator: &EventMediator,
    unhandled: Box<Unhandled<'_>>,
    level: SendLevel,
) -> Verdict {
    let sent = match *unhandled {
        Unhandled::Verdict(Verdict::Undecodable(case)) => {
            return by_policy(ctx, case, received).await;
        }
        Unhandled::Verdict(verdict) => return verdict,
        Unhandled::NotSent(error) => Err(error),
        Unhandled::Sent(end) => end.end(level).await,
    };
    Verdict::of(after_send(mediator, sent, &ctx.monitor).await)
}
