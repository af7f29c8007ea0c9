//! Tests of the outbox's relay from a real PostgreSQL or MariaDB to a real Kafka, while processes and servers
//! fail. Each of the fault tests prints a summary.
//!
//! Counts are scaled down; `CQRS_FULL=1` runs them in full.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

mod faults;
mod order;
mod plans;
mod sharing;

use std::time::{Duration, Instant};

use cqrs_core::MessageBroker;
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
use cqrs_outbox::{Relay, RelayBuilder, RelayHandle, RelayReport};
use integration_tests::database::{Schema, TestDatabase};
use integration_tests::kafka::{create_topic, fresh_topic};
use integration_tests::log::show_warnings;
use integration_tests::servers;
use tokio::sync::RwLock;
use tokio::task::JoinHandle;

/// A write lock for tests that break a shared server or measure; a read lock for the others.
static SERVERS: RwLock<()> = RwLock::const_new(());

const LIMIT: Duration = Duration::from_secs(120);

/// A schema and a topic of its own.
async fn fresh<DB: TestDatabase>(test: &str) -> (Schema<DB>, String) {
    show_warnings();
    let topic = fresh_topic(test);
    create_topic(&topic, 4, &[]).await;
    (Schema::new().await, topic)
}

async fn broker(config: impl FnOnce(&mut KafkaConfig)) -> KafkaMessageBroker {
    let mut settings = KafkaConfig::new([servers::kafka()]);
    config(&mut settings);
    servers::connected(|| KafkaMessageBroker::connect(settings.clone())).await
}

/// A relay in this process.
struct Running<DB: TestDatabase> {
    handle: RelayHandle<DB>,
    task: JoinHandle<RelayReport>,
}

impl<DB: TestDatabase> Running<DB> {
    fn start(relay: RelayBuilder<DB>) -> Self {
        let relay = relay.build().unwrap();
        Self { handle: relay.handle(), task: tokio::spawn(relay.run()) }
    }

    async fn stop(self) -> RelayReport {
        self.handle.stop();
        tokio::time::timeout(LIMIT, self.task).await.expect("an end in time").unwrap()
    }
}

fn relay<DB: TestDatabase>(
    schema: &Schema<DB>,
    broker: &(impl MessageBroker + Clone),
) -> RelayBuilder<DB> {
    let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
    Relay::builder(&schema.outbox, broker.clone()).backoff(first, longest)
}

async fn wait(condition: impl AsyncFn() -> bool, what: &str) {
    let end = Instant::now() + LIMIT;
    while !condition().await {
        assert!(Instant::now() < end, "no {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
