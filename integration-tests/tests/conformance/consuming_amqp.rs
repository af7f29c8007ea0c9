//! The RabbitMQ source under the consuming half of the conformance suite.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_amqp::{AmqpMessageBroker, AmqpSubscription, QueueKind};
use cqrs_core::Subscribe;
use cqrs_core::consume::{DeadLetterTarget, Delayed, SubscribeRequest, TopicSet};
use cqrs_testkit::conformance::{
    Adjusted, ConsumingCapabilities, ConsumingFault, ConsumingHarness,
};
use cqrs_testkit::{Probe, consuming_conformance};
use integration_tests::amqp;
use lapin::options::QueueDeleteOptions;
use lapin::{Connection, ConnectionProperties};

use crate::server::{Server, blocking};

const EXCHANGE: &str = "cqrs-conformance";

type Queues = Arc<Mutex<BTreeSet<String>>>;

struct AmqpHarness {
    kind: QueueKind,
    server: Server,
    /// What the case has declared.
    queues: Queues,
}

impl AmqpHarness {
    async fn new(kind: QueueKind) -> Self {
        Self { kind, server: Server::share("rabbitmq").await, queues: Queues::default() }
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

impl ConsumingHarness for AmqpHarness {
    fn capabilities(&self) -> ConsumingCapabilities {
        let mut capabilities = ConsumingCapabilities::default();
        capabilities.content_type = true;
        capabilities.queues = true;
        capabilities.redelivered = true;
        capabilities.timestamp_unit = Duration::from_secs(1);
        capabilities.delayed = Delayed::Scheduled;
        capabilities.cut = true;
        capabilities.mute = true;
        capabilities
    }

    async fn connect(&self, with_faults: bool) -> Arc<dyn Subscribe> {
        let config = amqp::config_at(self.server.amqp_dsn(with_faults).await, EXCHANGE);
        let broker = AmqpMessageBroker::connect(config).await.unwrap();
        let (kind, queues) = (self.kind, Arc::clone(&self.queues));
        let adjust = move |request: &mut SubscribeRequest| {
            request.options.insert(AmqpSubscription::new().with_kind(kind));
            queues.lock().unwrap().extend(queues_of(request));
        };
        Arc::new(Adjusted::new(Arc::new(broker), adjust))
    }

    async fn fresh_topic(&self) -> String {
        amqp::fresh("consuming")
    }

    async fn dead_letters(&self, name: &str) -> Probe {
        self.queues.lock().unwrap().insert(name.to_owned());
        Probe::amqp(&blocking(amqp::dsn).await, "", name).await.unwrap()
    }

    async fn publish_tombstone(&self, _topic: &str, _key: &str) {
        panic!("tombstones are not declared");
    }

    async fn inject(&self, fault: ConsumingFault) {
        self.server.inject_consuming(fault).await;
    }
}

impl Drop for AmqpHarness {
    /// Leaves no queues behind, not even after a case that failed.
    fn drop(&mut self) {
        let queues = std::mem::take(&mut *self.queues.lock().unwrap());
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

/// Replicated, the default.
mod quorum {
    use super::*;

    consuming_conformance!(AmqpHarness::new(QueueKind::Quorum).await);
}

/// On one node.
mod classic {
    use super::*;

    consuming_conformance!(AmqpHarness::new(QueueKind::Classic).await);
}
