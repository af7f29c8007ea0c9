//! The conformance suite on RabbitMQ.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, AmqpSubscription, QueueKind};
use cqrs_core::Subscribe;
use cqrs_core::consume::{DeadLetterTarget, Delayed, SubscribeRequest, TopicSet};
use cqrs_testkit::conformance::{Adjusted, Capabilities, Fault, Harness, Setup};
use cqrs_testkit::{Probe, conformance};
use integration_tests::amqp;
use integration_tests::control::full;
use integration_tests::servers::connected;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};

use crate::server::{Server, blocking};

const EXCHANGE: &str = "cqrs-conformance";

struct AmqpHarness {
    kind: QueueKind,
    server: Server,
    /// The queues that the case has declared.
    queues: Arc<Mutex<BTreeSet<String>>>,
}

impl AmqpHarness {
    async fn new(kind: QueueKind) -> Self {
        Self { kind, server: Server::share("rabbitmq").await, queues: Arc::default() }
    }
}

/// The queues that a subscription declares.
fn queues_of(request: &SubscribeRequest) -> Vec<String> {
    let TopicSet::Named(topics) = &request.topics else { return Vec::new() };
    let mut names = Vec::new();
    for topic in topics {
        let queue = format!("{topic}.{}", request.group);
        for delay in request.retry.delays() {
            let shown = match delay.subsec_millis() {
                0 => format!("{}s", delay.as_secs()),
                _ => format!("{}ms", delay.as_millis()),
            };
            names.push(format!("{queue}.retry.{shown}"));
        }
        match &request.dead_letter {
            DeadLetterTarget::Named(name) => names.push(name.to_string()),
            _ => names.push(format!("{queue}.dead")),
        }
        names.extend([format!("{queue}.quarantine"), queue]);
    }
    names
}

impl Harness for AmqpHarness {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.unroutable = true;
        capabilities.identity_always = true;
        capabilities.content_type = true;
        capabilities.max_message_size = Some(AmqpConfig::default().max_message_size);
        capabilities.timestamp_unit = Duration::from_secs(1);
        capabilities.queues = true;
        capabilities.redelivered = true;
        capabilities.delayed = Delayed::Scheduled;
        capabilities.stall = true;
        capabilities.cut = true;
        capabilities.hang = true;
        capabilities.restart = full();
        capabilities
    }

    async fn connect(&self, setup: Setup) -> Arc<dyn Subscribe> {
        let dsn = self.server.amqp_dsn(setup.with_faults).await;
        let mut config = amqp::config_at(dsn, EXCHANGE);
        config.window_messages = setup.window_messages;
        config.window_bytes = setup.window_bytes;
        config.publish_timeout = setup.publish_timeout;
        let broker = connected(|| AmqpMessageBroker::connect(config.clone())).await;
        let (kind, queues) = (self.kind, Arc::clone(&self.queues));
        let adjust = move |request: &mut SubscribeRequest| {
            request.options.insert(AmqpSubscription::new().with_kind(kind));
            queues.lock().unwrap().extend(queues_of(request));
        };
        Arc::new(Adjusted::new(Arc::new(broker), adjust))
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

    async fn dead_letters(&self, name: &str) -> Probe {
        self.queues.lock().unwrap().insert(name.to_owned());
        Probe::amqp(&blocking(amqp::dsn).await, "", name).await.unwrap()
    }

    async fn publish_tombstone(&self, _topic: &str, _key: &str) {
        panic!("tombstones are not declared");
    }

    async fn inject(&self, fault: Fault<'_>) {
        self.server.inject(fault).await;
    }
}

impl Drop for AmqpHarness {
    /// Leaves no queues behind, not even after a case that failed.
    fn drop(&mut self) {
        let queues = std::mem::take(&mut *self.queues.lock().unwrap());
        if queues.is_empty() {
            return;
        }
        let deleting = async {
            let dsn = blocking(amqp::dsn).await;
            let connection = Connection::connect(&dsn, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            for queue in queues {
                let options = QueueDeleteOptions::default();
                channel.queue_delete(queue.as_str().into(), options).await?;
            }
            connection.close(200, "OK".into()).await?;
            Ok::<_, lapin::Error>(())
        };
        let deleted = tokio::task::block_in_place(|| {
            let runtime = tokio::runtime::Handle::current();
            // A task of its own, whose panic does not end the process when the case has failed.
            let deleting = runtime.spawn(deleting);
            let limit = Duration::from_secs(20);
            runtime.block_on(async { tokio::time::timeout(limit, deleting).await })
        });
        if !matches!(deleted, Ok(Ok(Ok(())))) {
            eprintln!("queues are left behind: {deleted:?}");
        }
    }
}

/// Publishing, which does not depend on the kind of queue.
mod producing {
    use super::*;

    conformance!(producing: AmqpHarness::new(QueueKind::Quorum).await);
}

/// Replicated queues, the default.
mod quorum {
    use super::*;

    conformance!(consuming: AmqpHarness::new(QueueKind::Quorum).await);
}

/// Queues on one node.
mod classic {
    use super::*;

    conformance!(consuming: AmqpHarness::new(QueueKind::Classic).await);
}
