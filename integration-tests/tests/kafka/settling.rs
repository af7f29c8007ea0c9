//! Tests of the Kafka source's attempts, retry copies and dead letters.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cqrs_core::consume::{DeadLetter, DeadLetterReason, Delayed, RetryState};
use cqrs_core::event::Timestamp;
use cqrs_core::{Retry, StartAt};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker, RetryMode};
use cqrs_testkit::source::text;
use integration_tests::kafka::{
    Raw, commit, committed, create_topic, fresh_topic, read_raw, write,
};
use integration_tests::servers;

use super::member::{Member, join, offset, options, prepared, request, wait_for_commit};

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
    // Copies are due by the system clock, which may be slewed.
    let started = SystemTime::now();
    let state = RetryState::default().failed(Timestamp::now());
    for (delivery, delay) in out.iter_mut().zip([15, 2]) {
        let delay = Duration::from_secs(delay);
        let scheduled = delivery.settle.retry_later(delay, &state).await.unwrap();
        assert_eq!(scheduled, Delayed::Scheduled);
        delivery.settle.ack().await.unwrap();
    }
    let mut second = member.next().await;
    let early = started.elapsed().unwrap();
    assert_eq!(text(&second), "short");
    assert!(early >= Duration::from_secs(2) && early < Duration::from_secs(15), "{early:?}");
    assert_eq!(
        second.message.timestamp,
        Some(UNIX_EPOCH + Duration::from_millis(written_at as u64))
    );
    assert!(second.settle.begin());
    second.settle.ack().await.unwrap();
    let mut first = member.next().await;
    let late = started.elapsed().unwrap();
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
    // By the clock of the copy's due time.
    let started = SystemTime::now();
    let state = RetryState::default().failed(Timestamp::now());
    first.settle.retry_later(Duration::from_secs(5), &state).await.unwrap();
    first.settle.ack().await.unwrap();
    member.close().await;
    let mut member = open().await;
    let again = member.next().await;
    let waited = started.elapsed().unwrap();
    assert!(waited >= Duration::from_secs(5), "{waited:?}");
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
    request.dead_letter = cqrs_core::consume::DeadLetterTarget::Named(dead.into());
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
