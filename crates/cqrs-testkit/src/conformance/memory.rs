//! [`MemoryHarness`]: the in-memory broker under the conformance suite, and an example of a harness.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cqrs_core::consume::Delayed;
use cqrs_core::memory::{MemoryRetry, MemorySubscription};
use cqrs_core::{MemoryBroker, StartAt, Subscribe};
use uuid::Uuid;

use super::adjusted::Adjusted;
use super::harness::{Capabilities, Fault, Harness, Setup};
use crate::probe::Probe;

/// The in-memory broker under the suite; also an example of a [`Harness`].
#[derive(Debug, Default)]
pub struct MemoryHarness {
    strict: bool,
    retry: MemoryRetry,
    broker: Mutex<MemoryBroker>,
}

/// A group that never acks, so that a topic stays full.
const STALLED: &str = "stalled";
const MAX_MESSAGE: usize = 2 * 1024 * 1024;

impl MemoryHarness {
    /// With the default options: as in Kafka, a topic without a group keeps its messages, and a key waits
    /// for its retries.
    pub fn new() -> Self {
        Self::default()
    }

    /// For the producing list, as RabbitMQ: a topic without a group is unroutable, and the size of messages
    /// is limited.
    pub fn strict() -> Self {
        Self { strict: true, ..Self::default() }
    }

    /// For the consuming list, as RabbitMQ: a retry is a scheduled copy.
    pub fn scheduled() -> Self {
        Self { retry: MemoryRetry::Scheduled, ..Self::default() }
    }

    /// The broker of the last [`connect`](Harness::connect).
    pub fn broker(&self) -> MemoryBroker {
        self.broker.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Harness for MemoryHarness {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            unroutable: self.strict,
            identity_always: true,
            content_type: true,
            place: true,
            max_message_size: self.strict.then_some(MAX_MESSAGE),
            offsets: true,
            redelivered: true,
            delayed: match self.retry {
                MemoryRetry::Scheduled => Delayed::Scheduled,
                _ => Delayed::Hold,
            },
            notes_attempts: true,
            history: true,
            start_time: true,
            stall: true,
            timeout: Duration::from_secs(10),
            ..Capabilities::default()
        }
    }

    async fn connect(&self, setup: Setup) -> Arc<dyn Subscribe> {
        let mut builder = MemoryBroker::builder()
            .window(setup.window_messages, setup.window_bytes)
            .publish_timeout(setup.publish_timeout)
            .require_subscriber(self.strict);
        if self.strict {
            // The topic's name counts here; the suite's limit is about the rest.
            builder = builder.max_message_size(MAX_MESSAGE);
        }
        if setup.with_faults {
            builder = builder.capacity(8);
        }
        let broker = builder.build();
        *self.broker.lock().unwrap_or_else(PoisonError::into_inner) = broker.clone();
        let options = MemorySubscription::default().with_retry(self.retry);
        Arc::new(Adjusted::new(Arc::new(broker), move |request| request.options.insert(options)))
    }

    async fn fresh_topic(&self) -> String {
        Uuid::now_v7().to_string()
    }

    async fn probe(&self, topic: &str) -> Probe {
        Probe::memory(&self.broker(), topic)
    }

    async fn dead_letters(&self, name: &str) -> Probe {
        Probe::memory(&self.broker(), name)
    }

    async fn publish_tombstone(&self, _topic: &str, _key: &str) {
        panic!("tombstones are not declared");
    }

    async fn inject(&self, fault: Fault<'_>) {
        match fault {
            Fault::Stall { topic } => {
                self.broker().create_group(topic, STALLED, StartAt::Latest);
            }
            Fault::Resume { topic } => {
                self.broker().delete_group(topic, STALLED);
            }
            undeclared => panic!("{undeclared:?} is not declared"),
        }
    }
}
