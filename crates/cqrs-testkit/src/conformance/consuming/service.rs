//! [`Running`]: the service of a consuming case, and [`Log`]: the runs of its handlers.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use cqrs_core::service::{
    ServiceError, ServiceHealth, ServiceReport, StopHandle, SubscriptionCounts, SubscriptionReport,
    SubscriptionState, Target,
};
use cqrs_core::{
    HandlerError, NotificationEvent, Received, Service, Subscribe, Subscription, each,
};
use tokio::task::JoinHandle;

use crate::conformance::fixture::{Counted, Fixture};
use crate::conformance::harness::Harness;

pub(super) struct Running {
    task: JoinHandle<Result<ServiceReport, ServiceError>>,
    stop: StopHandle,
    health: ServiceHealth,
    timeout: Duration,
    /// Dead when the service is dropped completely.
    broker: Weak<Arc<dyn Subscribe>>,
}

impl<H: Harness> Fixture<'_, H> {
    /// Runs a service and waits until it is ready.
    pub(super) async fn run(&self, subscription: Subscription, target: impl Target) -> Running {
        self.run_draining(subscription, target, Duration::from_secs(30)).await
    }

    /// As [`run`](Self::run), with a limit of the drain.
    pub(super) async fn run_draining(
        &self,
        subscription: Subscription,
        target: impl Target,
        drain: Duration,
    ) -> Running {
        let broker = Arc::new(Arc::clone(&self.broker));
        let left = Arc::downgrade(&broker);
        let service = Service::builder(broker)
            .subscribe(subscription, target)
            .drain_timeout(drain)
            .build()
            .unwrap_or_else(|error| panic!("{error}"));
        let (stop, health) = (service.stop_handle(), service.health());
        let task = tokio::spawn(service.run_until(std::future::pending::<()>()));
        let running = Running { task, stop, health, timeout: self.can.timeout, broker: left };
        self.until("the service is ready", || {
            running.health.is_ready() || running.task.is_finished()
        })
        .await;
        running
    }
}

impl Running {
    pub(super) fn counts(&self) -> SubscriptionCounts {
        self.health.subscriptions()[0].counts
    }

    pub(super) fn state(&self) -> SubscriptionState {
        self.health.subscriptions().remove(0).state
    }

    pub(super) fn is_ready(&self) -> bool {
        self.health.is_ready()
    }

    /// Requests a stop and does not wait for it.
    pub(super) fn stop(&self) {
        self.stop.stop();
    }

    /// Stops it without an error, and returns the report of its subscription.
    pub(super) async fn end(self) -> SubscriptionReport {
        let report = self.report().await.unwrap_or_else(|error| panic!("{error}"));
        let report = report.subscriptions.into_iter().next().expect("one subscription");
        assert_eq!(report.error, None, "how it ended");
        report
    }

    async fn report(self) -> Result<ServiceReport, ServiceError> {
        self.stop.stop();
        self.failure_or_report().await
    }

    /// Waits until it ends with an error.
    pub(super) async fn failure(self) -> ServiceError {
        self.failure_or_report().await.expect_err("it cannot go on")
    }

    async fn failure_or_report(self) -> Result<ServiceReport, ServiceError> {
        let ended = tokio::time::timeout(2 * self.timeout, self.task).await;
        let ended = ended.unwrap_or_else(|_| panic!("the service does not end"));
        ended.unwrap_or_else(|error| panic!("the service: {error}"))
    }

    /// Drops the service, as a process that dies.
    pub(super) async fn crash(self) {
        self.task.abort();
        let _aborted = self.task.await;
        let end = Instant::now() + self.timeout;
        while self.broker.strong_count() > 0 {
            assert!(Instant::now() < end, "a dropped service is still running");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// One run of a handler.
#[derive(Debug, Clone)]
pub(super) struct HandlerRun {
    pub(super) key: String,
    pub(super) number: u32,
    pub(super) attempt: u32,
    pub(super) at: Instant,
}

/// The runs of the handlers of a case, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<HandlerRun>>>);

impl Log {
    pub(super) fn add(&self, event: &Counted, attempt: u32) -> HandlerRun {
        let Counted { key, number } = event.clone();
        let run = HandlerRun { key, number, attempt, at: Instant::now() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(run.clone());
        run
    }

    pub(super) fn runs(&self) -> Vec<HandlerRun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Number and attempt of each run: `1#1`.
    pub(super) fn attempts(&self) -> Vec<String> {
        self.runs().iter().map(|run| format!("{}#{}", run.number, run.attempt)).collect()
    }

    /// The numbers of a key, in the order they ran.
    pub(super) fn numbers(&self, key: &str) -> Vec<u32> {
        let runs = self.runs();
        runs.iter().filter(|run| run.key == key).map(|run| run.number).collect()
    }

    /// A handler that logs its run and returns the result of `act`.
    pub(super) fn each<F>(&self, act: F) -> impl Target + use<F>
    where
        F: Fn(&HandlerRun) -> Result<(), HandlerError> + Send + Sync + 'static,
    {
        let act = Arc::new(act);
        self.each_async(move |run| {
            let act = Arc::clone(&act);
            async move { act(&run) }
        })
    }

    /// As [`each`](Self::each), with an asynchronous `act`.
    pub(super) fn each_async<F, Fut>(&self, act: F) -> impl Target + use<F, Fut>
    where
        F: Fn(HandlerRun) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let (log, act) = (self.clone(), Arc::new(act));
        each(move |event: NotificationEvent<Counted>, received: Received| {
            let (log, act) = (log.clone(), Arc::clone(&act));
            async move {
                let run = log.add(&event.payload, received.attempt());
                act(run).await
            }
        })
    }
}
