//! The probe of RabbitMQ.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use cqrs_core::broker::BoxFuture;
use cqrs_core::message::header;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties, Consumer};
use tokio::time::{Instant, timeout, timeout_at};

use super::{ProbeError, ProbeSource, StoredMessage};

const CONTACT: Duration = Duration::from_secs(10);
const BEAT: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct AmqpProbe {
    dsn: String,
    exchange: String,
    topic: String,
    link: Option<Link>,
    /// Received, its ack not yet written: kept for the next call when this one is cancelled.
    unacked: Option<StoredMessage>,
}

/// Closed when it is dropped.
#[derive(Debug)]
struct Link {
    consumer: Consumer,
    _connection: Connection,
}

impl AmqpProbe {
    pub(super) async fn open(dsn: &str, exchange: &str, topic: &str) -> Result<Self, ProbeError> {
        let link = timeout(CONTACT, Link::open(dsn, exchange, topic)).await;
        let what = || format!("{topic:?} behind exchange {exchange:?} on rabbitmq");
        let link = link.map_err(|elapsed| ProbeError::new(what(), elapsed))?;
        let link = link.map_err(|error| ProbeError::new(what(), error))?;
        let [dsn, exchange, topic] = [dsn, exchange, topic].map(str::to_owned);
        Ok(Self { dsn, exchange, topic, link: Some(link), unacked: None })
    }

    async fn receive(&mut self) -> StoredMessage {
        loop {
            if let Some(received) = self.unacked.take() {
                return received;
            }
            if let Some(link) = &mut self.link
                && let Some(Ok(delivery)) = link.consumer.next().await
            {
                // When the ack is lost with the connection, the message is redelivered.
                let acker = delivery.acker.clone();
                self.unacked = Some(received(delivery));
                // `Ok(false)` is what lapin says of a delivery whose channel is gone.
                if !matches!(acker.ack(BasicAckOptions::default()).await, Ok(true)) {
                    (self.link, self.unacked) = (None, None);
                }
                continue;
            }
            self.link = Link::open(&self.dsn, &self.exchange, &self.topic).await.ok();
            if self.link.is_none() {
                tokio::time::sleep(BEAT).await;
            }
        }
    }
}

impl ProbeSource for AmqpProbe {
    fn next(&mut self, deadline: Duration) -> BoxFuture<'_, Option<StoredMessage>> {
        Box::pin(async move {
            let received = timeout_at(Instant::now() + deadline, self.receive()).await.ok();
            assert!(
                received.is_some() || self.link.is_some(),
                "the probe of {:?} lost its connection and cannot make it again",
                self.topic
            );
            received
        })
    }
}

impl Link {
    async fn open(dsn: &str, exchange: &str, topic: &str) -> Result<Self, lapin::Error> {
        let properties = ConnectionProperties::default().with_connection_name("cqrs-probe".into());
        let connection = Connection::connect(dsn, properties).await?;
        // A queue that is there may have been declared in another way, which is fine with us. Asking for
        // one that is not costs the channel.
        let mut channel = connection.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let none = FieldTable::default;
        if channel.queue_declare(topic.into(), passive, none()).await.is_err() {
            channel = connection.create_channel().await?;
            let durable = QueueDeclareOptions { durable: true, ..Default::default() };
            channel.queue_declare(topic.into(), durable, none()).await?;
        }
        if !exchange.is_empty() {
            let options = QueueBindOptions::default();
            channel
                .queue_bind(topic.into(), exchange.into(), topic.into(), options, none())
                .await?;
        }
        channel.basic_qos(1_000, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(topic.into(), "".into(), options, none()).await?;
        Ok(Self { consumer, _connection: connection })
    }
}

fn received(delivery: Delivery) -> StoredMessage {
    let mut received = StoredMessage::new(delivery.routing_key.to_string(), delivery.data);
    let properties = delivery.properties;
    for (name, value) in properties.headers().iter().flatten() {
        match (name.as_str(), value) {
            (header::KEY, AMQPValue::ByteArray(key)) => {
                received.key = Some(Bytes::copy_from_slice(key.as_slice()));
            }
            (name, AMQPValue::LongString(value)) => received.add_header(name, &value.to_string()),
            (name, AMQPValue::ByteArray(value)) => {
                received.add_bytes_header(name, value.as_slice());
            }
            (name, value) => received.add_header(name, &format!("{value:?}")),
        }
    }
    // Properties stand above headers of the same meaning.
    let text = |property: &Option<lapin::types::ShortString>| {
        property.as_ref().map(std::string::ToString::to_string)
    };
    if let Some(id) = text(properties.message_id()) {
        received.id = id.parse().ok();
    }
    received.name = text(properties.kind()).or(received.name);
    received.content_type = text(properties.content_type()).or(received.content_type);
    received.timestamp =
        properties.timestamp().map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
    received
}
