//! Tests of the producer on librdkafka's mock cluster, and without a server.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

use std::collections::HashMap;
use std::error::Error;
use std::time::{Duration, Instant};

use cqrs_core::broker::{BrokerState, Receipt};
use cqrs_core::{Message, MessageBroker, MessageBrokerExt, PublishErrorKind};
use cqrs_kafka::{ErrorKind, KafkaConfig, KafkaError, KafkaMessageBroker, Sasl};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

const TOPIC: &str = "events";

fn cluster() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 4, 1).unwrap();
    cluster
}

fn config(cluster: &MockCluster<'_, DefaultProducerContext>) -> KafkaConfig {
    KafkaConfig::new([cluster.bootstrap_servers()])
}

fn message(key: &str) -> Message {
    Message::new(TOPIC, "body").with_key(key.to_owned())
}

fn cause<'a>(error: &'a (dyn Error + 'static)) -> &'a KafkaError {
    error.source().and_then(|source| source.downcast_ref()).expect("a KafkaError as source")
}

fn assert_public<T: std::fmt::Debug + Send + Sync>() {}

#[test]
fn public_types_are_debug_send_and_sync() {
    assert_public::<KafkaMessageBroker>();
    assert_public::<KafkaConfig>();
    assert_public::<KafkaError>();
    assert_public::<cqrs_kafka::TokenProvider>();
    assert_public::<cqrs_kafka::OAuthToken>();
}

#[tokio::test]
async fn confirm_has_partition_and_offset() {
    let cluster = cluster();
    let broker = KafkaMessageBroker::connect(config(&cluster)).await.unwrap();
    assert_eq!(broker.state(), BrokerState::Ready);
    let first = broker.publish(message("a")).await.unwrap();
    let second = broker.publish(message("a")).await.unwrap();
    assert_eq!(first.partition, second.partition);
    assert_eq!((first.offset, second.offset), (Some(0), Some(1)));
    assert_eq!(broker.shutdown(Duration::from_secs(5)).await.undelivered, 0);
    assert_eq!(broker.state(), BrokerState::Closed);
    let error = broker.publish(message("a")).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Closed);
}

/// The offsets of a key's messages, in order of enqueueing, must grow: the log has that order.
async fn assert_in_order(receipts: Vec<(String, Receipt)>) {
    let mut last = HashMap::new();
    for (key, receipt) in receipts {
        let offset = receipt.await.unwrap().offset.unwrap();
        let before = last.insert(key.clone(), offset);
        assert!(before.is_none_or(|before| before < offset), "{key}: {before:?} then {offset}");
    }
}

#[tokio::test]
async fn order_holds_while_librdkafkas_own_queue_is_full() {
    let cluster = cluster();
    let config = config(&cluster).with_raw("queue.buffering.max.messages", "7");
    let broker = KafkaMessageBroker::connect(config).await.unwrap();
    let mut receipts = Vec::new();
    for n in 0..600 {
        let key = format!("key-{}", n % 5);
        receipts.push((key.clone(), broker.enqueue(message(&key)).await.unwrap()));
    }
    assert_in_order(receipts).await;
}

#[tokio::test]
async fn order_holds_across_the_first_contact() {
    let cluster = cluster();
    let broker = KafkaMessageBroker::new(config(&cluster)).unwrap();
    let mut receipts = Vec::new();
    // The first ones are queued until the connection, the others are not.
    while receipts.len() < 200 || !broker.state().is_ready() {
        let key = format!("key-{}", receipts.len() % 5);
        receipts.push((key.clone(), broker.enqueue(message(&key)).await.unwrap()));
        tokio::task::yield_now().await;
    }
    for n in 0..200 {
        let key = format!("key-{}", n % 5);
        receipts.push((key.clone(), broker.enqueue(message(&key)).await.unwrap()));
    }
    assert_in_order(receipts).await;
}

#[tokio::test]
async fn failed_producer_is_replaced() {
    let cluster = cluster();
    let broker = KafkaMessageBroker::connect(config(&cluster)).await.unwrap();
    broker.publish(message("a")).await.unwrap();
    cluster.request_errors(
        RDKafkaApiKey::Produce,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER],
    );
    let error = broker.publish(message("a")).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Unknown, "{error:?}");
    assert_eq!(cause(&error).kind(), ErrorKind::Fatal, "{error:?}");
    broker.publish(message("a")).await.expect("a new producer");
    assert_eq!(broker.state(), BrokerState::Ready);
}

#[tokio::test]
async fn refused_principal_is_retried_after_a_pause() {
    let cluster = cluster();
    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::InitProducerId, &[refusal]);
    let broker = KafkaMessageBroker::connect(config(&cluster)).await.unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let error = broker.publish(message("a")).await.unwrap_err();
        if error.kind() == PublishErrorKind::Refused {
            assert_eq!(cause(&error).kind(), ErrorKind::Authorization, "{error:?}");
            break;
        }
        assert!(Instant::now() < end, "{error:?}");
    }
    // The broker accepts it from now on, but there is no new attempt yet.
    let error = broker.publish(message("a")).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Refused, "{error:?}");
    while broker.publish(message("a")).await.is_err() {
        assert!(Instant::now() < end, "a new producer is made in the end");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn refusal_of_a_record_reaches_the_caller() {
    let cluster = cluster();
    let broker = KafkaMessageBroker::connect(config(&cluster)).await.unwrap();
    for (answer, kind, source) in [
        (
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
            PublishErrorKind::TooLarge,
            ErrorKind::Broker,
        ),
        (
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_POLICY_VIOLATION,
            PublishErrorKind::Refused,
            ErrorKind::Broker,
        ),
        (
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            PublishErrorKind::Refused,
            ErrorKind::Authorization,
        ),
    ] {
        cluster.request_errors(RDKafkaApiKey::Produce, &[answer]);
        let error = broker.publish(message("a")).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert_eq!(cause(&error).kind(), source, "{error:?}");
    }
}

#[tokio::test]
async fn refused_batch_is_sent_again_before_newer_records() {
    let cluster = cluster();
    let broker = KafkaMessageBroker::connect(config(&cluster)).await.unwrap();
    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.request_errors(RDKafkaApiKey::Produce, &[refusal; 3]);
    let mut receipts = Vec::new();
    for n in 0..300 {
        let key = format!("key-{}", n % 5);
        receipts.push((key.clone(), broker.enqueue(message(&key)).await.unwrap()));
    }
    assert_in_order(receipts).await;
    assert_eq!(broker.shutdown(Duration::from_secs(10)).await.undelivered, 0);
}

/// One batch is refused while the next ones wait in librdkafka, and new messages are published. librdkafka sends the
/// next batch before the refusal is reported, so older messages of its keys fail to keep the order.
#[tokio::test]
async fn nothing_newer_overtakes_a_refused_batch() {
    let cluster = cluster();
    let mut config = config(&cluster);
    config.max_in_flight_requests_per_connection = 1;
    let broker = KafkaMessageBroker::connect(config).await.unwrap();
    broker.publish(message("first")).await.unwrap();
    cluster.broker_round_trip_time(1, Duration::from_millis(100)).unwrap();
    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.request_errors(RDKafkaApiKey::Produce, &[refusal]);
    let mut receipts = Vec::new();
    for n in 0..300 {
        let key = format!("key-{}", n % 5);
        receipts.push((key.clone(), broker.enqueue(message(&key)).await.unwrap()));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let (mut last, mut stored) = (HashMap::new(), 0);
    for (key, receipt) in receipts {
        match receipt.await {
            Ok(confirmed) => {
                let before = last.insert(key.clone(), confirmed.offset);
                assert!(before < Some(confirmed.offset), "{key}: {before:?}, {confirmed:?}");
                stored += 1;
            }
            Err(error) => assert_eq!(error.kind(), PublishErrorKind::NotSent, "{error:?}"),
        }
    }
    assert!(stored > 200, "only overtaken messages fail, but {stored} of 300 were stored");
}

/// Two records in one batch, which is refused once after `answer_after`.
async fn refused_once(
    cluster: &MockCluster<'_, DefaultProducerContext>,
    answer_after: Duration,
) -> (KafkaMessageBroker, [Receipt; 2]) {
    let mut config = config(cluster);
    config.linger = Duration::from_millis(200);
    let broker = KafkaMessageBroker::connect(config).await.unwrap();
    broker.publish(message("a")).await.unwrap();
    cluster.broker_round_trip_time(1, answer_after).unwrap();
    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.request_errors(RDKafkaApiKey::Produce, &[refusal]);
    let receipts =
        [broker.enqueue(message("a")).await.unwrap(), broker.enqueue(message("a")).await.unwrap()];
    (broker, receipts)
}

#[tokio::test]
async fn batch_refused_during_shutdown_is_sent_again() {
    let cluster = cluster();
    let (broker, receipts) = refused_once(&cluster, Duration::from_millis(500)).await;
    assert_eq!(broker.shutdown(Duration::from_secs(20)).await.undelivered, 0);
    for receipt in receipts {
        receipt.await.unwrap();
    }
    let (broker, receipts) = refused_once(&cluster, Duration::from_millis(500)).await;
    drop(broker);
    for receipt in receipts {
        receipt.await.expect("a dropped broker delivers its messages");
    }
}

#[tokio::test]
async fn refused_batch_does_not_wait_for_stuck_topics() {
    let cluster = cluster();
    cluster.create_topic("stuck", 1, 1).unwrap();
    let (broker, receipts) = refused_once(&cluster, Duration::from_millis(500)).await;
    cluster.partition_leader("stuck", 0, None).unwrap();
    let stuck = broker.enqueue(Message::new("stuck", "body")).await.unwrap();
    let started = Instant::now();
    for receipt in receipts {
        assert_eq!(receipt.await.unwrap_err().kind(), PublishErrorKind::NotSent);
    }
    broker.publish(message("a")).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    drop(stuck);
}

/// Waits until a connection failed.
async fn until_it_failed(broker: &KafkaMessageBroker) {
    let end = Instant::now() + Duration::from_secs(60);
    while !matches!(broker.state(), BrokerState::Connecting { last_error: Some(_) }) {
        assert!(Instant::now() < end, "{:?}", broker.state());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn unreachable_cluster_is_not_sent_with_its_cause() {
    for (server, kind) in
        [("127.0.0.1:1", ErrorKind::Connection), ("no-such-host.invalid:9092", ErrorKind::Resolve)]
    {
        let mut config = KafkaConfig::new([server]);
        config.publish_timeout = Duration::from_secs(3);
        let broker = KafkaMessageBroker::new(config).unwrap();
        until_it_failed(&broker).await;
        let started = Instant::now();
        let error = broker.publish(message("a")).await.unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(33), "{:?}", started.elapsed());
        assert_eq!(error.kind(), PublishErrorKind::NotSent, "{error:?}");
        assert_eq!(cause(&error).kind(), kind, "{error:?}");
        let BrokerState::Connecting { last_error: Some(text) } = broker.state() else {
            panic!("{:?}", broker.state());
        };
        assert_eq!(*text, *cause(&error).to_string());
    }
}

#[tokio::test]
async fn connect_fails_with_its_cause() {
    let mut config = KafkaConfig::new(["127.0.0.1:1"]);
    config.publish_timeout = Duration::from_secs(5);
    let error = KafkaMessageBroker::connect(config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert!(cause(&error).to_string().contains("127.0.0.1:1"), "{error:?}");
}

#[tokio::test]
async fn contradiction_is_an_error_before_connecting() {
    let config = KafkaConfig::new(["127.0.0.1:1"]).with_sasl(Sasl::plain("me", ""));
    let error = KafkaMessageBroker::new(config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let tls = cqrs_kafka::TlsConfig::new().with_ca("/no/such/ca.pem");
    let error = KafkaMessageBroker::new(KafkaConfig::new(["a:1"]).with_tls(tls)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("ssl.ca.location"), "{error}");
}

#[tokio::test]
async fn window_bounds_messages_in_flight() {
    let cluster = cluster();
    let mut config = config(&cluster);
    config.window_messages = 2;
    let broker = KafkaMessageBroker::connect(config).await.unwrap();
    cluster.broker_round_trip_time(1, Duration::from_secs(2)).unwrap();
    let held =
        [broker.try_enqueue(message("a")).unwrap(), broker.try_enqueue(message("b")).unwrap()];
    let error = broker.try_enqueue(message("c")).unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Full);
    broker.publish(error.into_message()).await.expect("it waits for a slot");
    for receipt in held {
        receipt.await.unwrap();
    }
}

#[tokio::test]
async fn shutdown_flushes_and_reports_the_rest() {
    let cluster = cluster();
    let broker = KafkaMessageBroker::connect(config(&cluster)).await.unwrap();
    let delivered = broker.enqueue(message("a")).await.unwrap();
    assert_eq!(broker.shutdown(Duration::from_secs(10)).await.undelivered, 0);
    delivered.await.unwrap();

    let broker = KafkaMessageBroker::connect(config(&cluster)).await.unwrap();
    broker.publish(message("a")).await.unwrap();
    cluster.broker_round_trip_time(1, Duration::from_secs(20)).unwrap();
    let stuck = broker.enqueue(message("a")).await.unwrap();
    let started = Instant::now();
    let (one, other) = tokio::join!(
        broker.shutdown(Duration::from_millis(300)),
        broker.shutdown(Duration::from_secs(60))
    );
    assert_eq!((one.undelivered, other.undelivered), (1, 1));
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    assert_eq!(stuck.await.unwrap_err().kind(), PublishErrorKind::Unknown);

    let broker = KafkaMessageBroker::new(KafkaConfig::new(["127.0.0.1:1"])).unwrap();
    let waiting = broker.enqueue(message("a")).await.unwrap();
    assert_eq!(broker.shutdown(Duration::from_millis(100)).await.undelivered, 1);
    assert_eq!(waiting.await.unwrap_err().kind(), PublishErrorKind::Closed);
}

#[tokio::test]
async fn dropped_broker_still_delivers_its_messages() {
    let cluster = cluster();
    // Before the first connection.
    let broker = KafkaMessageBroker::new(config(&cluster)).unwrap();
    let receipt = broker.enqueue(message("a")).await.unwrap();
    drop(broker);
    receipt.await.unwrap();

    let broker = KafkaMessageBroker::connect(config(&cluster)).await.unwrap();
    broker.publish(message("a")).await.unwrap();
    cluster.broker_round_trip_time(1, Duration::from_secs(10)).unwrap();
    let receipt = broker.enqueue(message("a")).await.unwrap();
    let started = Instant::now();
    drop(broker);
    // The drop does not wait for the answer.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    receipt.await.unwrap();
}

/// A new topic can be in the broker's metadata before its partitions are writable, and a partition without state of
/// the producer accepts its second batch without the first. librdkafka concludes from the second confirm that the
/// first batch was written too.
#[tokio::test]
async fn implicit_ack_is_unknown() {
    let cluster = cluster();
    let mut config = config(&cluster);
    config.linger = Duration::ZERO;
    let broker = KafkaMessageBroker::connect(config).await.unwrap();
    broker.publish(message("a")).await.unwrap();
    cluster.broker_round_trip_time(1, Duration::from_secs(5)).unwrap();
    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
    cluster.request_errors(RDKafkaApiKey::Produce, &[refusal]);
    let first = broker.enqueue(message("a")).await.unwrap();
    // The second has its own batch, which is in flight together with the answer to the first.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = broker.publish(message("a")).await.unwrap();
    assert_eq!(second.offset, Some(1), "the first is not in the log");
    let error = first.await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Unknown, "{error}");
    assert!(error.to_string().contains("only later records"), "{error}");
    assert!(error.message().key.is_some(), "it is returned");
}
