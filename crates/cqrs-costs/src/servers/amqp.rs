//! RabbitMQ, against lapin with the same settings. Its reading and writing runs on the measured thread, too, on
//! both sides.

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, AmqpSubscription, BindingConfig, QueueConfig};
use cqrs_core::Subscription;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::{address, pipelined, publish_ours, unique};
use crate::consume::{Body, Text, service};
use crate::measured::{block_on, runtime};

const EXCHANGE: &str = "costs";
const PREFETCH: u16 = 256;

/// What the names of the queues that a subscription with the defaults declares add to that of its queue.
const BESIDE: [&str; 6] = ["", ".dead", ".quarantine", ".retry.10s", ".retry.60s", ".retry.300s"];

/// A queue that is bound by its name, deleted at the end with those of its subscription.
struct Queue {
    runtime: Runtime,
    name: String,
    broker: AmqpMessageBroker,
    raw: Channel,
    _connection: Connection,
}

impl Queue {
    fn with(count: usize) -> Self {
        let (runtime, name) = (runtime(), unique());
        let (broker, connection, raw) = runtime.block_on(async {
            let mut config = AmqpConfig::new(dsn());
            config.exchange.name = EXCHANGE.to_owned();
            config.queues.push(QueueConfig::new(&name));
            config.bindings.push(BindingConfig::new(&name, &name));
            let broker = AmqpMessageBroker::connect(config).await.expect("rabbitmq");
            publish_ours::<Text>(&broker, &name, count).await;
            let properties = ConnectionProperties::default();
            let connection = Connection::connect(&dsn(), properties).await.expect("rabbitmq");
            let raw = connection.create_channel().await.expect("a channel");
            (broker, connection, raw)
        });
        Self { runtime, name, broker, raw, _connection: connection }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.runtime.block_on(async {
            for name in BESIDE.map(|beside| format!("{}{beside}", self.name)) {
                let options = QueueDeleteOptions::default();
                self.raw.queue_delete(name.as_str().into(), options).await.expect("deleted");
            }
        });
    }
}

fn dsn() -> String {
    address("CQRS_TEST_AMQP")
}

pub(crate) fn consume(count: usize) {
    let queue = Queue::with(count);
    let options = AmqpSubscription::new().with_queue(&queue.name).with_passive(true);
    let subscription =
        Subscription::to(queue.name.as_str()).option(options).max_unsettled(PREFETCH.into());
    service::<Text>(&queue.runtime, queue.broker.clone(), subscription, count);
}

pub(crate) fn consume_raw(count: usize) {
    let queue = Queue::with(count);
    let (channel, name) = (&queue.raw, queue.name.as_str());
    block_on(&queue.runtime, async {
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.expect("a prefetch");
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(name.into(), "".into(), options, FieldTable::default());
        let mut consumer = consumer.await.expect("a consumer");
        for _ in 0..count {
            let delivery = consumer.next().await.expect("a message").expect("a delivery");
            Text::decode(&delivery.data);
            delivery.acker.ack(BasicAckOptions::default()).await.expect("acked");
        }
    });
}

pub(crate) fn publish(count: usize) {
    let queue = Queue::with(0);
    block_on(&queue.runtime, publish_ours::<Text>(&queue.broker, &queue.name, count));
}

pub(crate) fn publish_raw(count: usize) {
    let queue = Queue::with(0);
    let body = Text::bytes();
    block_on(&queue.runtime, async {
        let channel = &queue.raw;
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        pipelined(count, async |index| {
            let sent = channel.basic_publish(
                EXCHANGE.into(),
                queue.name.as_str().into(),
                options,
                &body,
                properties(index),
            );
            let confirm = sent.await.expect("written");
            confirm.map(|confirm| assert!(confirm.expect("a confirm").is_ack()))
        })
        .await;
    });
}

/// What ours sends with a message: id, time, and the key as a header.
fn properties(index: usize) -> BasicProperties {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let key = format!("key-{}", index % 100);
    let mut headers = FieldTable::default();
    headers.insert("message_key".into(), AMQPValue::LongString(key.into_bytes().into()));
    BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id(Uuid::now_v7().to_string().into())
        .with_timestamp(now.expect("after 1970").as_secs())
        .with_headers(headers)
}
