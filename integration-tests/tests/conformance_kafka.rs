//! The Kafka broker under the conformance suite.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

mod conformance_support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use conformance_support::{Server, blocking, may_restart};
use cqrs_core::MessageBroker;
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
use cqrs_testkit::conformance::{Capabilities, Fault, Harness, Setup};
use cqrs_testkit::{FaultProxy, Probe, conformance};
use integration_tests::kafka::fresh_topic;
use integration_tests::servers;
use tokio::sync::{Mutex, MutexGuard};

/// The proxy's port exists once.
static PROXY: Mutex<()> = Mutex::const_new(());

struct KafkaHarness {
    server: Server,
    alone: Mutex<Option<MutexGuard<'static, ()>>>,
}

impl KafkaHarness {
    async fn new() -> Self {
        Self { server: Server::share("kafka").await, alone: Mutex::default() }
    }

    /// The port may still be another process's.
    async fn proxy(&self) -> FaultProxy {
        let mut alone = self.alone.lock().await;
        if alone.is_none() {
            *alone = Some(PROXY.lock().await);
        }
        self.server.set_proxy(None).await;
        let upstream = blocking(servers::kafka_behind_proxy).await;
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            match FaultProxy::start(servers::kafka_proxied(), upstream.as_str()).await {
                Ok(proxy) => return proxy,
                Err(error) => assert!(Instant::now() < end, "the proxy's port: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
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
        capabilities.restart = may_restart();
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
        Arc::new(KafkaMessageBroker::connect(config).await.unwrap())
    }

    async fn fresh_topic(&self) -> String {
        fresh_topic("conformance")
    }

    async fn probe(&self, topic: &str) -> Probe {
        Probe::kafka(&blocking(servers::kafka).await, topic).await.unwrap()
    }

    async fn inject(&self, fault: Fault<'_>) {
        self.server.inject(fault).await;
    }
}

conformance!(KafkaHarness::new().await);
