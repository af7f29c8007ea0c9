//! The conformance suite on Kafka.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::Subscribe;
use cqrs_core::consume::{Delayed, SubscribeRequest};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker, KafkaSubscription, RetryMode};
use cqrs_testkit::conformance::{Adjusted, Capabilities, Fault, Harness, Setup};
use cqrs_testkit::{FaultProxy, Probe, conformance};
use integration_tests::control::full;
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
    /// The topics that the case has created; the names of their retry topics begin with theirs.
    topics: Mutex<Vec<String>>,
}

impl KafkaHarness {
    async fn new(retry_mode: RetryMode) -> Self {
        let (alone, topics) = (Mutex::default(), Mutex::default());
        Self { retry_mode, server: Server::share("kafka").await, alone, topics }
    }

    /// A new proxy in place of the last one.
    async fn proxy(&self) -> FaultProxy {
        self.server.set_proxy(None).await;
        let mut alone = self.alone.lock().await;
        drop(alone.take());
        let (proxy, guard) = kafka::proxy().await;
        *alone = Some(guard);
        proxy
    }
}

impl Harness for KafkaHarness {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.place = true;
        capabilities.max_message_size = Some(1_000_000);
        capabilities.timestamp_unit = Duration::from_millis(1);
        capabilities.offsets = true;
        capabilities.partitions = true;
        capabilities.tombstones = true;
        capabilities.delayed = match self.retry_mode {
            RetryMode::Topics => Delayed::Scheduled,
            _ => Delayed::Hold,
        };
        capabilities.notes_attempts = true;
        capabilities.history = true;
        capabilities.start_time = true;
        capabilities.patterns = true;
        capabilities.stall = true;
        capabilities.cut = true;
        capabilities.hang = true;
        capabilities.restart = full();
        capabilities.timeout = Duration::from_secs(45);
        capabilities
    }

    async fn connect(&self, setup: Setup) -> Arc<dyn Subscribe> {
        let mut config = KafkaConfig::new([blocking(servers::kafka).await]);
        if setup.with_faults {
            self.server.set_proxy(Some(self.proxy().await)).await;
            config = KafkaConfig::new([servers::kafka_proxied()]);
        }
        config.window_messages = setup.window_messages;
        config.window_bytes = setup.window_bytes;
        config.publish_timeout = setup.publish_timeout;
        let broker = servers::connected(|| KafkaMessageBroker::connect(config.clone())).await;
        let options = KafkaSubscription::new()
            .with_retry_mode(self.retry_mode)
            // Shorter than a case waits for the partitions of a dead member, longer than a busy machine
            // delays a heartbeat.
            .with_session_timeout(Duration::from_secs(20));
        let adjust = move |request: &mut SubscribeRequest| request.options.insert(options.clone());
        Arc::new(Adjusted::new(Arc::new(broker), adjust))
    }

    async fn fresh_topic(&self) -> String {
        let topic = fresh_topic("conformance");
        create_topic(&topic, PARTITIONS, &[]).await;
        self.topics.lock().await.push(topic.clone());
        topic
    }

    async fn probe(&self, topic: &str) -> Probe {
        Probe::kafka(&blocking(servers::kafka).await, topic).await.unwrap()
    }

    async fn dead_letters(&self, name: &str) -> Probe {
        self.probe(name).await
    }

    async fn publish_tombstone(&self, topic: &str, key: &str) {
        let partition = java_partition(key.as_bytes(), PARTITIONS);
        let tombstone = Raw { partition, key: Some(key.into()), ..Raw::default() };
        write(topic, vec![tombstone]).await;
    }

    async fn inject(&self, fault: Fault<'_>) {
        self.server.inject(fault).await;
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

/// Publishing, which does not depend on the retry mode.
mod producing {
    use super::*;

    conformance!(producing: KafkaHarness::new(RetryMode::Ordered).await);
}

/// A key waits for its retries.
mod ordered {
    use super::*;

    conformance!(consuming: KafkaHarness::new(RetryMode::Ordered).await);
}

/// Messages wait for their retries in topics.
mod retry_topics {
    use super::*;

    conformance!(consuming: KafkaHarness::new(RetryMode::Topics).await);
}
