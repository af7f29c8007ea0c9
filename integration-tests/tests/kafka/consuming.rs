//! Tests of the Kafka source: deliveries, redelivery, commits and rebalances.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cqrs_core::consume::{
    Delayed, SourceDelivery, SourceStatus, SubscribeErrorKind, SubscribeRequest, TopicSet,
};
use cqrs_core::{
    DeadLetter, DeadLetterReason, MessageBroker, Retry, RetryState, StartAt, Subscribe, Timestamp,
};
use cqrs_kafka::{
    Assignor, ErrorKind, KafkaConfig, KafkaError, KafkaMessageBroker, KafkaSubscription, RetryMode,
    Sasl, TlsConfig,
};
use cqrs_testkit::TestSource;
use cqrs_testkit::source::{is_consuming, text};
use integration_tests::consuming::{self, TIMEOUT};
use integration_tests::kafka::{
    Raw, commit, committed, create_topic, ends, fresh_topic, proxy, read_raw, write,
    write_transaction,
};
use integration_tests::{log, servers};
use tokio::sync::watch;

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

    async fn at(broker: KafkaMessageBroker, request: SubscribeRequest) -> Self {
        log::show_warnings();
        let source = TestSource::open(&broker, request, TIMEOUT).await.unwrap();
        Self { source, broker }
    }

    pub(super) async fn close(self) {
        self.source.close().await;
        let _ = self.broker.shutdown(Duration::from_secs(5)).await;
    }
}

fn offset(delivery: &SourceDelivery) -> i64 {
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

async fn join(topic: &str, group: &str) -> Member {
    Member::open(request(topic, group, options())).await
}

/// A topic with records `0`, `1`, … of one key, and a group for it.
async fn prepared(test: &str, partitions: i32, records: usize) -> (String, String) {
    let topic = fresh_topic(test);
    create_topic(&topic, partitions, &[]).await;
    write(&topic, (0..records).map(|n| Raw::new("key", &n.to_string())).collect()).await;
    let group = format!("g-{topic}");
    (topic, group)
}

/// Waits until the group committed this offset of partition 0, and returns the metadata.
async fn wait_for_commit(group: &str, topic: &str, offset: i64) -> String {
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
async fn settle_until_committed(member: &mut Member, group: &str, topic: &str, offset: i64) {
    let end = Instant::now() + TIMEOUT;
    let mut again = Vec::new();
    loop {
        let (found, metadata) = committed(group, topic, 0).await;
        if found == Some(offset) {
            return;
        }
        assert!(
            Instant::now() < end,
            "committed {found:?} ({metadata}), not {offset}; the source is {:?}; {again:?} came again",
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

#[tokio::test]
async fn only_unacked_records_are_redelivered() {
    let (topic, group) = prepared("ack", 1, 5).await;
    let mut member = join(&topic, &group).await;
    let mut deliveries = member.begin(5).await;
    assert_eq!(deliveries.iter().map(text).collect::<Vec<_>>(), ["0", "1", "2", "3", "4"]);
    let first = &deliveries[0].message;
    assert_eq!((&*first.topic, first.partition, first.offset), (&*topic, Some(0), Some(0)));
    assert_eq!(first.key.as_deref(), Some(&b"key"[..]));
    assert!(!first.redelivered && first.timestamp.is_some());
    // 2 is not done: nothing after it is committed, but it is noted that two are done.
    for index in [4, 0, 1, 3] {
        deliveries[index].settle.ack().await.unwrap();
    }
    wait_for_commit(&group, &topic, 2).await;
    member.close().await;
    drop(deliveries);
    assert_eq!(committed(&group, &topic, 0).await, (Some(2), "cqrs1;d=3.2".into()), "a good end");

    let mut member = join(&topic, &group).await;
    assert_eq!(member.ack(1).await, ["2"]);
    wait_for_commit(&group, &topic, 5).await;
    write(&topic, vec![Raw::new("key", "5")]).await;
    assert_eq!(member.ack(1).await, ["5"], "3 and 4 were done");
    member.close().await;
    assert_eq!(committed(&group, &topic, 0).await.0, Some(6), "the close commits");
}

#[tokio::test]
async fn dropped_delivery_is_redelivered_before_later_ones() {
    let (topic, group) = prepared("drop", 1, 3).await;
    let mut member = join(&topic, &group).await;
    let first = member.next().await;
    drop(first);
    let again = member.next().await;
    assert_eq!((text(&again), again.message.redelivered), ("0".into(), true));
    drop(again);
    assert_eq!(member.ack(3).await, ["0", "1", "2"]);
    member.close().await;
    assert_eq!(committed(&group, &topic, 0).await.0, Some(3));
}

#[tokio::test]
async fn dropped_source_leaves_the_group_and_commits() {
    let (topic, group) = prepared("gone", 1, 2).await;
    let mut member = join(&topic, &group).await;
    let mut deliveries = member.begin(2).await;
    deliveries[0].settle.ack().await.unwrap();
    let started = Instant::now();
    drop(member);
    // The one that is out is not waited for.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    wait_for_commit(&group, &topic, 1).await;
    assert!(deliveries[1].settle.ack().await.is_err(), "too late");
    let mut member = join(&topic, &group).await;
    assert_eq!(member.ack(1).await, ["1"]);
    member.close().await;
}

#[tokio::test]
async fn in_flight_stays_within_the_cap() {
    let (topic, group) = prepared("cap", 1, 100).await;
    let mut request = request(&topic, &group, options());
    request.max_unsettled = Some(10);
    let mut member = Member::open(request).await;
    let mut out = member.begin(10).await;
    assert!(member.next_within(Duration::from_secs(1)).await.is_none(), "the cap holds");
    drop(out.pop());
    let again = member.next().await;
    assert_eq!(text(&again), "9", "a dropped one makes no room for others: it comes again");
    out.push(again);
    for delivery in &mut out {
        delivery.settle.ack().await.unwrap();
    }
    assert_eq!(member.ack(90).await, (10..100).map(|n| n.to_string()).collect::<Vec<_>>());
    member.close().await;
}

#[tokio::test]
async fn bytes_in_flight_stay_within_the_cap() {
    let topic = fresh_topic("bytes");
    create_topic(&topic, 1, &[]).await;
    let large = "x".repeat(10_000);
    write(&topic, (0..20).map(|_| Raw::new("key", &large)).collect()).await;
    let few = options().with_max_unsettled_bytes(35_000);
    let mut member = Member::open(request(&topic, &format!("g-{topic}"), few)).await;
    let mut out = member.begin(4).await;
    assert!(member.next_within(Duration::from_secs(1)).await.is_none(), "the cap holds");
    for delivery in &mut out {
        delivery.settle.ack().await.unwrap();
    }
    member.ack(16).await;
    member.close().await;
}

fn impatient() -> KafkaSubscription {
    options()
        .with_session_timeout(Duration::from_secs(6))
        .with_max_poll_interval(Duration::from_secs(6))
}

#[tokio::test]
async fn slow_handler_keeps_its_partition() {
    let (topic, group) = prepared("slow", 1, 30).await;
    let mut request = request(&topic, &group, impatient());
    request.max_unsettled = Some(10);
    let mut member = Member::open(request).await;
    let mut out = member.begin(10).await;
    // The handler: three poll intervals long, and no room for anything else.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let full = matches!(*member.status.borrow(), SourceStatus::Full { .. });
    assert!(full, "{:?}", *member.status.borrow());
    for delivery in &mut out {
        assert!(!delivery.settle.is_revoked());
        delivery.settle.ack().await.unwrap();
    }
    assert_eq!(member.ack(20).await, (10..30).map(|n| n.to_string()).collect::<Vec<_>>());
    member.wait_for(is_consuming).await;
    member.close().await;
    assert_eq!(committed(&group, &topic, 0).await.0, Some(30));
}

/// Waits until the delivery's partition is taken away.
async fn revoked(delivery: &SourceDelivery) {
    let end = Instant::now() + TIMEOUT;
    while !delivery.settle.is_revoked() {
        assert!(Instant::now() < end, "the partition is not revoked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A topic with two partitions, one record in each, and a member that runs both.
async fn two_running(
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

#[tokio::test]
async fn revoke_waits_for_handlers_and_commits() {
    let options = options();
    let (topic, group, mut member, mut out) = two_running("drain", &options).await;
    let mut second = Member::open(request(&topic, &group, options)).await;
    revoked(&out[0]).await;
    assert!(out[0].settle.begin(), "it runs already");
    tokio::time::sleep(Duration::from_secs(2)).await;
    for delivery in &mut out {
        delivery.settle.ack().await.expect("settled within the drain");
    }
    let started = Instant::now();
    second.wait_for(is_consuming).await;
    member.wait_for(is_consuming).await;
    println!("SUMMARY kafka revoke released after={:.1?}", started.elapsed());
    for partition in [0, 1] {
        assert_eq!(committed(&group, &topic, partition).await.0, Some(1));
    }
    assert!(second.next_within(Duration::from_secs(2)).await.is_none(), "nothing comes again");
    assert!(member.next_within(Duration::from_millis(100)).await.is_none());
    second.close().await;
    member.close().await;
}

#[tokio::test]
async fn handler_past_the_drain_loses_its_record() {
    let options = options().with_revoke_drain(Duration::from_secs(2));
    let (topic, group, mut member, mut out) = two_running("overrun", &options).await;
    let mut second = Member::open(request(&topic, &group, options)).await;
    revoked(&out[0]).await;
    let revoked_at = Instant::now();
    let next = second.next().await;
    let after = revoked_at.elapsed();
    assert!(after < Duration::from_secs(30), "{after:?}");
    println!("SUMMARY kafka overrun drain=2s moved_after={after:.1?}");
    for delivery in &mut out {
        let error = delivery.settle.ack().await.expect_err("its epoch is over");
        assert!(error.to_string().contains("is redelivered"), "{error}");
        assert!(!delivery.settle.begin() || delivery.settle.is_revoked());
    }
    drop(out);
    let mut mine = member.next().await;
    assert_ne!(mine.message.partition, next.message.partition);
    assert!(mine.settle.begin());
    mine.settle.ack().await.unwrap();
    drop(next);
    second.ack(1).await;
    second.close().await;
    member.close().await;
}

#[tokio::test]
async fn late_ack_fails_after_the_last_commit_of_a_revoke() {
    let options = options().with_revoke_drain(Duration::from_secs(2));
    let (topic, group, mut member, mut first) = two_running("late-ack", &options).await;
    let record = |partition| Raw { partition, ..Raw::new("other", "late") };
    write(&topic, vec![record(0), record(1)]).await;
    let mut late = member.begin(2).await;
    let mut second = Member::open(request(&topic, &group, options)).await;
    revoked(&late[0]).await;
    // There is something new to commit when the drain is over.
    for delivery in &mut first {
        delivery.settle.ack().await.expect("settled within the drain");
    }
    let next = second.next().await;
    assert_eq!(text(&next), "late");
    for delivery in &mut late {
        delivery.settle.ack().await.expect_err("its epoch is over");
    }
    drop((next, late));
    second.close().await;
    member.close().await;
}

#[tokio::test]
async fn held_and_waiting_deliveries_do_not_delay_a_revoke() {
    let options = options().with_revoke_drain(Duration::from_secs(60));
    let (topic, group, member, mut out) = two_running("held", &options).await;
    let state = RetryState::default().failed(Timestamp::now());
    for delivery in &mut out {
        let delay = Duration::from_secs(60);
        assert_eq!(delivery.settle.retry_later(delay, &state).await.unwrap(), Delayed::Hold);
    }
    let mut second = Member::open(request(&topic, &group, options)).await;
    revoked(&out[0]).await;
    let started = Instant::now();
    let next = second.next().await;
    assert!(started.elapsed() < Duration::from_secs(35), "{:?}", started.elapsed());
    assert_eq!(next.retry.attempts, 1, "its attempts came along");
    for delivery in &mut out {
        assert!(!delivery.settle.begin(), "taken away");
    }
    drop((next, out));
    second.close().await;
    member.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_partition_commits_nothing() {
    let (topic, group) = prepared("lost", 1, 3).await;
    let (proxy, _alone) = proxy().await;
    let broker = KafkaMessageBroker::new(KafkaConfig::new([servers::kafka_proxied()])).unwrap();
    let options = impatient().with_commit_interval(Duration::from_secs(1));
    let mut member = Member::at(broker, request(&topic, &group, options)).await;
    let mut out = member.begin(3).await;
    // Nothing passes, and the connections stay: the group gives the member up.
    proxy.blackhole(true);
    let mut first = out.remove(0);
    first.settle.ack().await.unwrap();
    // Another one takes the partition over while the member knows nothing of it.
    let mut other = join(&topic, &group).await;
    let mut taken = other.begin(3).await;
    taken[0].settle.ack().await.unwrap();
    taken[1].settle.ack().await.unwrap();
    wait_for_commit(&group, &topic, 2).await;
    revoked(&out[0]).await;
    for delivery in &mut out {
        delivery.settle.ack().await.expect_err("its epoch is over");
    }
    proxy.blackhole(false);
    proxy.cut();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(committed(&group, &topic, 0).await.0 >= Some(2), "the lost one commits nothing");
    drop(taken);
    other.close().await;
    assert_eq!(member.ack(1).await, ["2"], "it joined again");
    member.wait_for(is_consuming).await;
    member.close().await;
    assert_eq!(committed(&group, &topic, 0).await.0, Some(3));
}

#[tokio::test]
async fn attempts_survive_a_restart() {
    let (topic, group) = prepared("attempts", 1, 3).await;
    let mut member = join(&topic, &group).await;
    let mut out = member.begin(3).await;
    let failed_at: Timestamp = "2026-01-02T03:04:05.678901Z".parse().unwrap();
    let state = RetryState::default().failed(failed_at).failed(Timestamp::now());
    let delay = Duration::from_secs(300);
    assert_eq!(out[1].settle.retry_later(delay, &state).await.unwrap(), Delayed::Hold);
    assert!(out[1].settle.begin(), "still ours");
    out[0].settle.ack().await.unwrap();
    out[2].settle.ack().await.unwrap();
    let metadata = wait_for_commit(&group, &topic, 1).await;
    assert!(metadata.contains(";a=1.2."), "{metadata}");
    member.close().await;
    drop(out);

    let mut member = join(&topic, &group).await;
    let again = member.next().await;
    assert_eq!((offset(&again), again.retry), (1, state), "the others are done");
    drop(again);
    let mut dropped = member.next().await;
    assert_eq!((offset(&dropped), dropped.retry), (1, state), "a drop keeps them, too");
    dropped.settle.ack().await.unwrap();
    assert!(!wait_for_commit(&group, &topic, 3).await.contains(";a="));
    member.close().await;
}

#[tokio::test]
async fn foreign_metadata_is_ignored() {
    let (topic, group) = prepared("foreign", 1, 3).await;
    commit(&group, &topic, 0, 1, "{\"left by\": \"somebody else\"}").await;
    let mut member = join(&topic, &group).await;
    let first = member.next().await;
    assert_eq!((offset(&first), first.retry), (1, RetryState::default()));
    drop(first);
    assert_eq!(member.ack(2).await, ["1", "2"]);
    member.close().await;
}

fn delayed(seconds: &[u64]) -> Retry {
    Retry::none().delayed(seconds.iter().map(|seconds| Duration::from_secs(*seconds)))
}

#[tokio::test]
async fn retry_topic_is_never_early_nor_behind_a_longer_one() {
    let topic = fresh_topic("retry");
    create_topic(&topic, 1, &[]).await;
    let headers = vec![
        ("text".to_owned(), Some(b"value".to_vec())),
        ("binary".to_owned(), Some(vec![0, 0xff])),
        ("null".to_owned(), None),
    ];
    let long = Raw { headers: headers.clone(), ..Raw::new("key", "long") };
    let written_at = 1_700_000_000_123;
    let short = Raw { timestamp: Some(written_at), ..Raw::new("key", "short") };
    write(&topic, vec![long, short]).await;
    let group = format!("g-{topic}");
    let topics = options().with_retry_mode(RetryMode::Topics);
    let mut request = request(&topic, &group, topics);
    // So far apart that the short one is handled before the long one is due.
    request.retry = delayed(&[2, 15]);
    let mut member = Member::open(request).await;
    let mut out = member.begin(2).await;
    let started = Instant::now();
    let state = RetryState::default().failed(Timestamp::now());
    for (delivery, delay) in out.iter_mut().zip([15, 2]) {
        let delay = Duration::from_secs(delay);
        let scheduled = delivery.settle.retry_later(delay, &state).await.unwrap();
        assert_eq!(scheduled, Delayed::Scheduled);
        delivery.settle.ack().await.unwrap();
    }
    let mut second = member.next().await;
    let early = started.elapsed();
    assert_eq!(text(&second), "short");
    assert!(early >= Duration::from_secs(2) && early < Duration::from_secs(15), "{early:?}");
    assert_eq!(
        second.message.timestamp,
        Some(UNIX_EPOCH + Duration::from_millis(written_at as u64))
    );
    assert!(second.settle.begin());
    second.settle.ack().await.unwrap();
    let mut first = member.next().await;
    let late = started.elapsed();
    assert!(late >= Duration::from_secs(15) && late < Duration::from_secs(60), "{late:?}");
    println!("SUMMARY kafka retry topics delays=2s,15s came_after={early:.2?},{late:.2?}");
    let message = &first.message;
    assert_eq!((text(&first).as_str(), &*message.topic), ("long", &*topic));
    assert_eq!((message.partition, message.offset), (Some(0), Some(0)));
    assert_eq!(message.key.as_deref(), Some(&b"key"[..]));
    assert_eq!(message.headers.iter().collect::<Vec<_>>(), [("text", "value")]);
    assert_eq!((first.retry.attempts, message.redelivered), (1, true));
    // Failing again, it goes on from there; then it is dead, and looks as at first.
    assert!(first.settle.begin());
    let state = first.retry.failed(Timestamp::now());
    first.settle.retry_later(Duration::from_secs(2), &state).await.unwrap();
    first.settle.ack().await.unwrap();
    let mut first = member.next().await;
    assert_eq!((first.retry.attempts, first.message.offset), (2, Some(0)));
    let letter = DeadLetter::new(DeadLetterReason::Exhausted, &*topic, &*group);
    first.settle.dead_letter(&letter).await.unwrap();
    first.settle.ack().await.unwrap();
    let dead = read_raw(&format!("{topic}.{group}.dead")).await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].1.headers[..3], headers);
    assert!(dead[0].1.headers.iter().all(|(name, _)| !name.starts_with("cqrs-retry")));
    member.close().await;
    let waiting = read_raw(&format!("{topic}.{group}.retry.2s")).await;
    assert_eq!(waiting.len(), 2);
}

#[tokio::test]
async fn retry_copy_waits_through_a_restart() {
    let (topic, group) = prepared("restart", 1, 1).await;
    let open = async || {
        let topics = options().with_retry_mode(RetryMode::Topics);
        let mut request = request(&topic, &group, topics);
        request.start = StartAt::Latest;
        request.retry = delayed(&[5]);
        Member::open(request).await
    };
    commit(&group, &topic, 0, 0, "").await;
    let mut member = open().await;
    let mut first = member.next().await;
    let started = Instant::now();
    let state = RetryState::default().failed(Timestamp::now());
    first.settle.retry_later(Duration::from_secs(5), &state).await.unwrap();
    first.settle.ack().await.unwrap();
    member.close().await;
    let mut member = open().await;
    let again = member.next().await;
    assert!(started.elapsed() >= Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(again.retry.attempts, 1, "though the group starts with the latest");
    drop(again);
    assert_eq!(member.ack(1).await, ["0"]);
    member.close().await;
}

#[tokio::test]
async fn a_dead_letter_is_the_record_byte_for_byte() {
    let topic = fresh_topic("dead");
    create_topic(&topic, 3, &[]).await;
    let odd = Raw {
        partition: 2,
        key: Some(vec![0, 0xff, 0xfe]),
        body: Some(vec![0xff, 0, 0x80]),
        headers: vec![
            ("binary".into(), Some(vec![0xff, 0])),
            ("null".into(), None),
            ("empty".into(), Some(Vec::new())),
            ("twice".into(), Some(b"1".to_vec())),
            ("twice".into(), Some(b"2".to_vec())),
            ("cqrs-retry-attempts".into(), Some(b"3".to_vec())),
        ],
        timestamp: None,
    };
    let tombstone = Raw { body: None, key: Some(b"gone".to_vec()), ..Raw::default() };
    let empty = Raw { body: Some(Vec::new()), partition: 1, ..Raw::default() };
    write(&topic, vec![odd.clone(), tombstone.clone(), empty.clone()]).await;
    let group = format!("g-{topic}");
    let mut member = join(&topic, &group).await;
    let dead = format!("{topic}.{group}.dead");
    let mut letters = HashMap::new();
    for mut delivery in member.begin(3).await {
        let message = &delivery.message;
        assert_eq!(message.is_tombstone(), message.partition == Some(0));
        assert_eq!(message.is_empty(), message.partition == Some(1));
        let mut letter = DeadLetter::new(DeadLetterReason::Decode, &*topic, &*group)
            .with_error("Json", "no \u{e9}vent");
        letter.partition = message.partition;
        letter.offset = message.offset;
        delivery.settle.dead_letter(&letter).await.unwrap();
        letters.insert(message.partition, letter);
        delivery.settle.ack().await.unwrap();
    }
    member.close().await;
    let found = read_raw(&dead).await;
    assert_eq!(found.len(), 3);
    for (_, copy) in found {
        let added = copy.headers.iter().position(|(name, _)| name == "cqrs-dead-letter-reason");
        let (had, added) = copy.headers.split_at(added.unwrap());
        let original = [&odd, &tombstone, &empty]
            .into_iter()
            .find(|raw| (&raw.key, &raw.body) == (&copy.key, &copy.body))
            .expect("key and body as they were");
        let keeps = |(name, _): &&(String, _)| name != "cqrs-retry-attempts";
        let kept: Vec<_> = original.headers.iter().filter(keeps).cloned().collect();
        assert_eq!(had, kept);
        let text = |(name, value): &(String, Option<Vec<u8>>)| {
            (name.clone(), String::from_utf8(value.clone().unwrap()).unwrap())
        };
        let added: Vec<_> = added.iter().map(text).collect();
        let letter = &letters[&Some(original.partition)];
        let expected: Vec<_> =
            letter.to_headers().into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
        assert_eq!(added, expected);
    }
}

#[tokio::test]
async fn unwritable_dead_letter_settles_nothing() {
    let (topic, group) = prepared("undead", 1, 1).await;
    let mut config = KafkaConfig::new([servers::kafka()]);
    config.publish_timeout = Duration::from_secs(3);
    let broker = KafkaMessageBroker::new(config).unwrap();
    let mut request = request(&topic, &group, options().with_create_topics(None));
    // It accepts no record of this size.
    let dead = fresh_topic("tiny");
    create_topic(&dead, 1, &[("max.message.bytes", "10")]).await;
    request.dead_letter = cqrs_core::DeadLetterTarget::Named(dead.into());
    let mut member = Member::at(broker, request).await;
    let mut delivery = member.next().await;
    let letter = DeadLetter::new(DeadLetterReason::Permanent, &*topic, &*group);
    let error = delivery.settle.dead_letter(&letter).await.unwrap_err();
    assert!(error.is_permanent(), "{error}");
    assert!(error.to_string().contains("no confirmed copy"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
    drop(delivery);
    assert_eq!(text(&member.next().await), "0");
    member.close().await;
    assert_eq!(committed(&group, &topic, 0).await.0, Some(0), "nothing is done");
}

#[tokio::test]
async fn a_pattern_takes_new_topics_and_no_dead_letters() {
    let base = fresh_topic("pattern");
    let name = |end: &str| format!("{base}.{end}");
    for end in ["one", "one.g.dead", "one.other.retry.10s", "zwei"] {
        create_topic(&name(end), 1, &[]).await;
        write(&name(end), vec![Raw::new("key", end)]).await;
    }
    create_topic(&format!("x{}", name("one")), 1, &[]).await;
    write(&format!("x{}", name("one")), vec![Raw::new("key", "anchored")]).await;
    let pattern = format!("{}\\.(one.*|two)", base.replace('.', "\\."));
    let group = format!("g-{base}");
    let mut request = request("", &group, options());
    request.topics = TopicSet::Pattern(pattern.into());
    let mut member = Member::open(request).await;
    assert_eq!(member.ack(1).await, ["one"]);
    create_topic(&name("two"), 1, &[]).await;
    write(&name("two"), vec![Raw::new("key", "two")]).await;
    assert_eq!(member.ack(1).await, ["two"]);
    assert!(member.next_within(Duration::from_secs(1)).await.is_none());
    member.close().await;
}

#[tokio::test]
async fn new_group_starts_as_configured() {
    let topic = fresh_topic("start");
    create_topic(&topic, 1, &[]).await;
    let at = |n: i64| 1_700_000_000_000 + n * 1_000;
    let record = |n: i64| Raw { timestamp: Some(at(n)), ..Raw::new("key", &n.to_string()) };
    write(&topic, (0..10).map(record).collect()).await;
    let open = async |start: StartAt, group: &str| {
        let mut request = request(&topic, group, options());
        request.start = start;
        let member = Member::open(request).await;
        member.wait_for(is_consuming).await;
        member
    };
    let since = UNIX_EPOCH + Duration::from_millis(at(7) as u64 - 500);
    let group = format!("time-{topic}");
    let mut member = open(StartAt::Time(since), &group).await;
    assert_eq!(member.ack(1).await, ["7"]);
    member.close().await;
    let mut member = open(StartAt::Time(since), &group).await;
    assert_eq!(member.ack(2).await, ["8", "9"], "what is committed wins");
    member.close().await;

    let mut late = open(StartAt::Latest, &format!("latest-{topic}")).await;
    let mut never = open(StartAt::Time(SystemTime::now()), &format!("now-{topic}")).await;
    assert!(late.next_within(Duration::from_secs(2)).await.is_none());
    let (end, mut records) = (Instant::now() + TIMEOUT, 10);
    for member in [&mut late, &mut never] {
        // Only a fetch that is under way knows where the end was: it may miss the first ones.
        let mut new = loop {
            assert!(Instant::now() < end, "nothing new comes");
            write(&topic, vec![Raw::new("key", "new")]).await;
            records += 1;
            if let Some(new) = member.next_within(Duration::from_secs(2)).await {
                break new;
            }
        };
        assert_eq!(text(&new), "new");
        assert!(new.settle.begin());
        new.settle.ack().await.unwrap();
    }
    late.close().await;
    never.close().await;
    let mut all = open(StartAt::Earliest, &format!("oldest-{topic}")).await;
    assert_eq!(all.ack(records).await.len(), records);
    all.close().await;
}

#[tokio::test]
async fn static_member_returns_without_a_rebalance() {
    let topic = fresh_topic("static");
    create_topic(&topic, 2, &[]).await;
    let record = |partition| Raw { partition, ..Raw::new("key", &partition.to_string()) };
    write(&topic, vec![record(0), record(1)]).await;
    let group = format!("g-{topic}");
    let open = async |id: &str| {
        Member::open(request(&topic, &group, options().with_group_instance_id(id))).await
    };
    let (mut one, mut two) = (open("one").await, open("two").await);
    let mine = tokio::time::timeout(TIMEOUT, async {
        // Until both have one partition each, what came before is dropped.
        loop {
            let first = one.next().await;
            let Some(second) = two.next_within(Duration::from_secs(5)).await else { continue };
            if !first.settle.is_revoked() && first.message.partition != second.message.partition {
                return (first, second);
            }
        }
    });
    let (first, mut second) = mine.await.unwrap();
    let partition = first.message.partition;
    assert!(second.settle.begin());
    drop(first);
    one.close().await;
    let mut one = open("one").await;
    let first = one.next().await;
    assert_eq!(first.message.partition, partition);
    assert!(!second.settle.is_revoked(), "nobody rebalanced");
    second.settle.ack().await.unwrap();
    drop(first);
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn commits_pass_markers_and_aborted_transactions() {
    let topic = fresh_topic("transactions");
    create_topic(&topic, 1, &[]).await;
    let records = |from: usize| (from..from + 3).map(|n| Raw::new("key", &n.to_string())).collect();
    write_transaction(&topic, records(0), true).await;
    write_transaction(&topic, records(3), false).await;
    write_transaction(&topic, records(6), true).await;
    let group = format!("g-{topic}");
    let mut member = join(&topic, &group).await;
    assert_eq!(member.ack(6).await, ["0", "1", "2", "6", "7", "8"]);
    // Three records and a marker each: the last record is at 10, its marker at 11.
    settle_until_committed(&mut member, &group, &topic, 12).await;
    assert_eq!(ends(&topic, 0).await.1, 12, "no lag is left");
    write_transaction(&topic, records(9), false).await;
    settle_until_committed(&mut member, &group, &topic, 16).await;
    member.close().await;
    assert_eq!(committed(&group, &topic, 0).await, (Some(16), "cqrs1".into()));
}

#[tokio::test]
async fn cooperative_rebalance_keeps_kept_partitions() {
    let options = options().with_assignors([Assignor::CooperativeSticky]);
    let (topic, group, mut member, mut out) = two_running("cooperative", &options).await;
    let mut second = Member::open(request(&topic, &group, options)).await;
    let end = Instant::now() + TIMEOUT;
    let goes = loop {
        if let Some(goes) = out.iter().position(|delivery| delivery.settle.is_revoked()) {
            break goes;
        }
        assert!(Instant::now() < end, "a partition moves");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let mut goes = out.remove(goes);
    goes.settle.ack().await.unwrap();
    second.wait_for(is_consuming).await;
    let partition = goes.message.partition.unwrap();
    let more = |partition| Raw { partition, ..Raw::new("key", "more") };
    write(&topic, vec![more(0), more(1)]).await;
    let moved = second.next().await;
    assert_eq!((moved.message.partition, text(&moved)), (Some(partition), "more".into()));
    assert!(!out[0].settle.is_revoked(), "the other one stayed");
    let stayed = member.next().await;
    assert_eq!(stayed.message.partition, out[0].message.partition);
    out[0].settle.ack().await.unwrap();
    drop((moved, stayed));
    second.close().await;
    member.close().await;
}

#[tokio::test]
async fn wrong_password_is_reported() {
    let config = KafkaConfig::new([servers::kafka_sasl_ssl()])
        .with_tls(TlsConfig::new().with_ca(servers::certs("ca.pem")))
        .with_sasl(Sasl::plain(servers::KAFKA_USER.0, "not-the-password"));
    let broker = KafkaMessageBroker::new(config).unwrap();
    let (request, status) = consuming::request(&["any"], "any", |_| {});
    let opened = tokio::time::timeout(TIMEOUT, broker.subscribe(request)).await;
    let error = opened.expect("in time").expect_err("refused");
    assert_eq!(error.kind(), SubscribeErrorKind::Forbidden, "{error}");
    let cause: &KafkaError = std::error::Error::source(&error).unwrap().downcast_ref().unwrap();
    assert_eq!(cause.kind(), ErrorKind::Authentication);
    let SourceStatus::Connecting { last_error: Some(told) } = status.borrow().clone() else {
        panic!("{:?}", *status.borrow());
    };
    assert!(told.to_lowercase().contains("authentication"), "{told}");
    assert!(!told.contains("not-the-password") && !format!("{error:?}").contains("not-the"));
}

#[tokio::test]
async fn a_subscription_waits_for_its_server() {
    let broker = KafkaMessageBroker::new(KafkaConfig::new(["localhost:1"])).unwrap();
    let (request, mut status) = consuming::request(&["any"], "any", |_| {});
    let opening = tokio::spawn(async move { broker.subscribe(request).await.map(drop) });
    let told = status
        .wait_for(|status| matches!(status, SourceStatus::Connecting { last_error: Some(_) }));
    tokio::time::timeout(TIMEOUT, told).await.expect("it says why").unwrap();
    assert!(!opening.is_finished());
    opening.abort();
    assert!(opening.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn missing_topic_is_reported_and_waited_for() {
    let topic = fresh_topic("missing");
    let mut member = join(&topic, &format!("g-{topic}")).await;
    let names_topic = |status: &SourceStatus| match status {
        SourceStatus::Connecting { last_error: Some(error) } => error.contains(&topic),
        _ => false,
    };
    member.wait_for(names_topic).await;
    create_topic(&topic, 1, &[]).await;
    write(&topic, vec![Raw::new("key", "at last")]).await;
    assert_eq!(member.ack(1).await, ["at last"]);
    assert_eq!(*member.status.borrow(), SourceStatus::Consuming);
    member.close().await;
}

#[tokio::test]
async fn stopped_source_ends_and_settles_in_flight() {
    let (topic, group) = prepared("stop", 1, 20).await;
    let mut member = join(&topic, &group).await;
    let mut out = member.begin(3).await;
    member.stop().await;
    assert!(member.poll().await.is_none());
    for delivery in &mut out {
        delivery.settle.ack().await.unwrap();
    }
    wait_for_commit(&group, &topic, 3).await;
    let started = Instant::now();
    member.close().await;
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    let mut member = join(&topic, &group).await;
    assert_eq!(member.ack(17).await[0], "3");
    member.close().await;
}

/// Members come and go while records are handled: none is lost, and only what was running comes twice.
#[tokio::test(flavor = "multi_thread")]
async fn joining_and_leaving_members_lose_nothing() {
    let topic = fresh_topic("churn");
    create_topic(&topic, 4, &[]).await;
    let group = format!("g-{topic}");
    let (attempted, per_round) = (4_000_usize, 500);
    let handled = Arc::new(std::sync::Mutex::new(HashMap::<String, usize>::new()));
    let run = |mut member: Member| {
        let handled = Arc::clone(&handled);
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = member.poll() => next,
                    _ = stopped.wait_for(|stop| *stop) => break,
                };
                let mut delivery = next.unwrap().unwrap();
                if !delivery.settle.begin() {
                    continue;
                }
                let key = text(&delivery);
                tokio::time::sleep(Duration::from_millis(1)).await;
                *handled.lock().unwrap().entry(key).or_default() += 1;
                delivery.settle.ack().await.expect("it was begun, and is quick");
            }
            member.close().await;
        });
        (stop, task)
    };
    let mut members = vec![run(join(&topic, &group).await)];
    let mut written = 0;
    for round in 0..attempted / per_round {
        let record = |n: usize| Raw {
            partition: (n % 4) as i32,
            ..Raw::new(&format!("key-{}", n % 40), &n.to_string())
        };
        write(&topic, (written..written + per_round).map(record).collect()).await;
        written += per_round;
        if round % 2 == 0 {
            members.push(run(join(&topic, &group).await));
        } else {
            let (stop, task) = members.remove(0);
            stop.send_replace(true);
            task.await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let end = Instant::now() + Duration::from_secs(90);
    while handled.lock().unwrap().len() < attempted {
        assert!(Instant::now() < end, "handled {}", handled.lock().unwrap().len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (stop, task) in members {
        stop.send_replace(true);
        task.await.unwrap();
    }
    let handled = handled.lock().unwrap();
    let twice: usize = handled.values().map(|times| times - 1).sum();
    println!(
        "SUMMARY kafka churn attempted={attempted} handled={} duplicates={twice}",
        handled.len()
    );
    assert_eq!(twice, 0, "handlers shorter than the drain end before their partition goes");
}
