use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::build::{Planned, Service};
use super::error::ServiceError;
use super::repeats::REPORT_PERIOD;
use super::report::{ServiceReport, StopHandle, SubscriptionReport};
use super::runner::{HELD_CHECK, Runner};
use super::signal::shutdown_signal;
use super::state::Watched;
use super::target::Kind;
use super::{batch, worker};
use crate::broker::far_deadline;
use crate::causes::causes;
use crate::consume::Subscribe;
use crate::dispatch::panic_message;

/// How long a source may take to stop and close, beside the drain.
const CLOSING: Duration = Duration::from_secs(5);

/// The same after a second signal.
const CLOSING_NOW: Duration = Duration::from_millis(500);

impl Service {
    /// Consumes until the process gets SIGTERM or Ctrl-C, then stops gracefully; a second signal stops
    /// at once.
    ///
    /// # Errors
    /// When a subscription cannot go on; the others are stopped gracefully then.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the handlers and gives everything unsettled back.
    pub async fn run(self) -> Result<ServiceReport, ServiceError> {
        let stop = self.stop.clone();
        let signals = async {
            shutdown_signal().await;
            tracing::info!("stopping: a second signal stops at once");
            stop.stop();
            shutdown_signal().await;
            tracing::warn!("stopping at once");
            stop.stop_now();
            std::future::pending().await
        };
        tokio::select! {
            ended = self.consume() => ended,
            never = signals => never,
        }
    }

    /// Consumes until `signal` resolves, then stops gracefully. [`stop_handle`](Self::stop_handle) can
    /// stop it at once.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub async fn run_until<F: Future>(self, signal: F) -> Result<ServiceReport, ServiceError> {
        let stop = self.stop.clone();
        let stopping = async {
            signal.await;
            stop.stop();
            std::future::pending().await
        };
        tokio::select! {
            ended = self.consume() => ended,
            never = stopping => never,
        }
    }

    async fn consume(self) -> Result<ServiceReport, ServiceError> {
        let Self { broker, planned, drain, health: _, stop } = self;
        let mut running = JoinSet::new();
        let mut watched = Vec::new();
        for (index, planned) in planned.into_iter().enumerate() {
            watched.push(Arc::clone(&planned.watched));
            let (broker, stop) = (Arc::clone(&broker), stop.clone());
            running.spawn(async move {
                let run = AssertUnwindSafe(run_one(&*broker, planned, drain, stop)).catch_unwind();
                // Only a panic of the runtime itself or of a source comes here.
                let ended = run.await.unwrap_or_else(|panic| {
                    (Ended::default(), Some(format!("it panicked: {}", panic_message(panic))))
                });
                (index, ended)
            });
        }
        let mut ended: Vec<Option<Ended>> = watched.iter().map(|_| None).collect();
        let mut failed = None;
        while let Some(joined) = running.join_next().await {
            // Cancelled with the tokio runtime, which cancels this as well.
            let Ok((index, (end, error))) = joined else { continue };
            ended[index] = Some(end);
            if let Some(error) = error {
                tracing::error!(subscription = %watched[index].name, error, "cannot go on");
                watched[index].failed(&error);
                failed.get_or_insert((index, error));
                stop.stop();
            }
        }
        let subscriptions = watched.iter().zip(ended).map(|(watched, ended)| {
            let ended = ended.unwrap_or_default();
            SubscriptionReport {
                name: Arc::clone(&watched.name),
                counts: watched.counts(),
                cancelled: ended.cancelled,
                error: ended.error,
            }
        });
        let report = ServiceReport { subscriptions: subscriptions.collect() };
        match failed {
            None => Ok(report),
            Some((index, detail)) => {
                let subscription = watched[index].name.to_string();
                Err(ServiceError { subscription, detail, report })
            }
        }
    }
}

#[derive(Default)]
struct Ended {
    cancelled: usize,
    error: Option<String>,
}

/// Runs one subscription to its end; the error says why it could not go on.
async fn run_one(
    broker: &dyn Subscribe,
    planned: Planned,
    drain: Duration,
    stop: StopHandle,
) -> (Ended, Option<String>) {
    let Planned { request, spec, watched } = planned;
    let _ends = Ends(Arc::clone(&watched));
    let opened = tokio::select! {
        opened = broker.subscribe(request) => opened,
        () = stop.graceful.cancelled() => return (Ended::default(), None),
    };
    let source = match opened {
        Ok(source) => source,
        Err(error) => return (Ended::default(), Some(causes(&error))),
    };
    let stopping = stop.graceful.child_token();
    let runner = Arc::new(Runner::new(spec, Arc::clone(&watched), source, stopping));
    let mut running = Running { runner, workers: JoinSet::new() };
    let error = running.consume().await.err();
    let ended = running.end(drain, &stop.now).await;
    (ended, error)
}

/// Says that a subscription no longer runs, also when its task is dropped. Why it failed, if it did, is
/// said afterwards.
struct Ends(Arc<Watched>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.stopped();
    }
}

/// A subscription's own task; it owns the workers.
struct Running {
    runner: Arc<Runner>,
    workers: JoinSet<()>,
}

impl Drop for Running {
    /// A handler that blocks its thread keeps the rest alive, but not the subscription.
    fn drop(&mut self) {
        self.runner.leave();
    }
}

impl Running {
    /// Has the workers fetch and handle deliveries until it is stopped.
    async fn consume(&mut self) -> Result<(), String> {
        let runner = Arc::clone(&self.runner);
        let mut standing_in = pin!(runner.stand_in());
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
                () = runner.stop.cancelled() => break,
                Some(ended) = self.workers.join_next() => {
                    if let Err(panic) = ended {
                        return Err(format!("a worker failed: {panic}"));
                    }
                }
                () = runner.attention.notified() => due = self.release(),
                () = timer => due = self.release(),
                _ = reports.tick() => runner.watched.repeats.report(&runner.watched.name, false),
                never = &mut standing_in => match never {},
            }
        }
        match runner.fatal() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Sees to what is held and starts a worker that is missing; when to do it again.
    fn release(&mut self) -> Option<Instant> {
        let (missing, next) = self.runner.release();
        if missing {
            let runner = Arc::clone(&self.runner);
            match runner.spec.handler {
                Kind::Batch(_, limits) => self.workers.spawn(batch::work(runner, limits)),
                _ => self.workers.spawn(worker::work(runner)),
            };
        }
        next.map(|next| next.min(Instant::now() + HELD_CHECK))
    }

    /// Stops fetching, lets running handlers finish, gives the rest back, leaves the broker.
    async fn end(mut self, drain: Duration, now: &CancellationToken) -> Ended {
        self.runner.stop.cancel();
        self.runner.watched.draining();
        let deadline = far_deadline(drain);
        let mut source = None;
        let stop = async {
            // Whoever leads gives it back now.
            source.insert(self.runner.take_source().await).stop().await;
        };
        let stopped = tokio::select! {
            () = stop => true,
            () = tokio::time::sleep(CLOSING) => false,
            () = async { now.cancelled().await; tokio::time::sleep(CLOSING_NOW).await } => false,
        };
        self.runner.give_back();
        let mut ended = Ended::default();
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
        ended.cancelled = self.runner.busy();
        self.workers.abort_all();
        // A handler that blocks its thread cannot be cancelled: the wait for it is bounded.
        let gone = async { while self.workers.join_next().await.is_some() {} };
        let _blocked = tokio::time::timeout(Duration::from_secs(1), gone).await;
        // A job that a worker put back while it ended.
        self.runner.give_back();
        let closing = if now.is_cancelled() { CLOSING_NOW } else { CLOSING };
        // It ends about then by itself, if it keeps its promise.
        let close = async {
            let source = match source {
                Some(source) => source,
                None => self.runner.take_source().await,
            };
            source.close(closing).await
        };
        let closed = tokio::time::timeout(closing + CLOSING_NOW, close).await;
        let left = match closed {
            _ if !stopped => Some("the source did not stop in time".to_owned()),
            Err(_) => Some("the source did not close in time".to_owned()),
            Ok(closed) => closed.err().map(|error| causes(&error)),
        };
        ended.error = ended.error.or(left);
        self.runner.watched.repeats.report(&self.runner.watched.name, true);
        if let Some(error) = &ended.error {
            tracing::error!(subscription = %self.runner.watched.name, error, "did not end well");
        }
        ended
    }
}
