use std::time::Duration;

use cqrs::prelude::*;
use cqrs::service::{ServiceHealth, StopHandle, SubscriptionCounts};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Fallible, PATIENCE};

/// A service that runs beside the example. One of its own just awaits `service.run()`.
pub(crate) struct Running {
    task: JoinHandle<Result<SubscriptionCounts, String>>,
    stop: StopHandle,
    health: ServiceHealth,
}

/// Starts `service` and waits until it consumes.
pub(crate) async fn start(service: Service) -> Fallible<Running> {
    let (stop, health) = (service.stop_handle(), service.health());
    let task = tokio::spawn(async move {
        let report = service.run_until(std::future::pending::<()>()).await;
        let report = report.map_err(|error| error.to_string())?;
        report.subscriptions.first().map(|first| first.counts).ok_or_else(|| "none".to_owned())
    });
    let running = Running { task, stop, health };
    until("the service consumes", || running.health.is_ready() || !running.health.is_live())
        .await?;
    Ok(running)
}

impl Running {
    /// What its first subscription has done so far.
    pub(crate) fn counts(&self) -> SubscriptionCounts {
        let subscriptions = self.health.subscriptions();
        subscriptions.first().map(|first| first.counts).unwrap_or_default()
    }

    /// Waits until its first subscription is done with `n` messages.
    pub(crate) async fn has_settled(&self, n: u64) -> Fallible<()> {
        until("all messages are settled", || {
            let counts = self.counts();
            counts.handled + counts.skipped + counts.dead_lettered >= n
        })
        .await
    }

    /// Stops it gracefully; what its first subscription did.
    pub(crate) async fn stop(self) -> Fallible<SubscriptionCounts> {
        self.stop.stop();
        Ok(self.task.await??)
    }
}

/// Waits for `condition`; an error when it does not come true within 30 s.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) -> Fallible<()> {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > end {
            return Err(format!("waited in vain: {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
