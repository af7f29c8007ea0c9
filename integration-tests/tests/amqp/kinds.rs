//! Tests of the RabbitMQ source on queues other than quorum queues.

use std::time::{Duration, SystemTime};

use cqrs_amqp::{AmqpSubscription, QueueKind, StreamOffset};
use cqrs_core::Retry;
use cqrs_core::consume::{DeadLetter, DeadLetterReason, Delayed, RetryState, SubscribeRequest};
use cqrs_core::event::Timestamp;
use cqrs_testkit::source::text;
use integration_tests::amqp::QueueTest;
use integration_tests::consuming::{interrupt, open};
use lapin::BasicProperties;

fn with(options: AmqpSubscription) -> impl FnOnce(&mut SubscribeRequest) {
    |request| {
        request.retry = Retry::none().delayed([Duration::from_secs(1)]);
        request.options.insert(options);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_is_reread_from_its_first_unsettled_message() {
    let test = QueueTest::new("stream").await;
    let stream = || AmqpSubscription::new().with_kind(QueueKind::Stream);
    let mut source = test.open(with(stream())).await;
    test.put(0..6).await;
    let mut out = source.take(4).await;
    assert_eq!(out[3].message.offset, Some(3));
    // There is no retry queue: its copies would be read by every group.
    let state = RetryState::default().failed(Timestamp::now());
    let later = out[0].settle.retry_later(Duration::from_secs(1), &state).await.unwrap();
    assert_eq!(later, Delayed::Hold);
    assert!(!test.raw.exists(&test.queue_of("retry.1s")).await);
    // A dropped delivery is redelivered, while the others stay valid.
    drop(out.remove(0));
    assert_eq!(source.ack(2).await, ["4", "5"]);
    let mut again = source.next().await;
    assert_eq!((text(&again), again.message.redelivered), ("0".into(), true));
    again.settle.ack().await.unwrap();
    for delivery in &mut out[..2] {
        delivery.settle.ack().await.unwrap();
    }
    // 3 is left: reading goes on there, and what was settled behind it is skipped.
    interrupt(&test.proxy, &mut source).await;
    assert!(out[2].settle.is_revoked());
    test.put(["6"]).await;
    let mut third = source.next().await;
    assert_eq!((text(&third), third.message.offset), ("3".into(), Some(3)));
    let letter = DeadLetter::new(DeadLetterReason::Decode, &*test.name, "g");
    third.settle.dead_letter(&letter).await.unwrap();
    third.settle.ack().await.unwrap();
    assert_eq!(source.ack(1).await, ["6"]);
    source.nothing_within(Duration::from_millis(300)).await;
    source.close().await;
    assert_eq!(test.raw.drain(&test.queue_of("dead")).await.len(), 1);
    // A stream keeps no place for a group.
    let options = stream().with_offset(StreamOffset::Offset(5));
    let mut source = test.open(with(options)).await;
    assert_eq!(source.ack(2).await, ["5", "6"]);
    source.close().await;
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_queue_of_an_exclusive_queue_is_exclusive() {
    let test = QueueTest::new("exclusive").await;
    let options = AmqpSubscription::new().with_exclusive(true);
    let mut source = test.open(with(options)).await;
    for round in 0..2 {
        test.publish(b"x", BasicProperties::default()).await;
        let mut delivery = source.next().await;
        let state = RetryState::default().failed(Timestamp::now());
        let start = SystemTime::now();
        delivery.settle.retry_later(Duration::from_secs(1), &state).await.unwrap();
        delivery.settle.ack().await.unwrap();
        let mut again = source.next().await;
        assert!(start.elapsed().unwrap() >= Duration::from_secs(1));
        assert_eq!((again.retry, &*again.message.topic), (state, &*test.name));
        again.settle.ack().await.unwrap();
        if round == 0 {
            interrupt(&test.proxy, &mut source).await;
        }
    }
    source.close().await;
    // Gone with the connection.
    assert!(
        !test.raw.exists(&test.queue).await && !test.raw.exists(&test.queue_of("retry.1s")).await
    );
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_delete_queue_has_retries() {
    let test = QueueTest::new("fleeting").await;
    let options = AmqpSubscription::new().with_durable(false).with_auto_delete(true);
    let mut source = test.open(with(options)).await;
    test.publish(b"x", BasicProperties::default()).await;
    let mut delivery = source.next().await;
    let state = RetryState::default().failed(Timestamp::now());
    delivery.settle.retry_later(Duration::from_secs(1), &state).await.unwrap();
    delivery.settle.ack().await.unwrap();
    let mut again = source.next().await;
    assert_eq!(again.retry, state);
    again.settle.ack().await.unwrap();
    source.close().await;
    assert!(!test.raw.exists(&test.queue).await, "deleted with its consumer");
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_topics_are_several_queues_of_one_source() {
    let test = QueueTest::new("topics").await;
    let topics = ["a", "b"].map(|topic| format!("{}.{topic}", test.name));
    let names = topics.each_ref().map(String::as_str);
    let mut source = open(&test.broker, &names, "g", |request| {
        request.retry = Retry::none();
        request.max_unsettled = Some(4);
    })
    .await;
    for topic in names {
        for _ in 0..4 {
            test.raw.publish(&test.name, topic, topic.as_bytes(), BasicProperties::default()).await;
        }
    }
    let out = source.take(4).await;
    source.nothing_within(Duration::from_millis(200)).await;
    for delivery in &out {
        assert_eq!(delivery.message.queue.as_deref(), Some(&*format!("{}.g", text(delivery))));
        assert_eq!(&*delivery.message.topic, text(delivery));
    }
    assert!(names.iter().all(|name| out.iter().any(|delivery| text(delivery) == *name)));
    for mut delivery in out {
        delivery.settle.ack().await.unwrap();
    }
    assert_eq!(source.ack(4).await.len(), 4);
    source.close().await;
    let queues = topics.map(|topic| format!("{topic}.g"));
    test.raw.clean(&queues.each_ref().map(String::as_str), &[&test.name]).await;
}
