//! Tests of the consumer's commits on librdkafka's mock cluster.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use cqrs_core::consume::{Source, SourceDelivery, StatusReporter, SubscribeRequest, TopicSet};
use cqrs_core::{Message, MessageBrokerExt, Subscribe};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker, KafkaSubscription};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Answer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

const TOPIC: &str = "events";
const GROUP: &str = "mailer";
/// Longer than joining a group takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Neither librdkafka nor the consumer treats it as transient.
const REFUSED: Answer = Answer::RD_KAFKA_RESP_ERR_INVALID_COMMIT_OFFSET_SIZE;

type Cluster = MockCluster<'static, DefaultProducerContext>;

/// A cluster with three records, and its consumer.
async fn subscribed(refused: &[Answer]) -> (Cluster, Box<dyn Source>) {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    let broker = KafkaMessageBroker::new(KafkaConfig::new([cluster.bootstrap_servers()])).unwrap();
    for body in ["0", "1", "2"] {
        broker.publish(Message::new(TOPIC, body)).await.unwrap();
    }
    cluster.request_errors(RDKafkaApiKey::OffsetCommit, refused);
    let topics = TopicSet::Named(vec![TOPIC.into()]);
    let mut request = SubscribeRequest::new(topics, GROUP, StatusReporter::new().0);
    let often = KafkaSubscription::new().with_commit_interval(Duration::from_millis(50));
    request.options.insert(often);
    let source = broker.subscribe(request).await.unwrap();
    (cluster, source)
}

async fn next(source: &mut Box<dyn Source>) -> SourceDelivery {
    let next = tokio::time::timeout(TIMEOUT, poll_fn(|cx| source.poll_next(cx))).await;
    next.expect("a delivery in time").unwrap().unwrap()
}

/// The group's committed offset, and its metadata.
async fn committed(cluster: &Cluster) -> (Option<i64>, String) {
    let servers = cluster.bootstrap_servers();
    let lookup = tokio::task::spawn_blocking(move || {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", servers).set("group.id", GROUP);
        let consumer: BaseConsumer = config.create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition(TOPIC, 0);
        let list = consumer.committed_offsets(list, TIMEOUT).unwrap();
        let element = &list.elements()[0];
        let offset = match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        (offset, element.metadata().to_owned())
    });
    lookup.await.unwrap()
}

async fn until_committed(cluster: &Cluster, offset: i64) {
    let end = Instant::now() + TIMEOUT;
    loop {
        let (found, metadata) = committed(cluster).await;
        if found == Some(offset) {
            return;
        }
        assert!(Instant::now() < end, "committed {found:?} ({metadata}), not {offset}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_commit_is_retried() {
    let (cluster, mut source) = subscribed(&[]).await;
    let mut out = Vec::new();
    for _ in 0..3 {
        out.push(next(&mut source).await);
    }
    until_committed(&cluster, 0).await;
    cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[REFUSED; 3]);
    for delivery in &mut out {
        delivery.settle.ack().await.unwrap();
    }
    // No other change would be committed.
    until_committed(&cluster, 3).await;
    source.close(TIMEOUT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_delivered_before_the_takeover_commit() {
    let (cluster, mut source) = subscribed(&[REFUSED; 3]).await;
    let first = next(&mut source).await;
    let (offset, metadata) = committed(&cluster).await;
    assert_eq!(offset, Some(0));
    assert!(metadata.starts_with("cqrs1;u=1."), "{metadata}");
    drop(first);
    source.close(TIMEOUT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn group_that_refuses_metadata_is_consumed() {
    let too_large = Answer::RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE;
    // More than the consumer sends until it commits without metadata.
    let (cluster, mut source) = subscribed(&[too_large; 1_000]).await;
    let mut out = Vec::new();
    for _ in 0..3 {
        out.push(next(&mut source).await);
    }
    cluster.clear_request_errors(RDKafkaApiKey::OffsetCommit);
    for delivery in &mut out {
        delivery.settle.ack().await.unwrap();
    }
    until_committed(&cluster, 3).await;
    assert_eq!(committed(&cluster).await.1, "");
    source.close(TIMEOUT).await.unwrap();
}
