//! Tests of publishing to the memory broker.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::broker::BrokerState;
use crate::consume::StartAt;
use crate::{MemoryBroker, Message, MessageBroker, MessageBrokerExt, PublishErrorKind};

fn message(body: &str) -> Message {
    Message::new("t", body.to_owned()).with_key("k")
}

fn bodies(broker: &MemoryBroker) -> Vec<String> {
    let kept = broker.messages("t");
    kept.iter().map(|kept| String::from_utf8(kept.body.to_vec()).unwrap()).collect()
}

/// A broker whose topic "t" has room for `capacity` messages that group "g" does not settle.
fn full_after(capacity: usize) -> MemoryBroker {
    let timeout = Duration::from_secs(5);
    let broker =
        MemoryBroker::builder().capacity(capacity).window(2, 1 << 20).publish_timeout(timeout);
    let broker = broker.build();
    broker.create_group("t", "g", StartAt::Earliest);
    broker
}

#[tokio::test]
async fn confirmed_message_is_kept_unchanged() {
    let broker = MemoryBroker::new();
    let mut sent = message("body").with_name("N").with_content_type("text/plain");
    sent.headers.insert("h", "v").unwrap();
    let confirmed = broker.clone().publish(sent.clone()).await.unwrap();
    assert_eq!((confirmed.partition, confirmed.offset), (Some(0), Some(0)));
    assert_eq!(broker.messages("t"), [sent]);
    assert!(broker.messages("another").is_empty());
}

#[tokio::test]
async fn a_topic_without_a_group_keeps_the_newest() {
    let broker = MemoryBroker::builder().capacity(2).build();
    for body in ["1", "2", "3"] {
        broker.publish(message(body)).await.unwrap();
    }
    assert_eq!(bodies(&broker), ["2", "3"]);
}

#[tokio::test]
async fn the_settled_make_room_before_the_unsettled() {
    let broker = full_after(2);
    let group = broker.subscriber("t", "g");
    broker.publish(message("1")).await.unwrap();
    broker.publish(Message::new("t", "2")).await.unwrap();
    let first = group.recv().await.unwrap();
    group.recv().await.unwrap().ack();
    assert_eq!(bodies(&broker), ["1", "2"], "kept as long as there is room");
    broker.publish(message("3")).await.unwrap();
    assert_eq!(bodies(&broker), ["1", "3"]);
    first.ack();
}

#[tokio::test(start_paused = true)]
async fn a_full_topic_makes_publishes_wait_in_order() {
    let broker = full_after(1);
    let group = broker.subscriber("t", "g");
    broker.publish(message("1")).await.unwrap();
    let second = broker.enqueue(message("2")).await.unwrap();
    let third = broker.enqueue(message("3")).await.unwrap();
    let error = broker.try_enqueue(message("4")).unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Full);
    let window = timeout(Duration::from_secs(1), broker.enqueue(message("5"))).await;
    assert!(window.is_err(), "two wait, and that is the window");

    group.recv().await.unwrap().ack();
    assert_eq!(second.await.unwrap().offset, Some(1));
    let delivery = group.recv().await.unwrap();
    let sixth = broker.enqueue(message("6")).await.unwrap();
    assert_eq!(bodies(&broker), ["2"]);
    delivery.ack();
    third.await.unwrap();
    group.recv().await.unwrap().ack();
    sixth.await.unwrap();
    assert_eq!(group.recv().await.unwrap().message().body, "6");
}

#[tokio::test(start_paused = true)]
async fn wait_for_room_ends_at_deadline_and_frees_slot() {
    let broker = full_after(1);
    broker.publish(message("1")).await.unwrap();
    let started = Instant::now();
    let forgotten = broker.enqueue(message("2")).await.unwrap();
    let waiting = broker.enqueue(message("3")).await.unwrap();
    drop(forgotten);
    let error = waiting.await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::NotSent);
    assert_eq!(error.into_message().body, "3");
    assert_eq!(started.elapsed(), Duration::from_secs(5));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(broker.waiting(), 0);
    let late = broker.enqueue(message("4")).await.unwrap();
    broker.subscriber("t", "g").recv().await.unwrap().ack();
    late.await.unwrap();
    assert_eq!(bodies(&broker), ["4"], "what expired is never stored");
}

#[tokio::test]
async fn deleting_a_group_makes_room() {
    let broker = full_after(2);
    let group = broker.subscriber("t", "g");
    broker.publish(message("1")).await.unwrap();
    broker.publish(message("2")).await.unwrap();
    let held = group.recv().await.unwrap();
    let third = broker.enqueue(message("3")).await.unwrap();
    assert!(broker.delete_group("t", "g"));
    assert!(!broker.delete_group("t", "g"));
    third.await.unwrap();
    assert_eq!(bodies(&broker), ["2", "3"], "for a group that is gone nothing is kept");
    assert!(group.recv().await.is_none());
    held.nack();
    assert!(group.try_recv().is_none());
    broker.publish(message("4")).await.unwrap();
    assert_eq!(bodies(&broker), ["3", "4"]);
}

#[tokio::test]
async fn topic_without_group_is_unroutable_if_required() {
    let broker = MemoryBroker::builder().require_subscriber(true).build();
    let lost = message("1");
    let error = broker.publish(lost.clone()).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Unroutable);
    assert_eq!(error.into_message(), lost);
    broker.publish(message("2").with_mandatory(false)).await.unwrap();
    let group = broker.subscriber("t", "g");
    broker.publish(message("3")).await.unwrap();
    assert_eq!(group.recv().await.unwrap().message().body, "3");
}

#[tokio::test]
async fn deleting_last_group_makes_waiting_unroutable() {
    let broker = MemoryBroker::builder().require_subscriber(true).capacity(1).build();
    broker.create_group("t", "g", StartAt::Earliest);
    broker.publish(message("1")).await.unwrap();
    let waiting = broker.enqueue(message("2")).await.unwrap();
    let optional = broker.enqueue(message("3").with_mandatory(false)).await.unwrap();
    assert!(broker.delete_group("t", "g"));
    assert_eq!(waiting.await.unwrap_err().kind(), PublishErrorKind::Unroutable);
    assert_eq!(optional.await.unwrap().offset, None, "forgotten, as wished");
    assert_eq!((bodies(&broker), broker.waiting()), (vec!["1".to_owned()], 0));
}

#[tokio::test]
async fn refuses_what_it_cannot_take() {
    let broker = MemoryBroker::builder().max_message_size(9).build();
    for topic in [String::new(), "t".repeat(256)] {
        let error = broker.try_enqueue(Message::new(topic, "")).unwrap_err();
        assert_eq!(error.kind(), PublishErrorKind::Invalid);
    }
    let error = broker.enqueue(message("123456789")).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::TooLarge);
    broker.publish(message("12345678")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn shutdown_lets_the_waiting_in_and_refuses_the_new() {
    let broker = full_after(1);
    let group = broker.subscriber("t", "g");
    broker.publish(message("1")).await.unwrap();
    let second = broker.enqueue(message("2")).await.unwrap();
    let end = tokio::spawn({
        let broker = broker.clone();
        async move { broker.shutdown(Duration::from_secs(60)).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(broker.state(), BrokerState::Closed);
    let refused = message("3");
    let error = broker.publish(refused.clone()).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Closed);
    assert_eq!(error.into_message(), refused);
    let error = broker.publish(Message::new("new topic", "")).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Closed);

    group.recv().await.unwrap().ack();
    assert_eq!(end.await.unwrap().undelivered, 0);
    second.await.unwrap();
    group.recv().await.unwrap().ack();
    assert!(group.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn shutdown_reports_what_found_no_room() {
    let broker = full_after(1);
    broker.publish(message("1")).await.unwrap();
    let second = broker.enqueue(message("2")).await.unwrap();
    let started = Instant::now();
    let short = broker.shutdown(Duration::from_secs(2));
    let long = broker.shutdown(Duration::from_secs(60));
    let (short, long) = tokio::join!(short, long);
    assert_eq!((short.undelivered, long.undelivered), (1, 1), "the same end");
    assert_eq!(started.elapsed(), Duration::from_secs(2));
    assert_eq!(second.await.unwrap_err().kind(), PublishErrorKind::Closed);
    assert_eq!(broker.shutdown(Duration::MAX).await.undelivered, 1);
}
