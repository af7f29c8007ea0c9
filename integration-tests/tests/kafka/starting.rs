//! Tests of the Kafka source's start: topics, positions, refusals.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cqrs_core::consume::{SourceStatus, SubscribeErrorKind, TopicSet};
use cqrs_core::{StartAt, Subscribe};
use cqrs_kafka::{ErrorKind, KafkaConfig, KafkaError, KafkaMessageBroker, Sasl, TlsConfig};
use cqrs_testkit::source::{is_consuming, text};
use integration_tests::consuming::{self, TIMEOUT};
use integration_tests::kafka::{Raw, create_topic, fresh_topic, write};
use integration_tests::servers;

use super::member::{Member, join, options, request};

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
    let SourceStatus::Connecting { last_error: Some(last_error) } = status.borrow().clone() else {
        panic!("{:?}", *status.borrow());
    };
    assert!(last_error.to_lowercase().contains("authentication"), "{last_error}");
    assert!(!last_error.contains("not-the-password") && !format!("{error:?}").contains("not-the"));
}

#[tokio::test]
async fn a_subscription_waits_for_its_server() {
    let broker = KafkaMessageBroker::new(KafkaConfig::new(["localhost:1"])).unwrap();
    let (request, mut status) = consuming::request(&["any"], "any", |_| {});
    let opening = tokio::spawn(async move { broker.subscribe(request).await.map(drop) });
    let reported = status
        .wait_for(|status| matches!(status, SourceStatus::Connecting { last_error: Some(_) }));
    tokio::time::timeout(TIMEOUT, reported).await.expect("it says why").unwrap();
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
