use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cqrs_core::StartAt;
use cqrs_core::{MemoryBroker, MessageBroker};
use uuid::Uuid;

use super::{Capabilities, Fault, Harness, Setup};
use crate::Probe;

/// The in-memory broker under the suite; also an example of a [`Harness`].
#[derive(Debug, Default)]
pub struct MemoryHarness {
    strict: bool,
    broker: Mutex<MemoryBroker>,
}

/// Never acks, so that a topic stays full.
const STALLED: &str = "stalled";
const MAX_MESSAGE: usize = 2 * 1024 * 1024;

impl MemoryHarness {
    /// With the default options: as Kafka, a topic without a group keeps its messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// As RabbitMQ: a topic without a group is unroutable, and the size of messages is limited.
    pub fn strict() -> Self {
        Self { strict: true, ..Self::default() }
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
            max_message_bytes: self.strict.then_some(MAX_MESSAGE),
            stall: true,
            patience: Duration::from_secs(10),
            ..Capabilities::default()
        }
    }

    async fn connect(&self, setup: Setup) -> Arc<dyn MessageBroker> {
        let mut builder = MemoryBroker::builder()
            .window(setup.window_messages, setup.window_bytes)
            .publish_timeout(setup.publish_timeout)
            .require_subscriber(self.strict);
        if self.strict {
            // The topic's name counts here; the suite's limit is about the rest.
            builder = builder.max_message_size(MAX_MESSAGE + Uuid::nil().to_string().len());
        }
        if setup.with_faults {
            builder = builder.capacity(8);
        }
        let broker = builder.build();
        *self.broker.lock().unwrap_or_else(PoisonError::into_inner) = broker.clone();
        Arc::new(broker)
    }

    async fn fresh_topic(&self) -> String {
        Uuid::now_v7().to_string()
    }

    async fn probe(&self, topic: &str) -> Probe {
        Probe::memory(&self.broker(), topic)
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
