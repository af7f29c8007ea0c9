//! Raw rdkafka: a topic of the benchmark, a producer, and a consumer that stores each record's offset after
//! handling it.

use std::future::Future;
use std::hint::black_box;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cqrs_core::event::Timestamp;
use cqrs_core::message::header;
use cqrs_core::{Event as _, NotificationEvent};
use futures_util::FutureExt as _;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::{BorrowedMessage, Header, Headers as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Message};
use uuid::Uuid;

use crate::event::{Benched, Template};
use crate::publish::Publisher;

/// A topic of one case.
pub(crate) struct Topic {
    admin: AdminClient<DefaultClientContext>,
    name: Arc<str>,
}

impl Topic {
    pub(crate) async fn create(servers: &str, what: &str, partitions: i32) -> Self {
        let name: Arc<str> = format!("bench-{what}-{}", unique()).into();
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", servers).create().expect("an admin");
        let new = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        admin.create_topics([&new], &AdminOptions::new()).await.expect("a topic");
        Self { admin, name }
    }

    pub(crate) fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// Runs `measure`, and deletes the topic, also after a panic.
    pub(crate) async fn deleted_after(&self, measure: impl Future<Output = ()>) {
        let measured = AssertUnwindSafe(measure).catch_unwind().await;
        let deleted = self.admin.delete_topics(&[&*self.name], &AdminOptions::new()).await;
        if let Err(panic) = measured {
            std::panic::resume_unwind(panic);
        }
        deleted.expect("a deleted topic");
    }
}

/// A name that no other run and no earlier call has.
pub(crate) fn unique() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A raw producer with the settings of ours.
#[derive(Clone)]
pub(crate) struct RawProducer {
    producer: FutureProducer,
    topic: Arc<str>,
    template: Template,
}

impl RawProducer {
    pub(crate) fn new(servers: &str, topic: Arc<str>, template: Template) -> Self {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", servers)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("max.in.flight.requests.per.connection", "5")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "5")
            .set("batch.size", "1000000")
            .set("message.timeout.ms", "30000")
            .create()
            .expect("a raw producer");
        Self { producer, topic, template }
    }
}

impl Publisher for RawProducer {
    async fn send(&self, number: usize) -> impl Future<Output = ()> + Send {
        let (raw, key) = (self.template.raw(number), Template::key(number));
        let mut record = FutureRecord::to(&self.topic).key(key.as_str()).payload(&raw.body[..]);
        if let Some(id) = raw.id.filter(|_| self.template.names_in_headers()) {
            record = record.headers(headers(id));
        }
        let sent = self.producer.send_result(record).map_err(|(error, _)| error);
        let confirm = sent.expect("a place in the queue");
        async move {
            let stored = confirm.await.expect("a live producer").map_err(|(error, _)| error);
            stored.expect("a stored record");
        }
    }
}

/// What names an event that is no JSON.
fn headers(id: Uuid) -> OwnedHeaders {
    let id = id.to_string();
    OwnedHeaders::new_with_capacity(2)
        .insert(Header { key: header::EVENT_NAME, value: Some(Benched::NAME) })
        .insert(Header { key: header::MESSAGE_ID, value: Some(&id) })
}

/// A raw consumer of `topic`, in a group of its own, from the beginning.
pub(crate) fn consumer(servers: &str, topic: &str) -> StreamConsumer {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", format!("bench-{}", unique()))
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "1000")
        .set("enable.auto.offset.store", "false")
        // As ours: with the default of a second it waits for itself now and then.
        .set("fetch.queue.backoff.ms", "10")
        .create()
        .expect("a raw consumer");
    consumer.subscribe(&[topic]).expect("subscribed");
    consumer
}

/// The part of a record that a raw consumer reads.
#[derive(Clone, Copy)]
pub(crate) enum Reads {
    /// The whole event, as ours. A JSON body is all of it. In Protobuf its id and name are in headers, and its time is
    /// the record's.
    Event,
    /// The payload, without a look at the headers.
    Payload,
}

/// Decodes and handles records until `is_last` says so; stores each offset.
pub(crate) async fn consume(
    consumer: StreamConsumer,
    template: Template,
    reads: Reads,
    mut is_last: impl FnMut(Benched) -> bool + Send,
) {
    loop {
        let record = consumer.recv().await.expect("a record");
        let payload = template.decode(record.payload().expect("a body"));
        let is_last = match reads {
            Reads::Event if template.names_in_headers() => {
                is_last(black_box(event(&record, payload)).payload)
            }
            Reads::Event | Reads::Payload => is_last(payload),
        };
        consumer.store_offset_from_message(&record).expect("stored");
        if is_last {
            break;
        }
    }
}

/// The event of a record that is no JSON.
fn event(record: &BorrowedMessage<'_>, payload: Benched) -> NotificationEvent<Benched> {
    let (mut id, mut name) = (None, None);
    for header in record.headers().expect("headers").iter() {
        match header.key {
            header::MESSAGE_ID => id = header.value,
            header::EVENT_NAME => name = header.value,
            _ => {}
        }
    }
    assert_eq!(name, Some(Benched::NAME.as_bytes()));
    let id = Uuid::try_parse_ascii(id.expect("an id")).expect("a UUID");
    let millis = record.timestamp().to_millis().expect("a time");
    let time = Timestamp::from_unix_micros(millis * 1_000);
    // The topic that the record came from, as ours.
    let topic = record.topic().to_owned();
    NotificationEvent::from_parts(payload, id, time, Benched::NAME, topic)
}
