//! The task of one subscription: opens its source, starts its workers, and stops them.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::context::{REVOCATION_CHECK, SubscriptionContext};
use super::handler::HandlerKind;
use super::monitor::Monitor;
use super::repeats::REPORT_PERIOD;
use super::spec::Spec;
use super::{batch, worker};
use crate::consume::support::error_chain;
use crate::consume::support::far_deadline;
use crate::consume::{Subscribe, SubscribeRequest, TopicSet};
use crate::service::report::StopHandle;

/// The time a source may take to stop, and to close, beside the drain.
const CLOSING: Duration = Duration::from_secs(5);

/// The same after a second signal.
const CLOSING_NOW: Duration = Duration::from_millis(500);

/// One subscription before it runs.
pub(crate) struct PlannedSubscription {
    pub(crate) request: SubscribeRequest,
    pub(crate) spec: Spec,
    pub(crate) monitor: Arc<Monitor>,
}

/// The end of a subscription that was stopped or failed.
#[derive(Default)]
pub(crate) struct SubscriptionEnd {
    pub(crate) cancelled: usize,
    pub(crate) error: Option<String>,
}

/// Runs one subscription to its end. The second value is the error that ended it.
pub(crate) async fn run_subscription(
    broker: &dyn Subscribe,
    planned: PlannedSubscription,
    drain: Duration,
    stop: StopHandle,
) -> (SubscriptionEnd, Option<String>) {
    let PlannedSubscription { request, spec, monitor } = planned;
    log_start(&request, &spec);
    let _stopped = StoppedOnDrop(Arc::clone(&monitor));
    let opened = tokio::select! {
        opened = broker.subscribe(request) => opened,
        () = stop.graceful.cancelled() => return (SubscriptionEnd::default(), None),
    };
    let source = match opened {
        Ok(source) => source,
        Err(error) => return (SubscriptionEnd::default(), Some(error_chain(&error))),
    };
    let stopping = stop.graceful.child_token();
    let ctx = Arc::new(SubscriptionContext::new(spec, monitor, source, stopping));
    let mut task = SubscriptionTask { ctx, workers: JoinSet::new() };
    let error = task.consume().await.err();
    let ended = task.end(drain, &stop.now).await;
    (ended, error)
}

/// Logs what the subscription does.
fn log_start(request: &SubscribeRequest, spec: &Spec) {
    let events = spec
        .routes
        .iter()
        .map(|route| format!("{}: {}", route.name(), spec.handler.names(route.types())));
    let mut dead_letters: Vec<_> = match &request.topics {
        TopicSet::Named(topics) => {
            topics.iter().map(|topic| request.dead_letter_topic(topic)).collect()
        }
        TopicSet::Pattern(_) => vec![request.dead_letter_topic("{topic}")],
    };
    dead_letters.dedup();
    let dead_letters: Vec<_> = dead_letters
        .into_iter()
        .map(|name| name.unwrap_or_else(|| "discarded".to_owned()))
        .collect();
    tracing::info!(
        subscription = %request.name,
        topics = %request.topics,
        group = %request.group,
        events = events.collect::<Vec<_>>().join(", "),
        concurrency = spec.limits.concurrency,
        retries = %request.retry,
        dead_letters = dead_letters.join(", "),
        "subscription starts"
    );
}

/// Marks a subscription as stopped, also if its task is dropped. A failure is reported afterwards.
struct StoppedOnDrop(Arc<Monitor>);

impl Drop for StoppedOnDrop {
    fn drop(&mut self) {
        self.0.stopped();
    }
}

/// The task of a subscription; it owns the workers.
struct SubscriptionTask {
    ctx: Arc<SubscriptionContext>,
    workers: JoinSet<()>,
}

impl Drop for SubscriptionTask {
    /// A handler that blocks its thread keeps the context alive, but not the source.
    fn drop(&mut self) {
        self.ctx.scheduler.close();
    }
}

impl SubscriptionTask {
    /// Runs the workers until the subscription is stopped or fails.
    async fn consume(&mut self) -> Result<(), String> {
        let ctx = Arc::clone(&self.ctx);
        let mut polling = pin!(ctx.scheduler.poll_while_busy());
        let mut due = self.release();
        let mut reports = tokio::time::interval(REPORT_PERIOD);
        reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = ctx.scheduler.stop.cancelled() => break,
                Some(ended) = self.workers.join_next() => {
                    if let Err(panic) = ended {
                        return Err(format!("a worker failed: {panic}"));
                    }
                }
                () = ctx.scheduler.supervisor.notified() => due = self.release(),
                () = timer => due = self.release(),
                _ = reports.tick() => ctx.monitor.repeats.report(&ctx.monitor.name, false),
                never = &mut polling => match never {},
            }
        }
        match ctx.scheduler.fatal() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Releases held jobs and starts a missing worker. Returns the time of the next call.
    fn release(&mut self) -> Option<Instant> {
        let (needs_worker, next) = self.ctx.scheduler.release_due();
        if needs_worker {
            let ctx = Arc::clone(&self.ctx);
            match ctx.spec.handler {
                HandlerKind::Batch { limits, .. } => self.workers.spawn(batch::work(ctx, limits)),
                _ => self.workers.spawn(worker::work(ctx)),
            };
        }
        next.map(|next| next.min(Instant::now() + REVOCATION_CHECK))
    }

    /// Stops fetching, lets running handlers finish, gives the other jobs back, and leaves the broker.
    async fn end(mut self, drain: Duration, now: &CancellationToken) -> SubscriptionEnd {
        self.ctx.scheduler.stop.cancel();
        self.ctx.monitor.draining();
        let deadline = far_deadline(drain);
        let mut source = None;
        let stop = async {
            // A worker that polls the source returns it once `stop` is cancelled.
            source.insert(self.ctx.scheduler.take_source().await).stop().await;
        };
        let stopped = tokio::select! {
            () = stop => true,
            () = tokio::time::sleep(CLOSING) => false,
            () = async { now.cancelled().await; tokio::time::sleep(CLOSING_NOW).await } => false,
        };
        self.ctx.scheduler.give_back();
        let mut ended = SubscriptionEnd::default();
        loop {
            tokio::select! {
                biased;
                () = now.cancelled() => break,
                joined = self.workers.join_next() => match joined {
                    None => break,
                    Some(Ok(())) => {}
                    Some(Err(panic)) => ended.error = Some(format!("a worker failed: {panic}")),
                },
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        ended.cancelled = self.ctx.scheduler.busy();
        self.workers.abort_all();
        // A handler that blocks its thread cannot be cancelled: the wait for it is bounded.
        let gone = async { while self.workers.join_next().await.is_some() {} };
        let _blocked = tokio::time::timeout(Duration::from_secs(1), gone).await;
        // A worker may have returned jobs while it ended.
        self.ctx.scheduler.give_back();
        let closing = if now.is_cancelled() { CLOSING_NOW } else { CLOSING };
        // `close` promises to end within about this time.
        let close = async {
            let source = match source {
                Some(source) => source,
                None => self.ctx.scheduler.take_source().await,
            };
            source.close(closing).await
        };
        let closed = tokio::time::timeout(closing + CLOSING_NOW, close).await;
        let left = match closed {
            _ if !stopped => Some("the source did not stop in time".to_owned()),
            Err(_) => Some("the source did not close in time".to_owned()),
            Ok(closed) => closed.err().map(|error| error_chain(&error)),
        };
        ended.error = ended.error.or(left);
        self.ctx.monitor.repeats.report(&self.ctx.monitor.name, true);
        if let Some(error) = &ended.error {
            tracing::error!(subscription = %self.ctx.monitor.name, error, "did not end well");
        }
        ended
    }
}
