//! [`Member`]: an open source of a Kafka group, with helpers; used by the tests of the Kafka source.

use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use cqrs_core::MessageBroker;
use cqrs_core::consume::{SourceDelivery, SubscribeRequest};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker, KafkaSubscription};
use cqrs_testkit::TestSource;
use cqrs_testkit::source::text;
use integration_tests::consuming::fixture::until;
use integration_tests::consuming::{self, TIMEOUT};
use integration_tests::kafka::{Raw, committed, create_topic, fresh_topic, write};
use integration_tests::{log, servers};

/// A member of a group: an open source with a broker value of its own.
pub(super) struct Member {
    source: TestSource,
    broker: KafkaMessageBroker,
}

impl Deref for Member {
    type Target = TestSource;

    fn deref(&self) -> &TestSource {
        &self.source
    }
}

impl DerefMut for Member {
    fn deref_mut(&mut self) -> &mut TestSource {
        &mut self.source
    }
}

impl Member {
    pub(super) async fn open(request: SubscribeRequest) -> Self {
        let config = KafkaConfig::new([servers::kafka()]);
        Self::at(KafkaMessageBroker::new(config).unwrap(), request).await
    }

    pub(super) async fn at(broker: KafkaMessageBroker, request: SubscribeRequest) -> Self {
        log::show_warnings();
        let source = TestSource::open(&broker, request, TIMEOUT).await.unwrap();
        Self { source, broker }
    }

    pub(super) async fn close(self) {
        // Without a stop before it: the runtime stops a source first, others may not.
        self.source.close_within(Duration::from_secs(20)).await.1.unwrap();
        let _ = self.broker.shutdown(Duration::from_secs(5)).await;
    }
}

pub(super) fn offset(delivery: &SourceDelivery) -> i64 {
    delivery.message.offset.unwrap()
}

/// Fast for tests; a group joins without the broker's initial delay only after its first member.
pub(super) fn options() -> KafkaSubscription {
    KafkaSubscription::new()
        .with_commit_interval(Duration::from_millis(200))
        .with_raw("topic.metadata.refresh.interval.ms", "1000")
}

pub(super) fn request(topic: &str, group: &str, options: KafkaSubscription) -> SubscribeRequest {
    consuming::request(&[topic], group, |request| request.options.insert(options)).0
}

pub(super) async fn join(topic: &str, group: &str) -> Member {
    Member::open(request(topic, group, options())).await
}

/// A topic with records `0`, `1`, … of one key, and a group for it.
pub(super) async fn prepared(test: &str, partitions: i32, records: usize) -> (String, String) {
    let topic = fresh_topic(test);
    create_topic(&topic, partitions, &[]).await;
    write(&topic, (0..records).map(|n| Raw::new("key", &n.to_string())).collect()).await;
    let group = format!("g-{topic}");
    (topic, group)
}

/// Waits until the group committed this offset of partition 0, and returns the metadata.
pub(super) async fn wait_for_commit(group: &str, topic: &str, offset: i64) -> String {
    let end = Instant::now() + TIMEOUT;
    loop {
        let (found, metadata) = committed(group, topic, 0).await;
        if found == Some(offset) {
            return metadata;
        }
        assert!(Instant::now() < end, "committed {found:?} ({metadata}), not {offset}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// As [`wait_for_commit`], for a member that still consumes: records redelivered by a rebalance on a busy
/// machine are settled again.
pub(super) async fn settle_until_committed(
    member: &mut Member,
    group: &str,
    topic: &str,
    offset: i64,
) {
    let end = Instant::now() + TIMEOUT;
    let mut again = Vec::new();
    loop {
        let (found, metadata) = committed(group, topic, 0).await;
        if found == Some(offset) {
            return;
        }
        assert!(
            Instant::now() < end,
            "committed {found:?} ({metadata}), not {offset}; the source is {:?}; {again:?} were redelivered",
            *member.status.borrow(),
        );
        if let Some(mut delivery) = member.next_within(Duration::from_millis(100)).await {
            again.push(text(&delivery));
            if delivery.settle.begin() {
                let _ = delivery.settle.ack().await;
            }
        }
    }
}

pub(super) fn impatient() -> KafkaSubscription {
    options()
        .with_session_timeout(Duration::from_secs(6))
        .with_max_poll_interval(Duration::from_secs(6))
}

/// Waits until the delivery's partition is revoked.
pub(super) async fn revoked(delivery: &SourceDelivery) {
    until("the partition to be revoked", async || delivery.settle.is_revoked()).await;
}

/// A topic with two partitions, one record in each, and a member that runs both.
pub(super) async fn two_running(
    test: &str,
    options: &KafkaSubscription,
) -> (String, String, Member, Vec<SourceDelivery>) {
    let topic = fresh_topic(test);
    create_topic(&topic, 2, &[]).await;
    let record = |partition| Raw { partition, ..Raw::new("key", &partition.to_string()) };
    write(&topic, vec![record(0), record(1)]).await;
    let group = format!("g-{topic}");
    let mut member = Member::open(request(&topic, &group, options.clone())).await;
    let mut out = member.begin(2).await;
    out.sort_by_key(|delivery| delivery.message.partition);
    (topic, group, member, out)
}
