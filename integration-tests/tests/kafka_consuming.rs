//! The Kafka consumer against a real broker, at the level of the source: what comes, what comes again,
//! what is committed, and what a rebalance does.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cqrs_core::consume::{
    Delayed, Settle, Source, SourceDelivery, SourceStatus, StatusReporter, SubscribeErrorKind,
    SubscribeRequest, TopicSet,
};
use cqrs_core::{
    DeadLetter, DeadLetterReason, MessageBroker, Retry, RetryState, StartAt, Subscribe, Timestamp,
};
use cqrs_kafka::{
    Assignor, ErrorKind, KafkaConfig, KafkaError, KafkaMessageBroker, KafkaSubscription, RetryMode,
    Sasl, Tls,
};
use integration_tests::kafka::{
    Raw, commit, committed, create_topic, fresh_topic, read_raw, write, write_transaction,
};
use integration_tests::servers;
use tokio::sync::watch;

/// Longer than a rebalance takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// A subscription that is open.
struct Member {
    source: Box<dyn Source>,
    status: watch::Receiver<SourceStatus>,
    broker: KafkaMessageBroker,
}

impl Member {
    async fn open(request: SubscribeRequest, status: watch::Receiver<SourceStatus>) -> Self {
        let broker = KafkaMessageBroker::new(KafkaConfig::new([servers::kafka()])).unwrap();
        let opened = tokio::time::timeout(PATIENCE, broker.subscribe(request));
        let source = opened.await.expect("it opens in time").unwrap();
        Self { source, status, broker }
    }

    /// The next delivery.
    async fn next(&mut self) -> SourceDelivery {
        self.next_within(PATIENCE).await.expect("a delivery in time")
    }

    async fn next_within(&mut self, patience: Duration) -> Option<SourceDelivery> {
        let next = poll_fn(|cx| self.source.poll_next(cx));
        tokio::time::timeout(patience, next).await.ok().map(|next| next.unwrap().unwrap())
    }

    /// The next ones, by offset, all begun.
    async fn take(&mut self, count: usize) -> Vec<SourceDelivery> {
        let mut all = Vec::new();
        while all.len() < count {
            let mut delivery = self.next().await;
            assert!(delivery.settle.begin());
            all.push(delivery);
        }
        all
    }

    /// Acks the next ones and tells their bodies.
    async fn handle(&mut self, count: usize) -> Vec<String> {
        let mut bodies = Vec::new();
        for mut delivery in self.take(count).await {
            bodies.push(body(&delivery));
            delivery.settle.ack().await.unwrap();
        }
        bodies
    }

    async fn consuming(&mut self) {
        let consuming = self.status.wait_for(|status| *status == SourceStatus::Consuming);
        tokio::time::timeout(PATIENCE, consuming).await.expect("it consumes in time").unwrap();
    }

    async fn close(self) {
        self.source.close(Duration::from_secs(10)).await.unwrap();
        self.broker.shutdown(Duration::from_secs(5)).await;
    }
}

fn body(delivery: &SourceDelivery) -> String {
    String::from_utf8(delivery.message.bytes().to_vec()).unwrap()
}

fn offset(delivery: &SourceDelivery) -> i64 {
    delivery.message.offset.unwrap()
}

/// Fast for tests; a group joins without the broker's initial delay only after its first member.
fn options() -> KafkaSubscription {
    KafkaSubscription::new()
        .with_commit_interval(Duration::from_millis(200))
        .with_raw("topic.metadata.refresh.interval.ms", "1000")
}

fn request(
    topic: &str,
    group: &str,
    options: KafkaSubscription,
) -> (SubscribeRequest, watch::Receiver<SourceStatus>) {
    request_of(TopicSet::Named(vec![topic.into()]), group, options)
}

fn request_of(
    topics: TopicSet,
    group: &str,
    options: KafkaSubscription,
) -> (SubscribeRequest, watch::Receiver<SourceStatus>) {
    let (reporter, status) = StatusReporter::new();
    let mut request = SubscribeRequest::new(topics, group, reporter);
    request.options.insert(options);
    (request, status)
}

async fn join(topic: &str, group: &str) -> Member {
    let (request, status) = request(topic, group, options());
    Member::open(request, status).await
}

/// A topic with records `0`, `1`, … of one key, and a group for it.
async fn prepared(test: &str, partitions: i32, records: usize) -> (String, String) {
    let topic = fresh_topic(test);
    create_topic(&topic, partitions, &[]).await;
    write(&topic, (0..records).map(|n| Raw::new("key", &n.to_string())).collect()).await;
    let group = format!("g-{topic}");
    (topic, group)
}

/// Waits until the group committed this offset of partition 0; tells the metadata.
async fn wait_for_commit(group: &str, topic: &str, offset: i64) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let (found, metadata) = committed(group, topic, 0).await;
        if found == Some(offset) {
            return metadata;
        }
        assert!(Instant::now() < end, "committed {found:?}, not {offset}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn what_was_acked_does_not_come_again_and_the_rest_does() {
    let (topic, group) = prepared("ack", 1, 5).await;
    let mut member = join(&topic, &group).await;
    let mut deliveries = member.take(5).await;
    assert_eq!(deliveries.iter().map(body).collect::<Vec<_>>(), ["0", "1", "2", "3", "4"]);
    let first = &deliveries[0].message;
    assert_eq!((&*first.topic, first.partition, first.offset), (&*topic, Some(0), Some(0)));
    assert_eq!(first.key.as_deref(), Some(&b"key"[..]));
    assert!(!first.redelivered && first.timestamp.is_some());
    // 2 is not done: what comes after it is not committed, however much of it is done.
    for index in [4, 0, 1, 3] {
        deliveries[index].settle.ack().await.unwrap();
    }
    assert_eq!(wait_for_commit(&group, &topic, 2).await, "cqrs1");
    member.close().await;
    drop(deliveries);
    assert_eq!(committed(&group, &topic, 0).await.0, Some(2));

    let mut member = join(&topic, &group).await;
    assert_eq!(member.handle(3).await, ["2", "3", "4"]);
    member.close().await;
    assert_eq!(committed(&group, &topic, 0).await.0, Some(5), "the close commits");
}

#[tokio::test]
async fn a_dropped_delivery_comes_again_before_what_follows_it() {
    let (topic, group) = prepared("drop", 1, 3).await;
    let mut member = join(&topic, &group).await;
    let first = member.next().await;
    drop(first);
    let again = member.next().await;
    assert_eq!((body(&again), again.message.redelivered), ("0".into(), true));
    drop(again);
    assert_eq!(member.handle(3).await, ["0", "1", "2"]);
    member.close().await;
    assert_eq!(committed(&group, &topic, 0).await.0, Some(3));
}

#[tokio::test]
async fn a_source_that_was_dropped_leaves_and_commits() {
    let (topic, group) = prepared("gone", 1, 2).await;
    let mut member = join(&topic, &group).await;
    let mut deliveries = member.take(2).await;
    deliveries[0].settle.ack().await.unwrap();
    let started = Instant::now();
    drop(member);
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    wait_for_commit(&group, &topic, 1).await;
    assert!(deliveries[1].settle.ack().await.is_err(), "too late");
    let mut member = join(&topic, &group).await;
    assert_eq!(member.handle(1).await, ["1"]);
    member.close().await;
}
