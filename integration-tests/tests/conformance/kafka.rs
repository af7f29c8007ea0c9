//! The Kafka broker under the conformance suite.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::MessageBroker;
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
use cqrs_testkit::conformance::{Capabilities, Fault, Harness, Setup};
use cqrs_testkit::{FaultProxy, Probe, conformance};
use integration_tests::control::full;
use integration_tests::kafka::{self, create_topic, fresh_topic};
use integration_tests::servers;
use tokio::sync::{Mutex, MutexGuard};

use crate::server::{Server, blocking};

struct KafkaHarness {
    server: Server,
    alone: Mutex<Option<MutexGuard<'static, ()>>>,
}

impl KafkaHarness {
    async fn new() -> Self {
        Self { server: Server::share("kafka").await, alone: Mutex::default() }
    }

    /// In the place of the last one.
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
        capabilities.max_message_bytes = Some(1_000_000);
        capabilities.timestamp_unit = Duration::from_millis(1);
        capabilities.stall = true;
        capabilities.cut = true;
        capabilities.restart = full();
        capabilities
    }

    async fn connect(&self, setup: Setup) -> Arc<dyn MessageBroker> {
        let mut config = KafkaConfig::new([blocking(servers::kafka).await]);
        if setup.with_faults {
            self.server.set_proxy(Some(self.proxy().await)).await;
            config = KafkaConfig::new([servers::kafka_proxied()]);
        }
        config.window_messages = setup.window_messages;
        config.window_bytes = setup.window_bytes;
        config.publish_timeout = setup.publish_timeout;
        Arc::new(servers::connected(|| KafkaMessageBroker::connect(config.clone())).await)
    }

    async fn fresh_topic(&self) -> String {
        let topic = fresh_topic("conformance");
        create_topic(&topic, 4, &[]).await;
        topic
    }

    async fn probe(&self, topic: &str) -> Probe {
        Probe::kafka(&blocking(servers::kafka).await, topic).await.unwrap()
    }

    async fn inject(&self, fault: Fault<'_>) {
        self.server.inject(fault).await;
    }
}

conformance!(KafkaHarness::new().await);
