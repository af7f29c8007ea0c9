//! Tests of the injected faults, through the broker contract.

use std::future::poll_fn;
use std::time::Duration;

use tokio::time::Instant;

use crate::consume::StartAt;
use crate::consume::{
    BrokerOptions, DeadLetter, DeadLetterReason, Delayed, Retry, RetryState, Source,
    SourceDelivery, StatusReporter, Subscribe, SubscribeRequest, TopicSet,
};
use crate::memory::{MemoryRetry, MemorySubscription};
use crate::{MemoryBroker, Message, MessageBroker, MessageBrokerExt, PublishErrorKind};

fn message(body: &'static str) -> Message {
    Message::new("t", body).with_key("k")
}

async fn source(broker: &MemoryBroker, options: MemorySubscription) -> Box<dyn Source> {
    let (status, _) = StatusReporter::new();
    let mut request = SubscribeRequest::new(TopicSet::Named(vec!["t".into()]), "g", status);
    request.retry = Retry::default();
    request.options = BrokerOptions::default();
    request.options.insert(options);
    Subscribe::subscribe(broker, request).await.unwrap()
}

async fn next(source: &mut Box<dyn Source>) -> SourceDelivery {
    let next = poll_fn(|cx| source.poll_next(cx));
    tokio::time::timeout(Duration::from_secs(3600), next).await.expect("none").unwrap().unwrap()
}

fn body(delivery: &SourceDelivery) -> &[u8] {
    delivery.message.body.as_deref().unwrap()
}

/// `true` if no delivery is ready.
async fn is_quiet(source: &mut Box<dyn Source>) -> bool {
    let next = poll_fn(|cx| source.poll_next(cx));
    tokio::time::timeout(Duration::ZERO, next).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn lost_and_withheld_confirms_end_as_unknown() {
    let broker = MemoryBroker::builder().publish_timeout(Duration::from_secs(5)).build();
    let started = Instant::now();
    broker.faults().lose_confirms(1);
    let error = broker.publish(message("1")).await.unwrap_err();
    assert_eq!((error.kind(), started.elapsed()), (PublishErrorKind::Unknown, Duration::ZERO));
    broker.faults().withhold_confirms(1);
    let withheld = broker.enqueue(message("2")).await.unwrap();
    broker.publish(message("3")).await.unwrap();
    assert_eq!(broker.waiting(), 1, "it keeps its place in the window");
    let error = withheld.await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Unknown);
    assert_eq!(started.elapsed(), Duration::from_secs(5));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!((broker.waiting(), broker.messages("t").len()), (0, 3), "all are stored");
}

#[tokio::test]
async fn refused_messages_are_not_stored_until_clear() {
    let broker = MemoryBroker::new();
    broker.faults().refuse_messages(usize::MAX);
    for _ in 0..3 {
        let error = broker.publish(message("1")).await.unwrap_err();
        assert_eq!(error.kind(), PublishErrorKind::Refused);
    }
    broker.faults().clear();
    broker.publish(message("2")).await.unwrap();
    assert_eq!(broker.messages("t").len(), 1);
}

#[tokio::test]
async fn duplicates_have_one_id_and_need_room() {
    let broker = MemoryBroker::builder().capacity(3).build();
    broker.create_group("t", "nobody", StartAt::Earliest);
    broker.faults().duplicate_messages(2);
    let confirmed = broker.publish(message("1")).await.unwrap();
    broker.publish(message("2")).await.unwrap();
    let messages = broker.messages("t");
    assert_eq!((confirmed.offset, messages.len()), (Some(0), 3));
    assert_eq!(messages[0].id, messages[1].id);
    assert_eq!(messages[2].body, "2", "there was no room for another");
}

#[tokio::test(start_paused = true)]
async fn revoked_delivery_settles_nothing() {
    let broker = MemoryBroker::new();
    let mut source = source(&broker, MemorySubscription::default()).await;
    broker.publish(message("1")).await.unwrap();
    broker.publish(message("2")).await.unwrap();
    let mut running = next(&mut source).await;
    assert!(running.settle.begin() && !running.settle.is_revoked());
    let state = RetryState { attempts: 2, ..RetryState::default() };
    let held = running.settle.retry_later(Duration::from_secs(10), &state).await.unwrap();
    assert_eq!(held, Delayed::Hold);

    assert_eq!(broker.faults().revoke("t", "g"), 1);
    assert!(!running.settle.begin() && running.settle.is_revoked());
    let mut again = next(&mut source).await;
    assert_eq!((body(&again), again.message.redelivered), (b"1".as_slice(), true));
    assert_eq!(again.retry.attempts, 2, "what is known of it goes with it");
    for _ in 0..2 {
        let error = running.settle.ack().await.unwrap_err();
        assert!(error.to_string().contains("revoked"), "{error}");
    }
    drop(running);
    assert!(again.settle.begin());
    let second = next(&mut source).await;
    assert_eq!((body(&second), second.message.redelivered), (b"2".as_slice(), false));
    for mut delivery in [again, second] {
        delivery.settle.ack().await.unwrap();
    }
    assert!(is_quiet(&mut source).await);
    assert_eq!(broker.faults().revoke("t", "g"), 0);
    assert_eq!(broker.faults().revoke("t", "no such group"), 0);
}

#[tokio::test(start_paused = true)]
async fn revoked_message_of_deleted_group_is_evictable() {
    let broker = MemoryBroker::builder().capacity(1).build();
    let held = broker.subscriber("t", "g");
    broker.publish(message("1")).await.unwrap();
    let held = held.recv().await.unwrap();
    broker.faults().revoke("t", "g");
    broker.delete_group("t", "g");
    drop(held);
    broker.publish(message("2")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn redelivered_messages_precede_later_ones() {
    let broker = MemoryBroker::new();
    let mut source = source(&broker, MemorySubscription::default()).await;
    for body in ["1", "2", "3", "4"] {
        broker.publish(message(body)).await.unwrap();
    }
    for _ in 0..3 {
        next(&mut source).await.settle.ack().await.unwrap();
    }
    assert_eq!(broker.faults().redeliver("t", "g", 2), 2);
    for (expected, redelivered) in [("2", true), ("3", true), ("4", false)] {
        let mut delivery = next(&mut source).await;
        assert_eq!(body(&delivery), expected.as_bytes());
        assert_eq!(delivery.message.redelivered, redelivered);
        delivery.settle.ack().await.unwrap();
    }
    assert!(is_quiet(&mut source).await);
    assert_eq!(broker.faults().redeliver("t", "g", 9), 4, "there are no more");
    assert_eq!(broker.faults().redeliver("t", "g", 9), 0, "none of them is settled now");
    assert_eq!(broker.faults().redeliver("no such topic", "g", 1), 0);
}

#[tokio::test(start_paused = true)]
async fn injected_settle_failures_can_be_retried() {
    let broker = MemoryBroker::new();
    let mut source = source(&broker, MemorySubscription::default()).await;
    broker.publish(message("1")).await.unwrap();
    let mut delivery = next(&mut source).await;
    let faults = broker.faults();
    faults.fail_retries(1);
    faults.fail_dead_letters(1);
    faults.fail_acks(1);
    let letter = DeadLetter::new(DeadLetterReason::Permanent, "t", "g");
    for attempt in 0..2 {
        let fails = attempt == 0;
        let retried = delivery.settle.retry_later(Duration::ZERO, &RetryState::default()).await;
        assert_eq!(retried.is_err(), fails);
        assert_eq!(delivery.settle.dead_letter(&letter).await.is_err(), fails);
        assert_eq!(delivery.settle.ack().await.is_err(), fails);
    }
    drop(delivery);
    assert_eq!(broker.messages("t.g.dead").len(), 1);
    assert!(is_quiet(&mut source).await);
}

#[tokio::test(start_paused = true)]
async fn scheduled_retry_keeps_attempts_and_frees_its_key() {
    let broker = MemoryBroker::builder().capacity(2).build();
    let like_rabbitmq = MemorySubscription::default().with_retry(MemoryRetry::Scheduled);
    let mut source = source(&broker, like_rabbitmq).await;
    broker.publish(message("1")).await.unwrap();
    broker.publish(message("2")).await.unwrap();
    let started = Instant::now();
    let mut first = next(&mut source).await;
    let state = RetryState { attempts: 4, ..RetryState::default() };
    let delay = Duration::from_secs(300);
    assert_eq!(first.settle.retry_later(delay, &state).await.unwrap(), Delayed::Scheduled);
    first.settle.ack().await.unwrap();
    let mut second = next(&mut source).await;
    assert_eq!(body(&second), b"2");
    second.settle.ack().await.unwrap();
    // The first keeps its position in the topic while it waits.
    broker.publish(message("3")).await.unwrap();
    assert_eq!(broker.messages("t")[0].body, "1");
    assert_eq!(body(&next(&mut source).await), b"3");
    drop(source);

    let mut source = self::source(&broker, like_rabbitmq).await;
    let mut third = next(&mut source).await;
    third.settle.ack().await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
    let mut again = next(&mut source).await;
    assert_eq!((body(&again), again.retry), (b"1".as_slice(), state));
    let late = started.elapsed() - delay;
    assert!(late < Duration::from_millis(10), "{late:?}");
    assert_eq!(again.message.offset, Some(0));
    again.settle.ack().await.unwrap();
    assert!(is_quiet(&mut source).await);
    let report = broker.shutdown(Duration::ZERO).await;
    assert_eq!(report.undelivered, 0);
}

#[tokio::test(start_paused = true)]
async fn a_copy_whose_original_is_not_acked_comes_beside_it() {
    let broker = MemoryBroker::new();
    let like_rabbitmq = MemorySubscription::default().with_retry(MemoryRetry::Scheduled);
    let mut source = source(&broker, like_rabbitmq).await;
    broker.publish(message("1")).await.unwrap();
    let mut first = next(&mut source).await;
    let delay = Duration::from_secs(1);
    first.settle.retry_later(delay, &RetryState::default()).await.unwrap();
    broker.faults().fail_acks(1);
    first.settle.ack().await.unwrap_err();
    drop(first);
    for _ in 0..2 {
        let mut delivery = next(&mut source).await;
        assert_eq!(body(&delivery), b"1");
        delivery.settle.ack().await.unwrap();
    }
    assert!(is_quiet(&mut source).await);
    assert!(!broker.messages("t").is_empty());
}
