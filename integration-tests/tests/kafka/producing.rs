//! Tests of the Kafka producer: its records, its errors, and lost connections.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use cqrs_core::broker::BrokerState;
use cqrs_core::message::content_type;
use cqrs_core::{Message, MessageBroker, MessageBrokerExt, PublishError, PublishErrorKind};
use cqrs_kafka::{Acks, Compression, ErrorKind, KafkaConfig, KafkaError, KafkaMessageBroker};
use integration_tests::kafka::{create_topic, fresh_topic, java_partition, proxy, read_all};
use integration_tests::{log, servers};
use tokio::sync::Mutex;

pub(super) fn config() -> KafkaConfig {
    KafkaConfig::new([servers::kafka()])
}

pub(super) async fn connect(config: KafkaConfig) -> KafkaMessageBroker {
    KafkaMessageBroker::connect(config).await.unwrap()
}

/// The errors under `error`, in words.
pub(super) fn causes(error: &dyn Error) -> Vec<String> {
    std::iter::successors(error.source(), |&error| error.source())
        .map(ToString::to_string)
        .collect()
}

pub(super) fn cause(error: &PublishError) -> &KafkaError {
    error.source().and_then(|source| source.downcast_ref()).expect("a KafkaError as source")
}

/// Publishes to where it cannot succeed, once the broker value has met the cluster or failed to: the
/// error must come with the deadline.
pub(super) async fn failure(mut config: KafkaConfig, deadline: Duration) -> PublishError {
    config.publish_timeout = deadline;
    let broker = KafkaMessageBroker::new(config).unwrap();
    wait_for(&broker, |state| *state != BrokerState::Connecting { last_error: None }).await;
    let started = Instant::now();
    let error = broker.publish(Message::new(fresh_topic("failure"), "{}")).await.unwrap_err();
    let took = started.elapsed();
    assert!(took < deadline + Duration::from_secs(30), "{took:?}");
    println!(
        "SUMMARY kafka failure kind={:?} took={took:.1?} causes={:?}",
        error.kind(),
        causes(&error)
    );
    error
}

#[tokio::test]
async fn every_compression_reads_back_as_it_was_published() {
    for compression in [
        Compression::None,
        Compression::Lz4,
        Compression::Zstd,
        Compression::Snappy,
        Compression::Gzip,
    ] {
        let topic = fresh_topic(compression.as_str());
        create_topic(&topic, 4, &[]).await;
        let mut config = config();
        config.compression = compression;
        let broker = connect(config).await;
        let happened = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let mut receipts = Vec::new();
        for n in 0..50 {
            let mut message = Message::new(&*topic, format!("{{\"n\":{n},{:?}}}", " ".repeat(200)))
                .with_key("one key")
                .with_content_type(content_type::JSON)
                .with_timestamp(happened);
            message.headers.set_correlation_id(format!("c-{n}"));
            message.headers.insert("traceparent", "00-\u{e9}").unwrap();
            receipts.push((message.clone(), broker.enqueue(message).await.unwrap()));
        }
        let mut confirmed = Vec::new();
        for (message, receipt) in receipts {
            confirmed.push((message, receipt.await.unwrap()));
        }
        let records = read_all(&topic).await;
        assert_eq!(records.len(), confirmed.len());
        for (record, (message, confirmation)) in records.iter().zip(&confirmed) {
            assert_eq!(confirmation.partition, Some(record.partition));
            assert_eq!(confirmation.offset, Some(record.offset));
            assert_eq!(record.body.as_deref(), Some(&*message.body), "byte for byte");
            assert_eq!(record.key.as_deref(), Some(&b"one key"[..]));
            assert_eq!(record.timestamp, Some(1_700_000_000_123));
            let sent: Vec<_> = message.headers.iter().collect();
            let read: Vec<_> = record.headers.iter().map(|(n, v)| (&**n, &**v)).collect();
            assert_eq!(read, sent, "and no content type");
        }
    }
}

#[tokio::test]
async fn empty_body_is_no_tombstone() {
    let topic = fresh_topic("frames");
    let broker = connect(config()).await;
    broker.publish(Message::new(&*topic, "").with_key("")).await.unwrap();
    let protobuf = Message::new(&*topic, vec![0xff, 0x00])
        .with_key("")
        .with_name("UserJoined")
        .with_content_type(content_type::PROTOBUF);
    broker.publish(protobuf.clone()).await.unwrap();
    let records = read_all(&topic).await;
    assert_eq!(
        (records[0].body.as_deref(), records[0].key.as_deref()),
        (Some(&[][..]), Some(&[][..]))
    );
    assert_eq!(records[1].body.as_deref(), Some(&[0xff, 0x00][..]));
    let id = protobuf.id.hyphenated().to_string();
    let expected = [("event_name", "UserJoined"), ("message_id", &*id)];
    assert_eq!(records[1].headers, expected.map(|(name, value)| (name.into(), value.into())));
}

#[tokio::test]
async fn a_key_goes_to_the_java_clients_partition() {
    let topic = fresh_topic("murmur2");
    create_topic(&topic, 7, &[]).await;
    let broker = connect(config()).await;
    let mut receipts = Vec::new();
    for n in 0..500 {
        let key = "x".repeat(n % 9) + &n.to_string() + if n % 2 == 0 { "\u{e9}" } else { "" };
        let message = Message::new(&*topic, "{}").with_key(key.clone());
        receipts.push((key, broker.enqueue(message).await.unwrap()));
    }
    let mut used = HashSet::new();
    for (key, receipt) in receipts {
        let partition = receipt.await.unwrap().partition.unwrap();
        assert_eq!(partition, java_partition(key.as_bytes(), 7), "{key:?}");
        used.insert(partition);
    }
    assert_eq!(used.len(), 7);
}

#[tokio::test]
async fn weaker_acks_are_confirmed_too() {
    for acks in [Acks::Leader, Acks::None] {
        let mut config = config();
        (config.acks, config.enable_idempotence) = (acks, false);
        let confirmation =
            connect(config).await.publish(Message::new(fresh_topic("acks"), "{}")).await.unwrap();
        assert_eq!(confirmation.offset.is_some(), acks == Acks::Leader, "{confirmation:?}");
    }
}

#[tokio::test]
async fn a_topic_that_does_not_exist_is_unroutable() {
    let mut config = config();
    config.allow_auto_create_topics = false;
    let error = failure(config, Duration::from_secs(20)).await;
    assert_eq!(error.kind(), PublishErrorKind::Unroutable, "{error:?}");
}

#[tokio::test]
async fn too_large_here_and_too_large_for_the_topic() {
    let topic = fresh_topic("large");
    create_topic(&topic, 1, &[("max.message.bytes", "2000")]).await;
    let broker = connect(config()).await;
    let error = broker.publish(Message::new(&*topic, vec![b'x'; 1_000_001])).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::TooLarge);
    assert!(error.to_string().contains("max_message_size is 1000000"), "{error}");
    let error = broker.publish(Message::new(&*topic, vec![b'x'; 5_000])).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::TooLarge);
    assert!(error.to_string().contains("max.message.bytes of the topic"), "{error}");
    assert_eq!(error.into_message().body.len(), 5_000, "the error returns the message");
    broker.publish(Message::new(&*topic, "small")).await.expect("the next one is not harmed");
}

pub(super) fn proxied() -> KafkaConfig {
    KafkaConfig::new([servers::kafka_proxied()])
}

pub(super) async fn wait_for(broker: &KafkaMessageBroker, what: impl Fn(&BrokerState) -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !what(&broker.state()) {
        assert!(Instant::now() < end, "{:?}", broker.state());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Publishes until it is confirmed: a short deadline may be over before a busy server answers.
async fn until_confirmed(broker: &KafkaMessageBroker, message: Message) {
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(error) = broker.publish(message.clone()).await {
        assert!(Instant::now() < end, "{error:?}");
    }
}

#[tokio::test]
async fn possibly_sent_record_is_unknown_at_its_deadline() {
    let (proxy, _alone) = proxy().await;
    let mut config = proxied();
    config.publish_timeout = Duration::from_secs(4);
    config.request_timeout = Duration::from_secs(1);
    let broker = servers::connected(|| KafkaMessageBroker::connect(config.clone())).await;
    let topic = fresh_topic("unknown");
    create_topic(&topic, 4, &[]).await;
    until_confirmed(&broker, Message::new(&*topic, "1")).await;
    for silent in [true, false] {
        if silent {
            proxy.blackhole(true);
        } else {
            proxy.refuse(true);
            proxy.cut();
        }
        let started = Instant::now();
        let error = broker.publish(Message::new(&*topic, "2")).await.unwrap_err();
        let took = started.elapsed();
        assert!(took < Duration::from_secs(34), "{took:?}");
        assert_eq!(error.kind(), PublishErrorKind::Unknown, "{error:?}");
        assert_eq!(cause(&error).kind(), ErrorKind::Connection, "{error:?}");
        println!(
            "SUMMARY kafka unknown silent={silent} took={took:.1?} causes={:?}",
            causes(&error)
        );
        proxy.refuse(false);
        proxy.blackhole(false);
        until_confirmed(&broker, Message::new(&*topic, "3")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cuts_keep_the_order_of_keys_over_64_tasks() {
    const TASKS: usize = 64;
    const EACH: usize = 100;
    const KEYS: usize = 8;
    let (proxy, _alone) = proxy().await;
    let broker = connect(proxied()).await;
    let topic = fresh_topic("cuts");
    create_topic(&topic, 4, &[]).await;
    // Order per key is the order in which `enqueue` resolved, so the number is drawn under the lock.
    let numbers: Arc<Vec<Mutex<usize>>> = Arc::new((0..KEYS).map(|_| Mutex::new(0)).collect());
    let confirmed = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let (broker, topic) = (broker.clone(), topic.clone());
        let (numbers, confirmed) = (Arc::clone(&numbers), Arc::clone(&confirmed));
        tasks.push(tokio::spawn(async move {
            for n in 0..EACH {
                let key = (task + n) % KEYS;
                let mut number = numbers[key].lock().await;
                let message = Message::new(&*topic, number.to_string()).with_key(key.to_string());
                let receipt = broker.enqueue(message).await.unwrap();
                *number += 1;
                drop(number);
                receipt.await.unwrap();
                confirmed.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let mut cuts = 0;
    for part in 1..=10 {
        while confirmed.load(Ordering::Relaxed) < part * TASKS * EACH / 12 {
            assert!(started.elapsed() < Duration::from_secs(120));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        proxy.cut();
        cuts += 1;
    }
    for task in tasks {
        task.await.unwrap();
    }
    let records = read_all(&topic).await;
    let mut next: HashMap<Vec<u8>, usize> = HashMap::new();
    for record in &records {
        let number: usize =
            String::from_utf8(record.body.clone().unwrap()).unwrap().parse().unwrap();
        let expected = next.entry(record.key.clone().unwrap()).or_default();
        assert_eq!(number, *expected, "lost, twice or out of order: key {:?}", record.key);
        *expected += 1;
    }
    assert_eq!(records.len(), TASKS * EACH);
    assert!(proxy.accepted() > cuts, "it reconnected");
    println!(
        "SUMMARY kafka cuts={cuts} tasks={TASKS} events={} lost=0 duplicates=0 reordered=0 took={:.1?}",
        records.len(),
        started.elapsed()
    );
}

/// The broker judges whole batches by the limit of the topic.
#[tokio::test]
async fn only_a_record_too_large_alone_is_too_large() {
    log::show_warnings();
    let topic = fresh_topic("batches");
    create_topic(&topic, 1, &[("max.message.bytes", "20000")]).await;
    let broker = KafkaMessageBroker::connect(KafkaConfig::new([servers::kafka()])).await.unwrap();
    let mut receipts = Vec::new();
    for number in 0..600 {
        let length = if number == 150 { 30_000 } else { 1_000 };
        let body = format!("{number:0length$}");
        let message = Message::new(&*topic, body).with_key(format!("key-{number}"));
        receipts.push(broker.enqueue(message).await.unwrap());
    }
    for (number, receipt) in receipts.into_iter().enumerate() {
        let kind = receipt.await.err().map(|error| error.kind());
        let expected = (number == 150).then_some(PublishErrorKind::TooLarge);
        assert_eq!(kind, expected, "{number}");
    }
    // The producer knows the limit now: one key, in order.
    let mut receipts = Vec::new();
    for number in 0..600 {
        let message = Message::new(&*topic, format!("{number:01000}")).with_key("key");
        receipts.push(broker.enqueue(message).await.unwrap());
    }
    let mut last = None;
    for receipt in receipts {
        let offset = receipt.await.unwrap().offset;
        assert!(last < offset, "{last:?} then {offset:?}");
        last = offset;
    }
    assert_eq!(broker.shutdown(Duration::from_secs(10)).await.undelivered, 0);
}
