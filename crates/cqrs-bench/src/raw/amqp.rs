//! Raw lapin: channels that publish with confirms, and a consumer that acks each message.

use std::future::Future;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use cqrs_core::Event as _;
use cqrs_core::message::{content_type, header};
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use uuid::Uuid;

use crate::event::{Benched, Codec, Template};
use crate::publish::Publisher;

pub(crate) const EXCHANGE: &str = "bench";
pub(crate) const PREFETCH: u16 = 256;

pub(crate) async fn connect(dsn: &str) -> Connection {
    Connection::connect(dsn, ConnectionProperties::default()).await.expect("a raw connection")
}

/// What the names of the queues that a subscription with the defaults declares add to that of its queue.
const BESIDE: [&str; 6] = ["", ".dead", ".quarantine", ".retry.10s", ".retry.60s", ".retry.300s"];

/// Deletes queues with those that were declared for their subscriptions. They need not exist.
pub(crate) async fn delete_queues(dsn: &str, names: &[&str]) {
    let connection = connect(dsn).await;
    let channel = connection.create_channel().await.expect("a channel");
    for name in names.iter().flat_map(|name| BESIDE.map(|beside| format!("{name}{beside}"))) {
        let options = QueueDeleteOptions::default();
        channel.queue_delete(name.as_str().into(), options).await.expect("a deleted queue");
    }
}

/// Drops what an earlier round left in a queue: another framework's program may end without its last acks.
pub(crate) async fn purge(connection: &Connection, queue: &str) {
    let channel = connection.create_channel().await.expect("a channel");
    let options = QueuePurgeOptions::default();
    channel.queue_purge(queue.into(), options).await.expect("an empty queue");
}

/// What the raw client sends with each message.
#[derive(Debug, Clone, Copy)]
enum Frame {
    /// What we send: id, time, name, content type, and the key as a header.
    Same,
    /// The body and the delivery mode, so less than a consumer of ours could work with.
    Bare,
}

/// Channels of one connection, as many as ours has.
#[derive(Clone)]
pub(crate) struct RawChannels {
    channels: Arc<[Channel]>,
    topic: Arc<str>,
    template: Template,
    frame: Frame,
}

impl RawChannels {
    pub(crate) async fn open(
        dsn: &str,
        channels: u16,
        topic: Arc<str>,
        template: Template,
    ) -> Self {
        let connection = connect(dsn).await;
        let mut opened = Vec::new();
        for _ in 0..channels {
            let channel = connection.create_channel().await.expect("a raw channel");
            channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
            opened.push(channel);
        }
        Self { channels: opened.into(), topic, template, frame: Frame::Same }
    }

    /// The same channels without the properties of ours.
    pub(crate) fn bare(&self) -> Self {
        Self { frame: Frame::Bare, ..self.clone() }
    }

    fn properties(&self, id: Option<Uuid>, key: &str) -> BasicProperties {
        let properties = BasicProperties::default().with_delivery_mode(2);
        if let Frame::Bare = self.frame {
            return properties;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let id = id.unwrap_or_else(Uuid::now_v7).to_string();
        let mut headers = FieldTable::default();
        headers.insert(header::KEY.into(), AMQPValue::LongString(key.into()));
        if self.template.names_in_headers() {
            let id = AMQPValue::LongString(id.as_str().into());
            headers.insert(header::MESSAGE_ID.into(), id);
            let name = AMQPValue::LongString(Benched::NAME.into());
            headers.insert(header::EVENT_NAME.into(), name);
        }
        let properties = match self.template.codec() {
            Codec::Bytes => properties,
            Codec::Json => properties
                .with_type(Benched::NAME.into())
                .with_content_type(content_type::JSON.into()),
            Codec::Protobuf => properties
                .with_type(Benched::NAME.into())
                .with_content_type(content_type::PROTOBUF.into()),
        };
        properties.with_message_id(id.into()).with_timestamp(now.as_secs()).with_headers(headers)
    }
}

impl Publisher for RawChannels {
    async fn send(&self, number: usize) -> impl Future<Output = ()> + Send {
        let channel = &self.channels[number % self.channels.len()];
        let raw = self.template.raw(number);
        let properties = self.properties(raw.id, &Template::key(number));
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let (exchange, routing_key) = (EXCHANGE.into(), (&*self.topic).into());
        let sent =
            channel.basic_publish(exchange, routing_key, options, &raw.body, properties).await;
        let confirm = sent.expect("a written message");
        async move {
            assert!(confirm.await.expect("a confirm").is_ack());
        }
    }
}

/// Decodes, handles and acks the messages of `queue` until `is_last` says so.
pub(crate) async fn consume(
    channel: Channel,
    queue: String,
    template: Template,
    mut is_last: impl FnMut(Benched) -> bool + Send,
) {
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.expect("a prefetch");
    let options = BasicConsumeOptions::default();
    let mut consumer = channel
        .basic_consume(queue.into(), "".into(), options, FieldTable::default())
        .await
        .expect("a consumer");
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery.expect("a delivery");
        let is_last = is_last(template.decode(&delivery.data));
        delivery.acker.ack(BasicAckOptions::default()).await.expect("an ack");
        if is_last {
            break;
        }
    }
    // Before the close: otherwise the server drops acks that it has not processed.
    channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await.expect("cancelled");
    channel.close(200, "done".into()).await.expect("closed");
}
