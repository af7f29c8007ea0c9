//! The Kafka source against a real server: which records it suspects of killing processes. What a process
//! leaves behind when it dies is written as it would have.

use std::time::{Duration, Instant};

use cqrs_core::consume::{Delayed, SourceDelivery, SubscribeRequest};
use cqrs_core::{Retry, RetryState, Timestamp};
use cqrs_kafka::{Assignor, KafkaConfig, KafkaMessageBroker, KafkaSubscription, RetryMode};
use integration_tests::consuming::{Opened, PATIENCE, body};
use integration_tests::kafka::{Raw, commit, committed, create_topic, fresh_topic, proxy, write};
use integration_tests::servers;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{ClientConfig, Offset};

const LONG: Duration = Duration::from_secs(20);
/// Whatever comes has come.
const LULL: Duration = Duration::from_millis(500);

fn broker() -> KafkaMessageBroker {
    KafkaMessageBroker::new(KafkaConfig::new([servers::kafka()])).unwrap()
}

fn options() -> KafkaSubscription {
    KafkaSubscription::new().with_commit_interval(Duration::from_millis(200))
}

/// A topic whose partitions have so many records each, and a group.
async fn prepared(test: &str, partitions: i32, records: usize) -> (String, String) {
    let topic = fresh_topic(test);
    create_topic(&topic, partitions, &[]).await;
    let of =
        |partition| (0..records).map(move |n| Raw { partition, ..Raw::new("key", &n.to_string()) });
    write(&topic, (0..partitions).flat_map(of).collect()).await;
    let group = format!("g-{topic}");
    (topic, group)
}

async fn open(topic: &str, group: &str, options: KafkaSubscription) -> Opened {
    let change = |request: &mut SubscribeRequest| {
        request.retry = Retry::none().delayed([Duration::from_secs(300)]);
        request.options.insert(options);
    };
    Opened::open(&broker(), &[topic], group, change).await
}

async fn metadata(group: &str, topic: &str, partition: i32, until: impl Fn(&str) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let (_, metadata) = committed(group, topic, partition).await;
        if until(&metadata) {
            return;
        }
        assert!(Instant::now() < end, "{metadata}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn told(delivery: &SourceDelivery) -> (String, u32) {
    (body(delivery), delivery.retry.crashes)
}

/// The next `count`, begun, and nothing behind them.
async fn begun<const N: usize>(opened: &mut Opened) -> [SourceDelivery; N] {
    let mut taken = opened.take(N).await;
    for delivery in &mut taken {
        assert!(delivery.settle.begin());
    }
    opened.nothing_within(LULL).await;
    taken.try_into().unwrap()
}

async fn suspects(assignor: Assignor) {
    let (topic, group) = prepared("suspects", 1, 6).await;
    // 1 was started alone, for the second time. 2 was to run alone, too, 3 and 4 among few.
    commit(&group, &topic, 0, 0, "cqrs1;o=3.1.2.0.1;c=1.1").await;
    let mut opened = open(&topic, &group, options().with_assignors([assignor])).await;
    for expected in [("0", 0), ("1", 2), ("2", 0)] {
        let [mut alone] = begun(&mut opened).await;
        assert_eq!(told(&alone), (expected.0.to_owned(), expected.1));
        let name = format!(";o=3.1.2.0.{}", expected.0);
        metadata(&group, &topic, 0, |metadata| metadata.contains(&name)).await;
        alone.settle.ack().await.unwrap();
    }
    let [mut third, mut fourth] = begun(&mut opened).await;
    assert_eq!((told(&third), told(&fourth)), (("3".into(), 0), ("4".into(), 0)));
    metadata(&group, &topic, 0, |metadata| metadata == "cqrs1;o=5.100.0.0").await;
    third.settle.ack().await.unwrap();
    fourth.settle.ack().await.unwrap();
    assert_eq!(opened.acked(1).await, ["5"]);
    metadata(&group, &topic, 0, |metadata| metadata == "cqrs1;o=40005.40000.0.0").await;
    opened.close(LONG).await.1.unwrap();
    assert_eq!(committed(&group, &topic, 0).await, (Some(6), "cqrs1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn suspects_are_handed_out_alone_and_their_crashes_are_told() {
    tokio::join!(suspects(Assignor::CooperativeSticky), suspects(Assignor::Range));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_whose_handler_came_to_an_end_lets_the_next_one_on() {
    let (topic, group) = prepared("rested", 1, 3).await;
    commit(&group, &topic, 0, 0, "cqrs1;o=3.1.0.0.0").await;
    let mut opened = open(&topic, &group, options()).await;
    let [mut held] = begun(&mut opened).await;
    assert_eq!(told(&held), ("0".into(), 1));
    let failed = RetryState::default().failed(Timestamp::now());
    assert_eq!(held.settle.retry_later(LONG, &failed).await.unwrap(), Delayed::Hold);
    let [dropped] = begun(&mut opened).await;
    assert_eq!(told(&dropped), ("1".into(), 0));
    drop(dropped);
    let mut next = opened.take(2).await;
    next.sort_by_key(|delivery| delivery.message.offset);
    assert_eq!((told(&next[0]), told(&next[1])), (("1".into(), 0), ("2".into(), 0)));
    opened.close(LONG).await.1.unwrap();
    // What ran has come to an end: it is accused no more, but looked at again.
    let (_, left) = committed(&group, &topic, 0).await;
    assert!(left.starts_with("cqrs1;o=3.1.0.0;a=0.1."), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_that_rests_lets_the_next_one_on() {
    let (topic, group) = prepared("resting", 1, 2).await;
    commit(&group, &topic, 0, 0, "cqrs1;o=2.1.0.0").await;
    let mut opened = open(&topic, &group, options()).await;
    let [mut rests] = begun(&mut opened).await;
    // Its handler ended and did not settle it: it gave it back, or a registry is away.
    rests.settle.rest();
    let [mut next] = begun(&mut opened).await;
    assert_eq!((body(&rests), body(&next)), ("0".into(), "1".into()));
    // It did not wait until the other one took too long: then it would not be named.
    metadata(&group, &topic, 0, |metadata| metadata == "cqrs1;o=2.1.0.0.1").await;
    next.settle.ack().await.unwrap();
    assert!(rests.settle.begin());
    rests.settle.ack().await.unwrap();
    opened.close(LONG).await.1.unwrap();
    assert_eq!(committed(&group, &topic, 0).await, (Some(2), "cqrs1".into()));
}

/// Joins the group until it has one partition, commits for that one, and leaves. Which one it was.
async fn join_and_commit(topic: &str, group: &str, note: &'static str) -> i32 {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers::kafka())
        .set("group.id", group)
        .set("partition.assignment.strategy", "range")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    consumer.subscribe(&[topic]).unwrap();
    let joined = move || {
        let end = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < end, "no partition");
            let _ = consumer.poll(Duration::from_millis(100));
            let list = consumer.assignment().unwrap();
            let of = list.elements().first().map(|element| element.partition());
            let (Some(partition), 1) = (of, list.count()) else { continue };
            let topic = list.elements()[0].topic().to_owned();
            let mut element = list.find_partition(&topic, partition).unwrap();
            element.set_offset(Offset::Offset(0)).unwrap();
            element.set_metadata(note);
            consumer.commit(&list, CommitMode::Sync).unwrap();
            return partition;
        }
    };
    tokio::task::spawn_blocking(joined).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_after_a_good_hand_over_is_not_taken_for_a_lost_membership() {
    const GRANT: &str = "cqrs1;o=40000.40000.0.0";
    let (topic, group) = prepared("handed", 2, 3).await;
    let options = options().with_assignors([Assignor::Range]);
    let mut opened = open(&topic, &group, options).await;
    let out = opened.take(6).await;
    for partition in 0..2 {
        metadata(&group, &topic, partition, |metadata| metadata == GRANT).await;
    }
    // Another member gets one of them, notes just what this one had noted, and dies.
    let partition = join_and_commit(&topic, &group, GRANT).await;
    drop(out);
    metadata(&group, &topic, partition, |metadata| metadata == "cqrs1;o=3.100.0.0").await;
    assert_eq!(opened.acked(6).await.len(), 6);
    opened.close(LONG).await.1.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_after_the_death_is_not_suspect() {
    let (topic, group) = prepared("later", 1, 3).await;
    commit(&group, &topic, 0, 0, "cqrs1;o=40000.40000.0.0").await;
    let mut opened = open(&topic, &group, options()).await;
    let out: [_; 3] = begun(&mut opened).await;
    metadata(&group, &topic, 0, |metadata| metadata == "cqrs1;o=3.100.0.0").await;
    for mut delivery in out {
        delivery.settle.ack().await.unwrap();
    }
    write(&topic, vec![Raw::new("key", "3")]).await;
    assert_eq!(opened.acked(1).await, ["3"]);
    metadata(&group, &topic, 0, |metadata| metadata == "cqrs1;o=40003.40000.0.0").await;
    opened.close(LONG).await.1.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_partition_at_a_time_runs_suspects() {
    let (topic, group) = prepared("turns", 3, 2).await;
    for partition in 0..3 {
        commit(&group, &topic, partition, 0, "cqrs1;o=2.1.0.0").await;
    }
    let mut opened = open(&topic, &group, options()).await;
    let mut order = Vec::new();
    for _ in 0..6 {
        let [mut alone] = begun(&mut opened).await;
        order.push((alone.message.partition.unwrap(), alone.message.offset.unwrap()));
        alone.settle.ack().await.unwrap();
    }
    assert!(order[..3].iter().all(|(_, offset)| *offset == 0), "in turn: {order:?}");
    opened.close(LONG).await.1.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_copy_that_killed_its_process_is_told() {
    let (topic, group) = prepared("copy", 1, 1).await;
    let delay = Duration::from_secs(1);
    let opening = async || {
        let change = |request: &mut SubscribeRequest| {
            request.retry = Retry::none().delayed([delay]);
            request.options.insert(options().with_retry_mode(RetryMode::Topics));
        };
        Opened::open(&broker(), &[&topic], &group, change).await
    };
    let mut opened = opening().await;
    let mut first = opened.next().await;
    let failed = RetryState::default().failed(Timestamp::now());
    assert_eq!(first.settle.retry_later(delay, &failed).await.unwrap(), Delayed::Scheduled);
    first.settle.ack().await.unwrap();
    opened.close(LONG).await.1.unwrap();
    let retries = format!("{topic}.{group}.retry.1s");
    commit(&group, &retries, 0, 0, "cqrs1;o=1.1.0.0.0;c=0.1").await;
    let mut opened = opening().await;
    let copy = opened.next().await;
    assert_eq!((copy.retry.attempts, copy.retry.crashes), (1, 2));
    drop(copy);
    opened.acked(1).await;
    opened.close(LONG).await.1.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_membership_makes_nobody_suspect() {
    let (topic, group) = prepared("lost", 1, 3).await;
    let (proxy, _alone) = proxy().await;
    let broker = KafkaMessageBroker::new(KafkaConfig::new([servers::kafka_proxied()])).unwrap();
    let options = options().with_session_timeout(Duration::from_secs(6));
    let change = |request: &mut SubscribeRequest| {
        request.options.insert(options);
    };
    let mut opened = Opened::open(&broker, &[&topic], &group, change).await;
    let out = opened.take(3).await;
    metadata(&group, &topic, 0, |metadata| metadata == "cqrs1;o=40000.40000.0.0").await;
    // Nothing passes, and the connections stay: the group gives the member up.
    proxy.blackhole(true);
    let end = Instant::now() + PATIENCE;
    while !out[0].settle.is_revoked() {
        assert!(Instant::now() < end, "the membership is lost");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    proxy.blackhole(false);
    proxy.cut();
    drop(out);
    let mut again = opened.take(3).await;
    again[0].settle.ack().await.unwrap();
    let end = Instant::now() + PATIENCE;
    while committed(&group, &topic, 0).await.0 != Some(1) {
        assert!(Instant::now() < end, "the first one is committed");
    }
    let (_, note) = committed(&group, &topic, 0).await;
    assert_eq!(note, "cqrs1;o=40000.40000.0.0");
    opened.close(LONG).await.1.unwrap();
}
