//! The probe of the in-memory broker.

use std::time::Duration;

use cqrs_core::MemoryBroker;
use cqrs_core::broker::BoxFuture;
use cqrs_core::memory::{MemoryDelivery, MemorySubscriber};
use uuid::Uuid;

use super::{ProbeSource, StoredMessage};

#[derive(Debug)]
pub(super) struct MemoryProbe {
    broker: MemoryBroker,
    topic: String,
    group: String,
    subscriber: MemorySubscriber,
}

impl MemoryProbe {
    pub(super) fn new(broker: &MemoryBroker, topic: &str) -> Self {
        let group = format!("probe-{}", Uuid::now_v7());
        let subscriber = broker.subscriber(topic, &group);
        Self { broker: broker.clone(), topic: topic.to_owned(), group, subscriber }
    }
}

impl ProbeSource for MemoryProbe {
    fn next(&mut self, deadline: Duration) -> BoxFuture<'_, Option<StoredMessage>> {
        Box::pin(async move {
            let next = tokio::time::timeout(deadline, self.subscriber.recv());
            next.await.ok().flatten().map(received)
        })
    }
}

impl Drop for MemoryProbe {
    fn drop(&mut self) {
        self.broker.delete_group(&self.topic, &self.group);
    }
}

fn received(delivery: MemoryDelivery) -> StoredMessage {
    let message = delivery.message();
    let mut received = StoredMessage::new(&*message.topic, message.body.clone());
    received.key = message.key.clone();
    received.id = Some(message.id);
    received.name = Some(message.name.to_string()).filter(|name| !name.is_empty());
    received.headers = message.headers.clone();
    received.content_type = message.content_type.as_deref().map(str::to_owned);
    received.offset = i64::try_from(delivery.offset()).ok();
    received.partition = Some(0);
    received.timestamp = Some(message.timestamp);
    delivery.ack();
    received
}
