use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cqrs_core::consume::Delayed;
use cqrs_core::memory::{MemoryRetry, MemorySubscription};
use cqrs_core::{MemoryBroker, Subscribe};
use uuid::Uuid;

use super::{Adjusted, ConsumingCapabilities, ConsumingFault, ConsumingHarness};
use crate::Probe;

/// The in-memory broker under the consuming half; also an example of a [`ConsumingHarness`].
#[derive(Debug, Default)]
pub struct MemoryConsumingHarness {
    retry: MemoryRetry,
    broker: Mutex<MemoryBroker>,
}

impl MemoryConsumingHarness {
    /// With the default options: as in Kafka's ordered mode, a key waits for its retries.
    pub fn new() -> Self {
        Self::default()
    }

    /// As RabbitMQ: messages that wait for a retry wait aside.
    pub fn scheduled() -> Self {
        Self { retry: MemoryRetry::Scheduled, ..Self::default() }
    }

    /// The broker of the last [`connect`](ConsumingHarness::connect).
    pub fn broker(&self) -> MemoryBroker {
        self.broker.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ConsumingHarness for MemoryConsumingHarness {
    fn capabilities(&self) -> ConsumingCapabilities {
        ConsumingCapabilities {
            content_type: true,
            offsets: true,
            redelivered: true,
            delayed: match self.retry {
                MemoryRetry::Scheduled => Delayed::Scheduled,
                _ => Delayed::Hold,
            },
            notes_attempts: true,
            history: true,
            start_time: true,
            patience: Duration::from_secs(10),
            ..ConsumingCapabilities::default()
        }
    }

    async fn connect(&self, _with_faults: bool) -> Arc<dyn Subscribe> {
        let broker = MemoryBroker::new();
        *self.broker.lock().unwrap_or_else(PoisonError::into_inner) = broker.clone();
        let options = MemorySubscription::default().with_retry(self.retry);
        Arc::new(Adjusted::new(Arc::new(broker), move |request| request.options.insert(options)))
    }

    async fn fresh_topic(&self) -> String {
        Uuid::now_v7().to_string()
    }

    async fn dead_letters(&self, name: &str) -> Probe {
        Probe::memory(&self.broker(), name)
    }

    async fn publish_tombstone(&self, _topic: &str, _key: &str) {
        panic!("tombstones are not declared");
    }

    async fn inject(&self, fault: ConsumingFault) {
        panic!("{fault:?} is not declared");
    }
}
