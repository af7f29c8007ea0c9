//! Access to Kafka by rdkafka alone.

#![allow(clippy::unwrap_used)] // A helper of tests fails the test.

use std::time::{Duration, Instant};

use cqrs_testkit::FaultProxy;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::servers;

/// A record in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The partition.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value; `None` is a tombstone.
    pub body: Option<Vec<u8>>,
    /// Names and values, in order.
    pub headers: Vec<(String, String)>,
    /// Milliseconds since 1970.
    pub timestamp: Option<i64>,
}

/// A record to write unchanged, also one that the code under test would never write.
#[derive(Debug, Clone, Default)]
pub struct Raw {
    /// The partition.
    pub partition: i32,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value; `None` is a tombstone.
    pub body: Option<Vec<u8>>,
    /// Names and values, in order; `None` is a null.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970; `None`: now.
    pub timestamp: Option<i64>,
}

impl Raw {
    /// A record for partition 0.
    pub fn new(key: &str, body: &str) -> Self {
        Self { key: Some(key.into()), body: Some(body.into()), ..Self::default() }
    }
}

/// Writes records and waits until the broker has them.
pub async fn write(topic: &str, records: Vec<Raw>) {
    write_with(topic, records, &[]).await;
}

/// As [`write()`], with settings of librdkafka's producer.
pub async fn write_with(topic: &str, records: Vec<Raw>, settings: &[(&str, &str)]) {
    let topic = topic.to_owned();
    let mut client = client();
    client.set("enable.idempotence", "true");
    for (name, value) in settings {
        client.set(*name, *value);
    }
    tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = client.create().unwrap();
        send(&producer, &topic, &records);
        producer.flush(Duration::from_secs(30)).unwrap();
    })
    .await
    .unwrap();
}

/// Writes records in a transaction of its own, and commits or aborts it.
pub async fn write_transaction(topic: &str, records: Vec<Raw>, commit: bool) {
    let topic = topic.to_owned();
    tokio::task::spawn_blocking(move || {
        let limit = Duration::from_secs(30);
        let id = format!("it-{}", Uuid::now_v7());
        let producer: BaseProducer = client().set("transactional.id", id).create().unwrap();
        producer.init_transactions(limit).unwrap();
        producer.begin_transaction().unwrap();
        send(&producer, &topic, &records);
        producer.flush(limit).unwrap();
        match commit {
            true => producer.commit_transaction(limit).unwrap(),
            false => producer.abort_transaction(limit).unwrap(),
        }
    })
    .await
    .unwrap();
}

fn send(producer: &BaseProducer, topic: &str, records: &[Raw]) {
    for raw in records {
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(raw.partition);
        record.key = raw.key.as_deref();
        record.payload = raw.body.as_deref();
        record.timestamp = raw.timestamp;
        let headers = raw.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: value.as_deref() })
        });
        record.headers = (!raw.headers.is_empty()).then_some(headers);
        while let Err((error, back)) = producer.send(record) {
            use rdkafka::types::RDKafkaErrorCode::QueueFull;
            assert_eq!(error.rdkafka_error_code(), Some(QueueFull), "{error}");
            producer.poll(Duration::from_millis(100));
            record = back;
        }
    }
}

/// The committed offset and metadata of a group for a partition.
pub async fn committed(group: &str, topic: &str, partition: i32) -> (Option<i64>, String) {
    let (group, topic) = (group.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = client().set("group.id", group).create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition(&topic, partition);
        let list = consumer.committed_offsets(list, Duration::from_secs(30)).unwrap();
        let elements = list.elements();
        let offset = match elements[0].offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        (offset, elements[0].metadata().to_owned())
    })
    .await
    .unwrap()
}

/// Commits for a group without members.
pub async fn commit(group: &str, topic: &str, partition: i32, offset: i64, metadata: &str) {
    use rdkafka::consumer::CommitMode;
    let (group, topic, metadata) = (group.to_owned(), topic.to_owned(), metadata.to_owned());
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = client().set("group.id", group).create().unwrap();
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(&topic, partition);
        element.set_offset(Offset::Offset(offset)).unwrap();
        element.set_metadata(metadata);
        consumer.commit(&list, CommitMode::Sync).unwrap();
    })
    .await
    .unwrap();
}

/// The proxy in front of Kafka's listener that advertises the proxy's address. There is one port for it,
/// which belongs to the holder of the guard.
pub async fn proxy() -> (FaultProxy, MutexGuard<'static, ()>) {
    let alone = proxy_port().await;
    (proxy_at(&alone).await, alone)
}

/// The port of the [`proxy`], without a proxy.
pub async fn proxy_port() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

/// The [`proxy`] on the port of the guard.
pub async fn proxy_at(alone: &MutexGuard<'static, ()>) -> FaultProxy {
    let upstream = tokio::task::spawn_blocking(servers::kafka_behind_proxy).await.unwrap();
    drop(proxy_listener(alone).await);
    FaultProxy::start(servers::kafka_proxied(), upstream).await.unwrap()
}

/// A listener of the test's own on the port of the guard.
pub async fn proxy_listener(_alone: &MutexGuard<'static, ()>) -> TcpListener {
    // Another process, or the proxy of the test before, may still use the port.
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        match TcpListener::bind(servers::kafka_proxied()).await {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < end, "the proxy's port: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A unique topic name. The broker creates the topic on first use, with 4 partitions.
pub fn fresh_topic(test: &str) -> String {
    format!("it-{test}-{}", Uuid::now_v7())
}

/// Creates a topic with these settings, and waits until the leaders of its partitions answer.
pub async fn create_topic(topic: &str, partitions: i32, settings: &[(&str, &str)]) {
    let admin: AdminClient<_> = client().create().unwrap();
    let replication = TopicReplication::Fixed(1);
    let mut new = NewTopic::new(topic, partitions, replication);
    for (name, value) in settings {
        new = new.set(name, value);
    }
    let made = admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
    made[0].as_ref().unwrap();
    let topic = topic.to_owned();
    let asking = tokio::task::spawn_blocking(move || {
        for id in 0..partitions {
            watermarks(admin.inner(), &topic, id);
        }
    });
    asking.await.unwrap();
}

/// The first offset and the end of a partition. The leader of a new one may not know of it yet.
fn watermarks<C: ClientContext>(client: &Client<C>, topic: &str, id: i32) -> (i64, i64) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        match client.fetch_watermarks(topic, id, Duration::from_secs(5)) {
            Ok(found) => return found,
            Err(error) => assert!(Instant::now() < end, "{topic} [{id}]: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The first offset and the end of a partition.
pub async fn ends(topic: &str, partition: i32) -> (i64, i64) {
    let topic = topic.to_owned();
    let asking = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = client().create().unwrap();
        watermarks(consumer.client(), &topic, partition)
    });
    asking.await.unwrap()
}

/// Adds partitions to a topic until it has `partitions`, and waits until their leaders answer.
pub async fn add_partitions(topic: &str, partitions: i32) {
    let admin: AdminClient<_> = client().create().unwrap();
    let more = NewPartitions::new(topic, usize::try_from(partitions).unwrap());
    let made = admin.create_partitions([&more], &AdminOptions::new()).await.unwrap();
    made[0].as_ref().unwrap();
    for partition in 0..partitions {
        ends(topic, partition).await;
    }
}

/// Deletes the records of a partition before `offset`, as retention does.
pub async fn trim(topic: &str, partition: i32, offset: i64) {
    let admin: AdminClient<_> = client().create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
    let trimmed = admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
    trimmed.elements()[0].error().unwrap();
    assert_eq!(ends(topic, partition).await.0, offset);
}

/// Deletes the topics whose names begin with `prefix`.
pub async fn delete_topics(prefix: &str) {
    let admin: AdminClient<_> = client().create().unwrap();
    let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(30)).unwrap();
    let names: Vec<_> = metadata.topics().iter().map(|topic| topic.name()).collect();
    let names: Vec<_> = names.into_iter().filter(|name| name.starts_with(prefix)).collect();
    if !names.is_empty() {
        admin.delete_topics(&names, &AdminOptions::new()).await.unwrap();
    }
}

/// All records of `topic`, by partition and offset. Its headers must be text.
pub async fn read_all(topic: &str) -> Vec<Record> {
    let records = read_raw(topic).await.into_iter();
    let text = |(key, value): (String, Option<Vec<u8>>)| {
        (key, String::from_utf8(value.expect("a header with a value")).expect("UTF-8"))
    };
    let record = |(offset, raw): (i64, Raw)| Record {
        partition: raw.partition,
        offset,
        key: raw.key,
        body: raw.body,
        headers: raw.headers.into_iter().map(text).collect(),
        timestamp: raw.timestamp,
    };
    records.map(record).collect()
}

/// All records of `topic` with their offsets, as they fixture.
pub async fn read_raw(topic: &str) -> Vec<(i64, Raw)> {
    let topic = topic.to_owned();
    tokio::task::spawn_blocking(move || read_blocking(&topic)).await.unwrap()
}

fn read_blocking(topic: &str) -> Vec<(i64, Raw)> {
    let limit = Duration::from_secs(30);
    let consumer: BaseConsumer = client()
        .set("group.id", format!("reader-{}", Uuid::now_v7()))
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), limit).unwrap();
    let mut assignment = TopicPartitionList::new();
    let mut left = 0;
    for partition in metadata.topics()[0].partitions() {
        let (low, high) = watermarks(consumer.client(), topic, partition.id());
        left += high - low;
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let end = Instant::now() + limit + Duration::from_millis(left.unsigned_abs());
    let mut records = Vec::new();
    while (records.len() as i64) < left {
        assert!(Instant::now() < end, "read {} of {left} records of {topic}", records.len());
        let Some(message) = consumer.poll(Duration::from_secs(1)) else { continue };
        let message = message.unwrap();
        let headers = message.headers();
        let headers = headers
            .iter()
            .flat_map(|headers| headers.iter())
            .map(|header| (header.key.to_owned(), header.value.map(Vec::from)));
        let raw = Raw {
            partition: message.partition(),
            key: message.key().map(Vec::from),
            body: message.payload().map(Vec::from),
            headers: headers.collect(),
            timestamp: message.timestamp().to_millis(),
        };
        records.push((message.offset(), raw));
    }
    records.sort_by_key(|(offset, raw)| (raw.partition, *offset));
    records
}

fn client() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers::kafka());
    config
}

/// The Java client's partition of a key: `toPositive(murmur2(key)) % partitions`
/// (`org.apache.kafka.clients.producer.internals.BuiltInPartitioner`).
pub fn java_partition(key: &[u8], partitions: i32) -> i32 {
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// `org.apache.kafka.common.utils.Utils.murmur2`.
pub fn murmur2(data: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c_u32 ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    if !tail.is_empty() {
        let rest = tail.iter().rev().fold(0, |rest, &byte| (rest << 8) | u32::from(byte));
        hash = (hash ^ rest).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    (hash ^ (hash >> 15)) as i32
}

#[cfg(test)]
mod tests {
    /// The vectors of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn murmur2_is_javas() {
        for (text, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(super::murmur2(text.as_bytes()), hash, "{text}");
        }
    }
}
