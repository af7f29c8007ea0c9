//! The Kafka source under the consuming half of the conformance suite.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::Subscribe;
use cqrs_core::consume::Delayed;
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker, KafkaSubscription, RetryMode};
use cqrs_testkit::conformance::{
    Adjusted, ConsumingCapabilities, ConsumingFault, ConsumingHarness,
};
use cqrs_testkit::{Probe, consuming_conformance};
use integration_tests::kafka::{
    self, Raw, create_topic, delete_topics, fresh_topic, java_partition, write,
};
use integration_tests::servers;
use tokio::sync::{Mutex, MutexGuard};

use crate::server::{Server, blocking};

const PARTITIONS: i32 = 4;

struct KafkaHarness {
    retry_mode: RetryMode,
    server: Server,
    alone: Mutex<Option<MutexGuard<'static, ()>>>,
    /// What the case has made; the topics that belong to one begin with its name.
    topics: Mutex<Vec<String>>,
}

impl KafkaHarness {
    async fn new(retry_mode: RetryMode) -> Self {
        let (alone, topics) = (Mutex::default(), Mutex::default());
        Self { retry_mode, server: Server::share("kafka").await, alone, topics }
    }
}

impl ConsumingHarness for KafkaHarness {
    fn capabilities(&self) -> ConsumingCapabilities {
        let mut capabilities = ConsumingCapabilities::default();
        capabilities.offsets = true;
        capabilities.partitions = true;
        capabilities.timestamp_unit = Duration::from_millis(1);
        capabilities.tombstones = true;
        capabilities.delayed = match self.retry_mode {
            RetryMode::Topics => Delayed::Scheduled,
            _ => Delayed::Hold,
        };
        capabilities.notes_attempts = true;
        capabilities.history = true;
        capabilities.start_time = true;
        capabilities.patterns = true;
        capabilities.cut = true;
        capabilities.mute = true;
        capabilities.patience = Duration::from_secs(45);
        capabilities
    }

    async fn connect(&self, with_faults: bool) -> Arc<dyn Subscribe> {
        let mut config = KafkaConfig::new([blocking(servers::kafka).await]);
        if with_faults {
            let (proxy, alone) = kafka::proxy().await;
            self.server.set_proxy(Some(proxy)).await;
            *self.alone.lock().await = Some(alone);
            config = KafkaConfig::new([servers::kafka_proxied()]);
        }
        let broker = KafkaMessageBroker::connect(config).await.unwrap();
        let options = KafkaSubscription::new()
            .with_retry_mode(self.retry_mode)
            // A member that died is not waited for for as long as a case waits; one that a busy machine
            // held up is not taken for dead.
            .with_session_timeout(Duration::from_secs(20));
        let adjust = move |request: &mut cqrs_core::consume::SubscribeRequest| {
            request.options.insert(options.clone());
        };
        Arc::new(Adjusted::new(Arc::new(broker), adjust))
    }

    async fn fresh_topic(&self) -> String {
        let topic = fresh_topic("consuming");
        create_topic(&topic, PARTITIONS, &[]).await;
        self.topics.lock().await.push(topic.clone());
        topic
    }

    async fn dead_letters(&self, name: &str) -> Probe {
        Probe::kafka(&blocking(servers::kafka).await, name).await.unwrap()
    }

    async fn publish_tombstone(&self, topic: &str, key: &str) {
        let partition = java_partition(key.as_bytes(), PARTITIONS);
        let tombstone = Raw { partition, key: Some(key.into()), ..Raw::default() };
        write(topic, vec![tombstone]).await;
    }

    async fn inject(&self, fault: ConsumingFault) {
        self.server.inject_consuming(fault).await;
    }
}

impl Drop for KafkaHarness {
    /// Leaves no topics behind, not even after a case that failed.
    fn drop(&mut self) {
        let topics = std::mem::take(self.topics.get_mut());
        tokio::task::block_in_place(|| {
            let runtime = tokio::runtime::Handle::current();
            // A task of its own, whose panic does not end the process when the case has failed.
            let deleting = runtime.spawn(async move {
                for topic in topics {
                    delete_topics(&topic).await;
                }
            });
            let limit = Duration::from_secs(20);
            let deleted = runtime.block_on(async { tokio::time::timeout(limit, deleting).await });
            if !matches!(deleted, Ok(Ok(()))) {
                eprintln!("topics are left behind");
            }
        });
    }
}

/// A key waits for its retries.
mod ordered {
    use super::*;

    consuming_conformance!(KafkaHarness::new(RetryMode::Ordered).await);
}

/// Messages wait for their retries in topics.
mod retry_topics {
    use super::*;

    consuming_conformance!(KafkaHarness::new(RetryMode::Topics).await);
}
