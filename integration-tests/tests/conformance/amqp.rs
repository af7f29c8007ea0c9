//! The RabbitMQ broker under the conformance suite.

use std::sync::Arc;
use std::time::Duration;

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker};
use cqrs_core::MessageBroker;
use cqrs_testkit::conformance::{Capabilities, Fault, Harness, Setup};
use cqrs_testkit::{Probe, conformance};
use integration_tests::amqp;
use integration_tests::control::full;
use integration_tests::servers::connected;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};

use crate::server::{Server, blocking};

const EXCHANGE: &str = "cqrs-conformance";

struct AmqpHarness {
    server: Server,
}

impl AmqpHarness {
    async fn new() -> Self {
        Self { server: Server::share("rabbitmq").await }
    }
}

impl Harness for AmqpHarness {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.unroutable = true;
        capabilities.identity_always = true;
        capabilities.content_type = true;
        capabilities.max_message_bytes = Some(AmqpConfig::default().max_message_bytes);
        capabilities.timestamp_unit = Duration::from_secs(1);
        capabilities.stall = true;
        capabilities.cut = true;
        capabilities.restart = full();
        capabilities
    }

    async fn connect(&self, setup: Setup) -> Arc<dyn MessageBroker> {
        let dsn = self.server.amqp_dsn(setup.with_faults).await;
        let mut config = amqp::config_at(dsn, EXCHANGE);
        config.window_messages = setup.window_messages;
        config.window_bytes = setup.window_bytes;
        config.publish_timeout = setup.publish_timeout;
        Arc::new(connected(|| AmqpMessageBroker::connect(config.clone())).await)
    }

    async fn fresh_topic(&self) -> String {
        amqp::fresh("conformance")
    }

    /// The queue deletes itself some time after the case.
    async fn probe(&self, topic: &str) -> Probe {
        let dsn = blocking(amqp::dsn).await;
        let connection = Connection::connect(&dsn, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let mut arguments = FieldTable::default();
        arguments.insert("x-expires".into(), AMQPValue::LongInt(300_000));
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(topic.into(), durable, arguments).await.unwrap();
        Probe::amqp(&dsn, EXCHANGE, topic).await.unwrap()
    }

    async fn inject(&self, fault: Fault<'_>) {
        self.server.inject(fault).await;
    }
}

conformance!(AmqpHarness::new().await);
