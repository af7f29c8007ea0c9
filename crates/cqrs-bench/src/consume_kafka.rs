//! Consuming from Kafka, against a raw `StreamConsumer` with the same decoding, which stores each
//! record's offset after handling it and commits every second.

use std::sync::atomic::{AtomicUsize, Ordering};

use cqrs_core::{Event as _, Subscription};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::{BorrowedHeaders, Headers as _};
use rdkafka::{ClientConfig, Message};
use uuid::Uuid;

use crate::consume::{Benched, Codec, Meter, fill, ours};
use crate::measure::{Unit, compare};

pub(crate) async fn run(servers: &str, count: usize, rounds: usize, codec: Codec) {
    let topic = format!("bench-consume-{}", std::process::id());
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", servers).create().expect("an admin client");
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
    admin.create_topics([&new], &AdminOptions::new()).await.expect("a topic");
    let broker = KafkaMessageBroker::connect(KafkaConfig::new([servers])).await.expect("kafka");
    fill(&broker, &topic, count, codec).await;
    for concurrency in [1, 16] {
        let scenario =
            format!("consume-kafka: {codec:?}, concurrency {concurrency}, against a stream");
        let baseline = async || raw(servers, &topic, count, codec).await;
        let ours = async || {
            let subscription =
                Subscription::to(topic.as_str()).group(group()).concurrency(concurrency);
            ours(broker.clone(), codec.subscribe(subscription), count).await
        };
        compare(scenario, Unit::MessagesPerSecond, rounds, ours, baseline).await;
    }
    admin.delete_topics(&[&topic], &AdminOptions::new()).await.expect("deleted");
}

/// A new group each time: the same records again.
fn group() -> String {
    static GROUPS: AtomicUsize = AtomicUsize::new(0);
    format!("bench-{}-{}", std::process::id(), GROUPS.fetch_add(1, Ordering::Relaxed))
}

/// Reads what names an event that is no JSON: its id and its name, which ours hands to the handler.
fn name(headers: &BorrowedHeaders) {
    for header in headers.iter() {
        let text = std::str::from_utf8(header.value.unwrap_or_default()).expect("text");
        match header.key {
            "message_id" => assert!(!text.parse::<Uuid>().expect("an id").is_nil()),
            "event_name" => assert_eq!(text, Benched::NAME),
            _ => {}
        }
    }
}

async fn raw(servers: &str, topic: &str, count: usize, codec: Codec) -> f64 {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", group())
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "1000")
        .set("enable.auto.offset.store", "false")
        // As ours: with the default of a second it waits for itself now and then.
        .set("fetch.queue.backoff.ms", "10")
        .create()
        .expect("a raw consumer");
    consumer.subscribe(&[topic]).expect("subscribed");
    let meter = Meter::new(count);
    let counting = meter.clone();
    // In a task, as ours is: the main task of a runtime is woken in another way.
    let task = tokio::spawn(async move {
        loop {
            let record = consumer.recv().await.expect("a record");
            if let Some(headers) = record.headers() {
                name(headers);
            }
            let last = counting.count(&codec.decode(record.payload().expect("a body")));
            consumer.store_offset_from_message(&record).expect("stored");
            if last {
                break;
            }
        }
    });
    task.await.expect("the loop");
    meter.rate()
}
