//! Tests of the first position of a group's partitions.

use std::collections::BTreeSet;
use std::time::Duration;

use cqrs_core::consume::{SourceStatus, StartAt, SubscribeRequest};
use cqrs_kafka::{Assignor, KafkaConfig, KafkaMessageBroker, KafkaSubscription};
use cqrs_testkit::TestSource;
use cqrs_testkit::source::{is_consuming, text};
use integration_tests::consuming;
use integration_tests::kafka::{
    Raw, add_partitions, commit, committed, create_topic, fresh_topic, trim, write,
};
use integration_tests::servers;

fn records(partitions: i32, bodies: std::ops::Range<usize>) -> Vec<Raw> {
    let of = |n: usize| Raw { partition: n as i32 % partitions, ..Raw::new("key", &n.to_string()) };
    bodies.map(of).collect()
}

fn numbers(bodies: std::ops::Range<usize>) -> Vec<String> {
    bodies.map(|n| n.to_string()).collect()
}

async fn open(topic: &str, group: &str, start: StartAt, assignor: Assignor) -> TestSource {
    let broker = KafkaMessageBroker::new(KafkaConfig::new([servers::kafka()])).unwrap();
    let options = KafkaSubscription::new()
        .with_commit_interval(Duration::from_millis(200))
        .with_assignors([assignor])
        .with_raw("topic.metadata.refresh.interval.ms", "500");
    let change = |request: &mut SubscribeRequest| {
        request.start = start;
        request.options.insert(options);
    };
    let source = consuming::open(&broker, &[topic], group, change).await;
    source.wait_for(is_consuming).await;
    source
}

/// The bodies of the next `count` records, sorted. A rebalance may revoke a record before its ack: then it is
/// redelivered.
async fn sorted(source: &mut TestSource, count: usize) -> Vec<String> {
    let mut bodies = BTreeSet::new();
    while bodies.len() < count {
        let mut delivery = source.next().await;
        if delivery.settle.ack().await.is_ok() {
            bodies.insert(text(&delivery).parse::<usize>().unwrap());
        }
    }
    bodies.into_iter().map(|body| body.to_string()).collect()
}

async fn added(assignor: Assignor) {
    let topic = fresh_topic("added");
    create_topic(&topic, 1, &[]).await;
    write(&topic, records(1, 0..3)).await;
    let group = format!("g-{topic}");
    let mut source = open(&topic, &group, StartAt::Latest, assignor).await;
    add_partitions(&topic, 3).await;
    write(&topic, records(3, 3..9)).await;
    assert_eq!(sorted(&mut source, 6).await, numbers(3..9));
    source.close().await;
    // The same for partitions added without a consumer.
    add_partitions(&topic, 5).await;
    write(&topic, records(5, 9..19)).await;
    let mut source = open(&topic, &group, StartAt::Latest, assignor).await;
    assert_eq!(sorted(&mut source, 10).await, numbers(9..19));
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn added_partition_starts_at_its_earliest_record() {
    tokio::join!(added(Assignor::CooperativeSticky), added(Assignor::Range));
}

#[tokio::test(flavor = "multi_thread")]
async fn position_before_retention_moves_to_earliest() {
    for start in [StartAt::Latest, StartAt::Earliest] {
        let topic = fresh_topic("trimmed");
        create_topic(&topic, 1, &[]).await;
        write(&topic, records(1, 0..30)).await;
        let group = format!("g-{topic}");
        commit(&group, &topic, 0, 5, "").await;
        trim(&topic, 0, 20).await;
        let mut source = open(&topic, &group, start, Assignor::Range).await;
        let first = source.next().await;
        assert_eq!(committed(&group, &topic, 0).await.0, Some(20), "the takeover commit");
        drop(first);
        assert_eq!(sorted(&mut source, 10).await, numbers(20..30));
        source.close().await;
        assert_eq!(committed(&group, &topic, 0).await.0, Some(30));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn group_has_a_position_before_its_first_record() {
    let topic = fresh_topic("placed");
    create_topic(&topic, 1, &[]).await;
    write(&topic, records(1, 0..3)).await;
    let group = format!("g-{topic}");
    let source = open(&topic, &group, StartAt::Latest, Assignor::Range).await;
    source.close().await;
    assert_eq!(committed(&group, &topic, 0).await, (Some(3), "cqrs1;p=1".into()));
    write(&topic, records(1, 3..8)).await;
    let mut source = open(&topic, &group, StartAt::Latest, Assignor::Range).await;
    assert_eq!(source.ack(5).await, numbers(3..8));
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_new_group_share_its_start_option() {
    let topic = fresh_topic("shared");
    create_topic(&topic, 4, &[]).await;
    write(&topic, records(4, 0..100)).await;
    let group = format!("g-{topic}");
    // One of them is as far as to have committed its place, the other one begins.
    commit(&group, &topic, 0, 25, "cqrs1;p=4").await;
    let (mut one, mut two) = tokio::join!(
        open(&topic, &group, StartAt::Latest, Assignor::Range),
        open(&topic, &group, StartAt::Latest, Assignor::Range),
    );
    write(&topic, records(4, 100..104)).await;
    let mut bodies = Vec::new();
    while bodies.len() < 4 {
        let mut next = tokio::select! { next = one.next() => next, next = two.next() => next };
        if next.settle.begin() && next.settle.ack().await.is_ok() {
            bodies.push(text(&next));
        }
    }
    bodies.sort();
    assert_eq!(bodies, numbers(100..104), "nothing of the history");
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_created_later_is_read_from_its_start() {
    let topic = fresh_topic("later");
    let group = format!("g-{topic}");
    let broker = KafkaMessageBroker::new(KafkaConfig::new([servers::kafka()])).unwrap();
    let options = KafkaSubscription::new().with_raw("topic.metadata.refresh.interval.ms", "500");
    let change = |request: &mut SubscribeRequest| {
        request.start = StartAt::Latest;
        request.options.insert(options);
    };
    let mut source = consuming::open(&broker, &[&topic], &group, change).await;
    let missing = |status: &SourceStatus| match status {
        SourceStatus::Connecting { last_error } => last_error.is_some(),
        _ => false,
    };
    source.wait_for(missing).await;
    create_topic(&topic, 2, &[]).await;
    write(&topic, records(2, 0..6)).await;
    assert_eq!(sorted(&mut source, 6).await, numbers(0..6));
    source.close().await;
}
