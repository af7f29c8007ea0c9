//! Runs a service: all its subscriptions, until it is stopped or one of them fails.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::task::JoinSet;

use super::build::Service;
use super::error::ServiceError;
use super::report::{ServiceReport, SubscriptionReport};
use super::runtime::{SubscriptionEnd, run_subscription};
use super::signal::stop_on_signals;
use crate::dispatch::panic_message;

impl Service {
    /// Consumes until the process gets SIGTERM or Ctrl-C, then stops gracefully; a second signal stops
    /// at once.
    ///
    /// # Errors
    /// If a subscription cannot go on; the others are stopped gracefully then.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the handlers and gives all unsettled messages back.
    pub async fn run(self) -> Result<ServiceReport, ServiceError> {
        let stop = self.stop.clone();
        tokio::select! {
            ended = self.consume() => ended,
            never = stop_on_signals(&stop) => match never {},
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

    /// Consumes until it is stopped with its handle.
    pub(crate) async fn consume(self) -> Result<ServiceReport, ServiceError> {
        let Self { broker, planned, drain, health: _, stop } = self;
        let mut running = JoinSet::new();
        let mut monitors = Vec::new();
        for (index, planned) in planned.into_iter().enumerate() {
            monitors.push(Arc::clone(&planned.monitor));
            let (broker, stop) = (Arc::clone(&broker), stop.clone());
            running.spawn(async move {
                let run = AssertUnwindSafe(run_subscription(&*broker, planned, drain, stop))
                    .catch_unwind();
                // Only a panic of the runtime itself or of a source is caught here.
                let ended = run.await.unwrap_or_else(|panic| {
                    (
                        SubscriptionEnd::default(),
                        Some(format!("it panicked: {}", panic_message(panic))),
                    )
                });
                (index, ended)
            });
        }
        let mut ended: Vec<Option<SubscriptionEnd>> = monitors.iter().map(|_| None).collect();
        let mut failed = None;
        while let Some(joined) = running.join_next().await {
            // Cancelled with the tokio runtime, which also cancels this.
            let Ok((index, (end, error))) = joined else { continue };
            ended[index] = Some(end);
            if let Some(error) = error {
                tracing::error!(subscription = %monitors[index].name, error, "cannot go on");
                monitors[index].failed(&error);
                failed.get_or_insert((index, error));
                stop.stop();
            }
        }
        let subscriptions = monitors.iter().zip(ended).map(|(monitor, ended)| {
            let ended = ended.unwrap_or_default();
            SubscriptionReport {
                name: Arc::clone(&monitor.name),
                counts: monitor.counts(),
                cancelled: ended.cancelled,
                error: ended.error,
            }
        });
        let report = ServiceReport { subscriptions: subscriptions.collect() };
        match failed {
            None => Ok(report),
            Some((index, detail)) => {
                let subscription = monitors[index].name.to_string();
                Err(ServiceError { subscription, detail, report })
            }
        }
    }
}
