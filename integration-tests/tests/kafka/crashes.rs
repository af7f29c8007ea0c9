//! Tests of the Kafka source's quarantine. The commits of a dead process are written by the tests.

use std::time::{Duration, Instant};

use cqrs_core::Retry;
use cqrs_core::consume::{Delayed, RetryState, SourceDelivery, SubscribeRequest};
use cqrs_core::event::Timestamp;
use cqrs_kafka::{Assignor, KafkaConfig, KafkaMessageBroker, KafkaSubscription, RetryMode};
use cqrs_testkit::TestSource;
use cqrs_testkit::source::text;
use integration_tests::consuming::fixture::until;
use integration_tests::consuming::{self, TIMEOUT};
use integration_tests::kafka::{Raw, commit, committed, create_topic, fresh_topic, proxy, write};
use integration_tests::servers;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{ClientConfig, Offset};

const LONG: Duration = Duration::from_secs(20);
/// The silence after which nothing more is expected.
const QUIET: Duration = Duration::from_millis(500);

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

async fn open_with(
    topic: &str,
    group: &str,
    options: KafkaSubscription,
    change: impl FnOnce(&mut SubscribeRequest),
) -> TestSource {
    let change = |request: &mut SubscribeRequest| {
        request.retry = Retry::none().delayed([Duration::from_secs(300)]);
        request.options.insert(options);
        // A record with that many crashes does not wait until the process is old enough.
        request.max_crashes = 2;
        change(request);
    };
    consuming::open(&broker(), &[topic], group, change).await
}

async fn open(topic: &str, group: &str) -> TestSource {
    open_with(topic, group, options(), |_| {}).await
}

/// The metadata without the number of the process.
async fn metadata_of(group: &str, topic: &str, partition: i32) -> String {
    let (_, metadata) = committed(group, topic, partition).await;
    let plain = |section: &str| match section.split_once('.') {
        Some((count, _)) if count.starts_with("u=") => count.to_owned(),
        _ => section.to_owned(),
    };
    metadata.split(';').map(plain).collect::<Vec<_>>().join(";")
}

async fn until_metadata_is(group: &str, topic: &str, partition: i32, expected: &str) {
    until_metadata(group, topic, partition, |found| found == expected).await;
}

async fn until_metadata(group: &str, topic: &str, partition: i32, is_right: impl Fn(&str) -> bool) {
    let end = Instant::now() + TIMEOUT;
    loop {
        let found = metadata_of(group, topic, partition).await;
        if is_right(&found) {
            return;
        }
        assert!(Instant::now() < end, "the metadata is {found}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Set if records are announced and none is named. The end of the announced ones depends on the pace.
fn announces(metadata: &str, unclean_ends: u32) -> bool {
    metadata.starts_with(&format!("cqrs1;u={unclean_ends};until=")) && !metadata.contains(";n=")
}

fn body_and_crashes(delivery: &SourceDelivery) -> (String, u32) {
    (text(delivery), delivery.retry.crashes)
}

/// The next `N` deliveries, begun, without another one behind them.
async fn begun<const N: usize>(source: &mut TestSource) -> [SourceDelivery; N] {
    let mut taken = source.take(N).await;
    for delivery in &mut taken {
        assert!(delivery.settle.begin());
    }
    source.nothing_within(QUIET).await;
    taken.try_into().unwrap()
}

async fn suspects(assignor: Assignor) {
    let (topic, group) = prepared("suspects", 1, 6).await;
    // 1 was started alone, for the second time.
    commit(&group, &topic, 0, 0, "cqrs1;u=2.1;until=3;n=1;c=1.1").await;
    let options = options().with_assignors([assignor]);
    let mut source = open_with(&topic, &group, options, |_| {}).await;
    for (suspect, crashes) in [("0", 0), ("1", 2), ("2", 0)] {
        let [mut alone] = begun(&mut source).await;
        assert_eq!(body_and_crashes(&alone), (suspect.to_owned(), crashes));
        let counted = if suspect == "2" { "" } else { ";c=1.2" };
        let expected = format!("cqrs1;u=3;until=3;n={suspect}{counted}");
        until_metadata_is(&group, &topic, 0, &expected).await;
        alone.settle.ack().await.unwrap();
    }
    let rest: [_; 2] = source.take(2).await.try_into().unwrap();
    assert_eq!(rest.each_ref().map(text), ["3", "4"]);
    until_metadata(&group, &topic, 0, |found| announces(found, 3)).await;
    for mut delivery in rest {
        delivery.settle.ack().await.unwrap();
    }
    assert_eq!(source.ack(1).await, ["5"]);
    until_metadata_is(&group, &topic, 0, "cqrs1;u=1").await;
    source.close().await;
    assert_eq!(committed(&group, &topic, 0).await, (Some(6), "cqrs1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn suspects_run_alone_with_their_crash_count() {
    tokio::join!(suspects(Assignor::CooperativeSticky), suspects(Assignor::Range));
}

#[tokio::test(flavor = "multi_thread")]
async fn finished_suspect_lets_the_next_one_run() {
    let (topic, group) = prepared("ended", 1, 3).await;
    // Their keys differ: those of one key would wait behind each other.
    let key = |n: i32| Raw { partition: 0, ..Raw::new(&format!("key{n}"), &n.to_string()) };
    write(&topic, (3..6).map(key).collect()).await;
    commit(&group, &topic, 0, 3, "cqrs1;u=2.1;until=6").await;
    // In strict order they would wait behind the one that is held.
    let change = |request: &mut SubscribeRequest| request.concurrency = 3;
    let mut source = open_with(&topic, &group, options(), change).await;
    let [mut held] = begun(&mut source).await;
    let failed = RetryState::default().failed(Timestamp::now());
    assert_eq!(held.settle.retry_later(LONG, &failed).await.unwrap(), Delayed::Hold);
    let [mut postponed] = begun(&mut source).await;
    assert_eq!((text(&held), text(&postponed)), ("3".into(), "4".into()));
    // Its handler ended and did not settle it: a registry is away.
    postponed.settle.postpone();
    let [dropped] = begun(&mut source).await;
    assert_eq!(text(&dropped), "5");
    drop(dropped);
    // All suspects are through: the last one runs again.
    let mut again = source.next().await;
    assert_eq!(text(&again), "5");
    again.settle.ack().await.unwrap();
    source.close().await;
    let (position, left) = committed(&group, &topic, 0).await;
    assert_eq!(position, Some(3));
    assert!(left.starts_with("cqrs1;a=3.1."), "nothing is left of the quarantine: {left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_unclean_end_delays_nothing() {
    let (topic, group) = prepared("once", 8, 1).await;
    for partition in 0..8 {
        commit(&group, &topic, partition, 0, "cqrs1;u=1.1").await;
    }
    let mut source = open(&topic, &group).await;
    let out = source.take(8).await;
    for partition in 0..8 {
        until_metadata(&group, &topic, partition, |found| announces(found, 2)).await;
    }
    drop(out);
    assert_eq!(source.ack(8).await.len(), 8);
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collected_batch_delays_no_other_subscription() {
    let (collected, handled) = (prepared("collected", 1, 3_000), prepared("handled", 1, 100));
    let (collected, handled) = tokio::join!(collected, handled);
    for (topic, group) in [&collected, &handled] {
        commit(group, topic, 0, 0, "cqrs1;u=1.1").await;
    }
    let mut collects = open(&collected.0, &collected.1).await;
    let mut handles = open(&handled.0, &handled.1).await;
    let start = Instant::now();
    let mut out = Vec::new();
    for _ in 0..10 {
        let mut delivery = collects.next().await;
        assert!(delivery.settle.begin());
        out.push(delivery);
    }
    assert_eq!(handles.ack(100).await.len(), 100);
    while out.len() < 3_000 {
        let mut delivery = collects.next().await;
        assert!(delivery.settle.begin());
        out.push(delivery);
    }
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    drop(out);
    for source in [collects, handles] {
        source.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_records_are_not_suspect() {
    let (topic, group) = prepared("late", 1, 3).await;
    commit(&group, &topic, 0, 0, "cqrs1;u=2.1;until=400").await;
    let mut source = open(&topic, &group).await;
    write(&topic, vec![Raw::new("key", "3"), Raw::new("key", "4")]).await;
    for suspect in ["0", "1", "2"] {
        let [mut alone] = begun(&mut source).await;
        assert_eq!(text(&alone), suspect);
        alone.settle.ack().await.unwrap();
    }
    let [third, fourth] = begun(&mut source).await;
    assert_eq!((text(&third), text(&fourth)), ("3".into(), "4".into()));
    until_metadata_is(&group, &topic, 0, "cqrs1;u=1").await;
    drop((third, fourth));
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_partition_at_a_time_runs_suspects() {
    let (topic, group) = prepared("turns", 3, 2).await;
    for partition in 0..3 {
        commit(&group, &topic, partition, 0, "cqrs1;u=2.1;until=2").await;
    }
    let mut source = open(&topic, &group).await;
    let mut order = Vec::new();
    for _ in 0..6 {
        let [mut alone] = begun(&mut source).await;
        order.push((alone.message.partition.unwrap(), alone.message.offset.unwrap()));
        alone.settle.ack().await.unwrap();
    }
    for pair in order.chunks(2) {
        assert_eq!((pair[0].0, pair[0].1 + 1), pair[1], "{order:?}");
    }
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_of_a_retry_copy_is_counted() {
    let (topic, group) = prepared("copy", 1, 1).await;
    let delay = Duration::from_secs(1);
    let opening = async || {
        let options = options().with_retry_mode(RetryMode::Topics);
        let change = |request: &mut SubscribeRequest| {
            request.retry = Retry::none().delayed([delay]);
        };
        open_with(&topic, &group, options, change).await
    };
    let mut source = opening().await;
    let mut first = source.next().await;
    let failed = RetryState::default().failed(Timestamp::now());
    assert_eq!(first.settle.retry_later(delay, &failed).await.unwrap(), Delayed::Scheduled);
    first.settle.ack().await.unwrap();
    source.close().await;
    let retries = format!("{topic}.{group}.retry.1s");
    commit(&group, &retries, 0, 0, "cqrs1;u=3.1;until=1;n=0;c=0.1").await;
    let mut source = opening().await;
    let copy = source.next().await;
    assert_eq!((copy.retry.attempts, copy.retry.crashes), (1, 2));
    drop(copy);
    source.ack(1).await;
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_counted_with_max_crashes_of_zero() {
    let (topic, group) = prepared("off", 1, 6).await;
    commit(&group, &topic, 0, 0, "cqrs1;u=2.1;until=6;n=0;c=0.2").await;
    let off = |request: &mut SubscribeRequest| request.max_crashes = 0;
    let mut source = open_with(&topic, &group, options(), off).await;
    let mut out: [_; 6] = begun(&mut source).await;
    assert!(out.iter().all(|delivery| delivery.retry.crashes == 0));
    out[5].settle.ack().await.unwrap();
    until_metadata_is(&group, &topic, 0, "cqrs1;d=5.1").await;
    drop(out);
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_membership_is_no_unclean_end() {
    let (topic, group) = prepared("lost", 1, 3).await;
    let (proxy, _alone) = proxy().await;
    let broker = KafkaMessageBroker::new(KafkaConfig::new([servers::kafka_proxied()])).unwrap();
    let options = options().with_session_timeout(Duration::from_secs(6));
    let change = |request: &mut SubscribeRequest| {
        request.options.insert(options);
    };
    let mut source = consuming::open(&broker, &[&topic], &group, change).await;
    let out = source.take(3).await;
    until_metadata_is(&group, &topic, 0, "cqrs1;u=1").await;
    // Nothing passes, and the connections stay: the group gives the member up.
    proxy.blackhole(true);
    until("the membership to be lost", async || out[0].settle.is_revoked()).await;
    proxy.blackhole(false);
    proxy.cut();
    drop(out);
    let mut again = source.take(3).await;
    again[0].settle.ack().await.unwrap();
    until("the first commit", async || committed(&group, &topic, 0).await.0 == Some(1)).await;
    assert_eq!(metadata_of(&group, &topic, 0).await, "cqrs1;u=1");
    source.close().await;
}

/// Joins the group until it has one partition, commits for it, leaves, and returns it.
async fn join_and_commit(topic: &str, group: &str, metadata: &'static str) -> i32 {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers::kafka())
        .set("group.id", group)
        .set("partition.assignment.strategy", "range")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    consumer.subscribe(&[topic]).unwrap();
    let joined = move || {
        let end = Instant::now() + TIMEOUT;
        loop {
            assert!(Instant::now() < end, "no partition");
            let _ = consumer.poll(Duration::from_millis(100));
            let list = consumer.assignment().unwrap();
            let of = list.elements().first().map(|element| element.partition());
            let (Some(partition), 1) = (of, list.count()) else { continue };
            let topic = list.elements()[0].topic().to_owned();
            let mut element = list.find_partition(&topic, partition).unwrap();
            element.set_offset(Offset::Offset(0)).unwrap();
            element.set_metadata(metadata);
            consumer.commit(&list, CommitMode::Sync).unwrap();
            return partition;
        }
    };
    tokio::task::spawn_blocking(joined).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_after_a_clean_handover_is_counted() {
    let (topic, group) = prepared("handed", 2, 3).await;
    let options = options().with_assignors([Assignor::Range]);
    let mut source = open_with(&topic, &group, options, |_| {}).await;
    let out = source.take(6).await;
    for partition in 0..2 {
        until_metadata_is(&group, &topic, partition, "cqrs1;u=1").await;
    }
    // Another process gets one of them, takes it over, and dies.
    let partition = join_and_commit(&topic, &group, "cqrs1;u=1.1").await;
    drop(out);
    until_metadata(&group, &topic, partition, |found| announces(found, 2)).await;
    assert_eq!(source.ack(6).await.len(), 6);
    source.close().await;
}
