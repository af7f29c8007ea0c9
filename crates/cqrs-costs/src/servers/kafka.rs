//! Kafka, against rdkafka's `StreamConsumer` and `FutureProducer` with the same settings.

use std::hint::black_box;

use cqrs_core::event::Timestamp;
use cqrs_core::message::header;
use cqrs_core::{NotificationEvent, Subscription};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
use futures_util::FutureExt as _;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Message as _};
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::{address, pipelined, publish_ours, unique};
use crate::consume::{Body, Text, service};
use crate::measured::{block_on, runtime};

/// A topic of one partition, deleted at the end.
struct Topic {
    runtime: Runtime,
    name: String,
    broker: KafkaMessageBroker,
}

impl Topic {
    fn with<B: Body>(count: usize) -> Self {
        let runtime = runtime();
        let (name, broker) = runtime.block_on(async {
            let name = unique();
            let new = NewTopic::new(&name, 1, TopicReplication::Fixed(1));
            admin().create_topics([&new], &AdminOptions::new()).await.expect("a topic");
            let config = KafkaConfig::new([servers()]);
            let broker = KafkaMessageBroker::connect(config).await.expect("kafka");
            publish_ours::<B>(&broker, &name, count).await;
            (name, broker)
        });
        Self { runtime, name, broker }
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        let deleted = async {
            admin().delete_topics(&[&self.name], &AdminOptions::new()).await.expect("deleted")
        };
        self.runtime.block_on(deleted);
    }
}

fn servers() -> String {
    address("CQRS_TEST_KAFKA")
}

fn admin() -> AdminClient<DefaultClientContext> {
    client().create().expect("an admin client")
}

fn client() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers());
    config
}

pub(crate) fn consume<B: Body>(count: usize) {
    let topic = Topic::with::<B>(count);
    let subscription = Subscription::to(topic.name.as_str());
    service::<B>(&topic.runtime, topic.broker.clone(), subscription, count);
}

/// `read` decodes a record.
pub(crate) fn consume_raw<B: Body>(count: usize, read: fn(&BorrowedMessage<'_>)) {
    let topic = Topic::with::<B>(count);
    // The client spawns a task.
    let _entered = topic.runtime.enter();
    let consumer: StreamConsumer = client()
        .set("group.id", "costs")
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.offset.store", "false")
        .create()
        .expect("a raw consumer");
    consumer.subscribe(&[&topic.name]).expect("subscribed");
    block_on(&topic.runtime, async {
        for _ in 0..count {
            let record = consumer.recv().await.expect("a record");
            read(&record);
            consumer.store_offset_from_message(&record).expect("stored");
        }
    });
}

/// Decodes the body, without a look at the headers.
pub(crate) fn read_body<B: Body>(record: &BorrowedMessage<'_>) {
    black_box(B::decode(record.payload().expect("a body")));
}

/// Decodes an event whose id and name are in headers, and whose time is the record's, as ours does.
pub(crate) fn read_event<B: Body>(record: &BorrowedMessage<'_>) {
    let (mut id, mut name) = (None, None);
    for header in record.headers().expect("headers").iter() {
        match header.key {
            header::MESSAGE_ID => id = header.value,
            header::EVENT_NAME => name = header.value,
            _ => {}
        }
    }
    assert_eq!(name, Some(B::NAME.as_bytes()));
    let id = Uuid::try_parse_ascii(id.expect("an id")).expect("a UUID");
    let millis = record.timestamp().to_millis().expect("a time");
    let time = Timestamp::from_unix_micros(millis * 1_000);
    let payload = B::decode(record.payload().expect("a body"));
    // The topic that the record came from, as ours.
    let topic = record.topic().to_owned();
    black_box(NotificationEvent::from_parts(payload, id, time, B::NAME, topic));
}

pub(crate) fn publish(count: usize) {
    let topic = Topic::with::<Text>(0);
    block_on(&topic.runtime, publish_ours::<Text>(&topic.broker, &topic.name, count));
}

pub(crate) fn publish_raw(count: usize) {
    let topic = Topic::with::<Text>(0);
    let producer: FutureProducer = client()
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "5")
        .set("batch.size", "1000000")
        .create()
        .expect("a raw producer");
    let body = Text::bytes();
    block_on(
        &topic.runtime,
        pipelined(count, async |index| {
            let key = format!("key-{}", index % 100);
            let record = FutureRecord::to(&topic.name).key(&key).payload(&body);
            let sent = producer.send_result(record).map_err(|(error, _)| error).expect("queued");
            sent.map(|stored| {
                let _place = stored.expect("a live producer").expect("stored");
            })
        }),
    );
}
