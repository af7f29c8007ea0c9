//! [`RunningService`]: a service that runs on a tester's broker.

use std::panic::resume_unwind;
use std::sync::Arc;

use cqrs_core::Service;
use cqrs_core::service::{ServiceError, ServiceHealth, ServiceReport, StopHandle};
use tokio::task::JoinHandle;

use super::journal::Journal;

/// A service that runs on a tester's broker. Dropping it cancels the service, and what it holds is
/// requeued.
#[derive(Debug)]
#[must_use = "dropping it cancels the service"]
pub struct RunningService {
    task: JoinHandle<Result<ServiceReport, ServiceError>>,
    stop: StopHandle,
    health: ServiceHealth,
}

impl RunningService {
    pub(super) fn start(service: Service, journal: &Arc<Journal>) -> Self {
        let (stop, health) = (service.stop_handle(), service.health());
        let journal = Arc::clone(journal);
        let task = tokio::spawn(async move {
            let ended = service.run_until(std::future::pending::<()>()).await;
            if let Err(error) = &ended {
                journal.change(|state| state.failed = Some(error.to_string()));
            }
            ended
        });
        Self { task, stop, health }
    }

    /// The service's own health: its state and its counts.
    pub fn health(&self) -> &ServiceHealth {
        &self.health
    }

    /// Attempts that failed so far, immediate retries included, over all subscriptions.
    pub fn failed_attempts(&self) -> u64 {
        let subscriptions = self.health.subscriptions();
        subscriptions.iter().map(|subscription| subscription.counts.failed_attempts).sum()
    }

    /// Stops it gracefully, as a deployment does: running handlers finish, the rest is requeued. The tester
    /// can start another [`Service`] afterwards.
    ///
    /// # Errors
    /// When a subscription could not go on.
    ///
    /// # Panics
    /// When the runtime of the service itself panicked.
    ///
    /// # Cancel safety
    /// A dropped call cancels the service.
    pub async fn stop(self) -> Result<ServiceReport, ServiceError> {
        self.stop.stop();
        self.end().await
    }

    /// Stops it as a second signal does: running handlers are cancelled, and everything is requeued.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    ///
    /// # Panics
    /// As [`stop`](Self::stop).
    pub async fn stop_now(self) -> Result<ServiceReport, ServiceError> {
        self.stop.stop_now();
        self.end().await
    }

    async fn end(mut self) -> Result<ServiceReport, ServiceError> {
        match (&mut self.task).await {
            Ok(ended) => ended,
            Err(error) => resume_unwind(error.into_panic()),
        }
    }
}

impl Drop for RunningService {
    fn drop(&mut self) {
        self.task.abort();
    }
}
