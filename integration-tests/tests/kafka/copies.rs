//! Tests of dead letters and retry copies that Kafka refuses: too large, compressed, without rights.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cqrs_core::consume::{
    DeadLetter, DeadLetterReason, DeadLetterTarget, Delayed, RetryState, SubscribeRequest,
};
use cqrs_core::message::Headers;
use cqrs_core::service::SubscriptionState;
use cqrs_core::{NotificationEvent, Received, Retry, Service, Subscription, each};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker, KafkaSubscription, RetryMode};
use cqrs_macros::Notification;
use integration_tests::consuming::TIMEOUT;
use integration_tests::kafka::{Raw, create_topic, fresh_topic, read_raw, write, write_with};
use integration_tests::{kafka_wire, log, servers};
use serde::{Deserialize, Serialize};

use crate::member::{Member, options, request};

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "orders")]
struct Ordered {
    number: u32,
}

/// Bytes that no compression makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

fn of_body(body: Vec<u8>) -> Raw {
    let mut raw = Raw::new("key", "");
    (raw.body, raw.headers) = (Some(body), vec![("trace".into(), Some(b"t-1".to_vec()))]);
    raw
}

fn letter(topic: &str, group: &str) -> DeadLetter {
    let mut letter = DeadLetter::new(DeadLetterReason::Decode, topic, group);
    (letter.partition, letter.offset) = (Some(0), Some(0));
    letter
}

async fn open(topic: &str, change: impl FnOnce(&mut SubscribeRequest)) -> (Member, String) {
    let group = format!("g-{topic}");
    let mut request = request(topic, &group, options());
    change(&mut request);
    (Member::open(request).await, group)
}

/// The dead letter of the first record in `topic`.
async fn dead_letter_of(topic: &str, dead: Option<&str>) -> Raw {
    let (mut member, group) = open(topic, |request| {
        if let Some(dead) = dead {
            request.dead_letter = DeadLetterTarget::Named(dead.into());
        }
    })
    .await;
    let mut delivery = member.next().await;
    assert!(delivery.settle.begin());
    delivery.settle.dead_letter(&letter(topic, &group)).await.unwrap();
    delivery.settle.ack().await.unwrap();
    member.close().await;
    let dead = dead.map_or_else(|| format!("{topic}.{group}.dead"), str::to_owned);
    let mut found = read_raw(&dead).await;
    assert_eq!(found.len(), 1);
    found.remove(0).1
}

#[tokio::test]
async fn dead_letter_topic_has_the_limit_of_the_source() {
    let topic = fresh_topic("limit");
    create_topic(&topic, 2, &[("max.message.bytes", "5000000")]).await;
    let raw = of_body(noise(4_900_000));
    write_with(&topic, vec![raw.clone()], &[("message.max.bytes", "6000000")]).await;
    let dead = dead_letter_of(&topic, None).await;
    assert_eq!((dead.key, dead.body), (raw.key, raw.body));
    assert_eq!(dead.headers[..1], raw.headers);
}

#[tokio::test]
async fn dead_letter_of_compressed_record_is_compressed() {
    let topic = fresh_topic("zstd");
    create_topic(&topic, 1, &[]).await;
    let raw = of_body(vec![b'x'; 10_000_000]);
    let settings = [("message.max.bytes", "20000000"), ("compression.type", "zstd")];
    write_with(&topic, vec![raw.clone()], &settings).await;
    let dead = dead_letter_of(&topic, None).await;
    assert_eq!((dead.key, dead.body == raw.body), (raw.key, true));
}

#[tokio::test]
async fn too_large_dead_letter_points_to_the_original() {
    let topic = fresh_topic("bare");
    create_topic(&topic, 1, &[("max.message.bytes", "5000000")]).await;
    write_with(&topic, vec![of_body(noise(2_000_000))], &[("message.max.bytes", "6000000")]).await;
    let small = fresh_topic("bare-dead");
    create_topic(&small, 1, &[("max.message.bytes", "5000")]).await;
    let dead = dead_letter_of(&topic, Some(&small)).await;
    assert_eq!((dead.key.as_deref(), dead.body), (Some(&b"key"[..]), None));
    let mut headers = Headers::new();
    for (name, value) in dead.headers {
        headers.insert_bytes(name, value.unwrap()).unwrap();
    }
    let letter = DeadLetter::from_headers(&headers).unwrap();
    assert_eq!((&*letter.topic, letter.partition, letter.offset), (&*topic, Some(0), Some(0)));
    assert!(letter.omitted_bytes.is_some_and(|bytes| bytes > 2_000_000), "{letter:?}");
}

#[tokio::test]
async fn too_large_retry_copy_waits_with_the_consumer() {
    let topic = fresh_topic("large-retry");
    create_topic(&topic, 1, &[("max.message.bytes", "5000000")]).await;
    write_with(&topic, vec![of_body(noise(2_000_000))], &[("message.max.bytes", "6000000")]).await;
    let retry = format!("{topic}.g-{topic}.retry.1s");
    create_topic(&retry, 1, &[("max.message.bytes", "5000")]).await;
    let (mut member, _) = open(&topic, |request| {
        request.retry = Retry::none().delayed([Duration::from_secs(1)]);
        request.options.insert(options().with_retry_mode(RetryMode::Topics));
    })
    .await;
    let mut delivery = member.next().await;
    assert!(delivery.settle.begin());
    let state = RetryState::default().failed(cqrs_core::event::Timestamp::now());
    let delayed = delivery.settle.retry_later(Duration::from_secs(1), &state).await.unwrap();
    assert_eq!(delayed, Delayed::Hold);
    delivery.settle.ack().await.unwrap();
    member.close().await;
}

/// The dead-letter topic takes nothing at all.
#[tokio::test]
async fn refused_dead_letter_holds_only_its_record() {
    log::show_warnings();
    let topic = fresh_topic("stuck");
    create_topic(&topic, 2, &[]).await;
    let dead = fresh_topic("stuck-dead");
    create_topic(&dead, 1, &[("max.message.bytes", "10")]).await;
    let good = |number: u32| {
        let event = NotificationEvent::new(Ordered { number });
        let mut raw = Raw::new(&format!("key-{number}"), &serde_json::to_string(&event).unwrap());
        raw.partition = i32::from(number >= 50);
        raw
    };
    let mut records = vec![Raw::new("bad", "no event")];
    records.extend((0..100).map(good));
    write(&topic, records).await;
    let handled = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&handled);
    let handler = each(move |event: NotificationEvent<Ordered>, _: Received| {
        let seen = Arc::clone(&seen);
        async move {
            seen.lock().unwrap().insert(event.payload.number);
            Ok(())
        }
    });
    let broker = KafkaMessageBroker::new(KafkaConfig::new([servers::kafka()])).unwrap();
    let subscription = Subscription::to(&*topic)
        .group("g")
        .json::<Ordered>()
        .dead_letter(DeadLetterTarget::Named(dead.into()))
        .option(KafkaSubscription::new());
    let service = Service::builder(broker).subscribe(subscription, handler).build().unwrap();
    let health = service.health();
    let done = async move {
        let end = Instant::now() + TIMEOUT;
        loop {
            let state = health.subscriptions().remove(0).state;
            let count = handled.lock().unwrap().len();
            if let SubscriptionState::Stuck { reason } = &state
                && count == 100
            {
                assert!(reason.contains(&format!("{topic} [0] at offset 0")), "{reason}");
                break;
            }
            assert!(Instant::now() < end, "{count} of 100 handled, {state:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let report = service.run_until(done).await.unwrap();
    let counts = report.subscriptions[0].counts;
    assert_eq!((counts.handled, counts.dead_lettered, counts.given_back), (100, 0, 1));
}

#[tokio::test]
async fn header_name_that_is_no_utf8_hides_no_other() {
    let topic = fresh_topic("latin");
    create_topic(&topic, 1, &[]).await;
    let headers: [(&[u8], &[u8]); 3] = [(b"first", b"1"), (b"caf\xe9", b"2"), (b"last", b"3")];
    let of = topic.clone();
    tokio::task::spawn_blocking(move || kafka_wire::produce(&of, b"no event", &headers))
        .await
        .unwrap();
    let (mut member, group) = open(&topic, |_| {}).await;
    let mut delivery = member.next().await;
    let seen: Vec<_> = delivery.message.headers.iter().collect();
    assert_eq!(seen, [("first", "1"), ("last", "3")]);
    assert_eq!(delivery.message.unreadable, None);
    assert!(delivery.settle.begin());
    delivery.settle.dead_letter(&letter(&topic, &group)).await.unwrap();
    delivery.settle.ack().await.unwrap();
    member.close().await;
    let dead = format!("{topic}.{group}.dead");
    let found = tokio::task::spawn_blocking(move || kafka_wire::fetch(&dead)).await.unwrap();
    let has = |part: &[u8]| found.windows(part.len()).any(|window| window == part);
    for (name, value) in headers {
        assert!(has(&kafka_wire::header(name, value)), "{name:?} is there byte for byte");
    }
    assert!(has(&kafka_wire::header(b"cqrs-dead-letter-reason", b"decode")));
}

#[tokio::test]
async fn too_many_headers_are_a_decode_error() {
    let topic = fresh_topic("headers");
    create_topic(&topic, 1, &[]).await;
    let mut raw = Raw::new("key", "body");
    raw.headers = (0..40_000).map(|n| (format!("h{n}"), Some(Vec::new()))).collect();
    let mut most = Raw::new("key", "body");
    most.headers = (0..1_024).map(|n| (format!("h{n}"), Some(Vec::new()))).collect();
    write(&topic, vec![raw.clone(), most]).await;
    let (mut member, group) = open(&topic, |_| {}).await;
    let mut delivery = member.next().await;
    assert_eq!(delivery.message.headers.len(), 0);
    let why = delivery.message.unreadable.clone().unwrap();
    assert!(why.contains("40000 headers"), "{why}");
    assert!(delivery.settle.begin());
    delivery.settle.dead_letter(&letter(&topic, &group)).await.unwrap();
    delivery.settle.ack().await.unwrap();
    let most = member.next().await;
    assert_eq!((most.message.headers.len(), &most.message.unreadable), (1_024, &None));
    drop(most.settle);
    member.close().await;
    let dead = read_raw(&format!("{topic}.{group}.dead")).await;
    assert_eq!(dead[0].1.headers[..40_000], raw.headers);
}
