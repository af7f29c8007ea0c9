//! [`QueueTest`]: the exchange and the queue of a test, with a broker value; used by tests of the RabbitMQ
//! source.

use cqrs_amqp::AmqpMessageBroker;
use cqrs_core::consume::SubscribeRequest;
use cqrs_testkit::{FaultProxy, TestSource};
use lapin::BasicProperties;

use super::{Raw, fresh, through_proxy};
use crate::consuming;

/// The topic of a test, which is its exchange, and the queue of its group `g`.
#[derive(Debug)]
pub struct QueueTest {
    /// Of the topic and of the exchange.
    pub name: String,
    /// The queue of the group, which the first [`open`](Self::open) declares.
    pub queue: String,
    /// Past the proxy.
    pub raw: Raw,
    /// Between the broker value and the server.
    pub proxy: FaultProxy,
    /// Connected.
    pub broker: AmqpMessageBroker,
}

impl QueueTest {
    /// Declares the exchange.
    pub async fn new(test: &str) -> Self {
        let name = fresh(test);
        let (proxy, broker) = through_proxy(&name).await;
        Self { queue: format!("{name}.g"), raw: Raw::connect().await, name, proxy, broker }
    }

    /// Opens a source of the group.
    pub async fn open(&self, change: impl FnOnce(&mut SubscribeRequest)) -> TestSource {
        consuming::open(&self.broker, &[&self.name], "g", change).await
    }

    /// Publishes bodies straight to the queue.
    pub async fn put(&self, bodies: impl IntoIterator<Item: ToString>) {
        self.put_to(&self.queue, bodies).await;
    }

    /// Publishes bodies straight to another queue.
    pub async fn put_to(&self, queue: &str, bodies: impl IntoIterator<Item: ToString>) {
        for body in bodies {
            let body = body.to_string();
            self.raw.put(queue, body.as_bytes(), BasicProperties::default()).await;
        }
    }

    /// Publishes a body to the exchange.
    pub async fn publish(&self, body: &[u8], properties: BasicProperties) {
        self.raw.publish(&self.name, &self.name, body, properties).await;
    }

    /// Messages ready in the queue.
    pub async fn count(&self) -> u32 {
        self.raw.count(&self.queue).await
    }

    /// A queue that belongs to the queue, such as `dead` and `retry.1s`.
    pub fn queue_of(&self, part: &str) -> String {
        format!("{}.{part}", self.queue)
    }

    /// Deletes everything of the test.
    pub async fn clean(self) {
        self.raw.clean(&[&self.queue], &[&self.name]).await;
    }
}
