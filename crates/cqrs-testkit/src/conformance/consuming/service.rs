//! A service in the hands of a case, and handlers that keep a log.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use cqrs_core::{
    HandlerError, NotificationEvent, Received, Service, ServiceError, ServiceHealth, ServiceReport,
    StopHandle, Subscribe, Subscription, SubscriptionCounts, SubscriptionReport, Target, each,
};
use tokio::task::JoinHandle;

use super::ConsumingHarness;
use super::stage::{Counted, Stage};

pub(super) struct Running {
    task: JoinHandle<Result<ServiceReport, ServiceError>>,
    stop: StopHandle,
    health: ServiceHealth,
    patience: Duration,
    /// Gone when nothing of the service is left.
    broker: Weak<Arc<dyn Subscribe>>,
}

impl<H: ConsumingHarness> Stage<'_, H> {
    /// Runs a service; it is ready.
    pub(super) async fn run(&self, subscription: Subscription, target: impl Target) -> Running {
        self.run_draining(subscription, target, Duration::from_secs(30)).await
    }

    /// The same with another limit of its drain.
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
        let running = Running { task, stop, health, patience: self.can.patience, broker: left };
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

    pub(super) fn is_ready(&self) -> bool {
        self.health.is_ready()
    }

    /// Tells it to stop, which it does meanwhile.
    pub(super) fn stop(&self) {
        self.stop.stop();
    }

    /// Stops it; all must be well.
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

    /// Waits until it ends by itself.
    pub(super) async fn failure(self) -> ServiceError {
        self.failure_or_report().await.expect_err("it cannot go on")
    }

    async fn failure_or_report(self) -> Result<ServiceReport, ServiceError> {
        let ended = tokio::time::timeout(2 * self.patience, self.task).await;
        let ended = ended.unwrap_or_else(|_| panic!("the service does not end"));
        ended.unwrap_or_else(|error| panic!("the service: {error}"))
    }

    /// As a process that dies.
    pub(super) async fn crash(self) {
        self.task.abort();
        let _aborted = self.task.await;
        let end = Instant::now() + self.patience;
        while self.broker.strong_count() > 0 {
            assert!(Instant::now() < end, "a service that was dropped is still there");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// One run of a handler.
#[derive(Debug, Clone)]
pub(super) struct Note {
    pub(super) key: String,
    pub(super) number: u32,
    pub(super) attempt: u32,
    pub(super) at: Instant,
}

/// What the handlers of a case did, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<Note>>>);

impl Log {
    pub(super) fn add(&self, event: &Counted, attempt: u32) -> Note {
        let Counted { key, number } = event.clone();
        let note = Note { key, number, attempt, at: Instant::now() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(note.clone());
        note
    }

    pub(super) fn notes(&self) -> Vec<Note> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Number and attempt of each run: `1#1`.
    pub(super) fn runs(&self) -> Vec<String> {
        self.notes().iter().map(|note| format!("{}#{}", note.number, note.attempt)).collect()
    }

    /// The numbers of a key, in the order they ran.
    pub(super) fn numbers(&self, key: &str) -> Vec<u32> {
        let notes = self.notes();
        notes.iter().filter(|note| note.key == key).map(|note| note.number).collect()
    }

    /// A function that logs, and ends as `act` says.
    pub(super) fn each<F>(&self, act: F) -> impl Target + use<F>
    where
        F: Fn(&Note) -> Result<(), HandlerError> + Send + Sync + 'static,
    {
        let act = Arc::new(act);
        self.each_async(move |note| {
            let act = Arc::clone(&act);
            async move { act(&note) }
        })
    }

    /// The same with a function that may wait.
    pub(super) fn each_async<F, Fut>(&self, act: F) -> impl Target + use<F, Fut>
    where
        F: Fn(Note) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let (log, act) = (self.clone(), Arc::new(act));
        each(move |event: NotificationEvent<Counted>, received: Received| {
            let (log, act) = (log.clone(), Arc::clone(&act));
            async move {
                let note = log.add(&event.payload, received.attempt());
                act(note).await
            }
        })
    }
}
