//! Tests of subscribing to the memory broker.

use std::time::Duration;

use tokio::time::timeout;

use crate::consume::StartAt;
use crate::memory::MemorySubscriber;
use crate::{MemoryBroker, Message, MessageBroker, MessageBrokerExt};

async fn publish(broker: &MemoryBroker, keys: &[&'static str]) {
    for (n, key) in keys.iter().enumerate() {
        let mut message = Message::new("t", format!("{key}{n}"));
        message.key = (!key.is_empty()).then(|| (*key).into());
        broker.publish(message).await.unwrap();
    }
}

async fn drain(subscriber: &MemorySubscriber) -> Vec<String> {
    let mut bodies = Vec::new();
    while let Some(delivery) = subscriber.try_recv() {
        bodies.push(String::from_utf8(delivery.message().body.to_vec()).unwrap());
        delivery.ack();
    }
    bodies
}

#[tokio::test]
async fn new_group_starts_at_earliest_or_latest() {
    let broker = MemoryBroker::builder().capacity(2).build();
    publish(&broker, &["a", "b", "c"]).await;
    let oldest = broker.subscriber("t", "oldest");
    assert!(broker.create_group("t", "latest", StartAt::Latest));
    assert!(!broker.create_group("t", "latest", StartAt::Earliest), "keeps its place");
    assert_eq!(drain(&oldest).await, ["b1", "c2"]);
    publish(&broker, &["d"]).await;
    assert_eq!(drain(&broker.subscriber("t", "latest")).await, ["d0"]);
    assert_eq!(drain(&oldest).await, ["d0"]);
}

#[tokio::test]
async fn dropped_and_nacked_deliveries_come_again() {
    let broker = MemoryBroker::new();
    let first = broker.subscriber("t", "g");
    publish(&broker, &["a", "a", "b"]).await;
    let delivery = first.recv().await.unwrap();
    assert_eq!((delivery.attempt(), delivery.redelivered()), (1, false));
    drop(first);
    let second = broker.subscriber("t", "g");
    let other = second.recv().await.unwrap();
    assert_eq!(other.message().body, "b2", "the second of key a waits for its first");
    delivery.nack();
    let again = second.recv().await.unwrap();
    assert_eq!((again.attempt(), again.redelivered()), (2, true));
    assert_eq!((again.message().body.as_ref(), again.offset()), (b"a0".as_slice(), 0));
    again.ack();
    drop(other);
    assert_eq!(drain(&second).await, ["a1", "b2"]);
}

#[tokio::test]
async fn a_nack_wakes_a_waiting_member() {
    let broker = MemoryBroker::new();
    let member = broker.subscriber("t", "g");
    publish(&broker, &["a"]).await;
    let held = member.recv().await.unwrap();
    let waiting = tokio::spawn(async move { member.recv().await.unwrap().attempt() });
    tokio::task::yield_now().await;
    held.nack();
    assert_eq!(waiting.await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn cancelled_recv_takes_nothing_and_wakes_another() {
    let broker = MemoryBroker::new();
    let (one, two) = (broker.subscriber("t", "g"), broker.subscriber("t", "g"));
    let mut cancelled = Box::pin(one.recv());
    assert!(timeout(Duration::ZERO, &mut cancelled).await.is_err());
    let waiting = tokio::spawn(async move { two.recv().await.unwrap().ack() });
    tokio::task::yield_now().await;
    publish(&broker, &["a"]).await;
    drop(cancelled);
    timeout(Duration::from_secs(1), waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn shutdown_ends_members_once_all_is_settled() {
    let broker = MemoryBroker::new();
    let member = broker.subscriber("t", "g");
    publish(&broker, &["a"]).await;
    let held = member.recv().await.unwrap();
    let waiting = tokio::spawn(async move {
        let again = member.recv().await.unwrap();
        again.ack();
        member.recv().await.is_none()
    });
    tokio::task::yield_now().await;
    assert_eq!(broker.shutdown(Duration::ZERO).await.undelivered, 0);
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "what is out may come back");
    held.nack();
    assert!(waiting.await.unwrap());
    let late = broker.subscriber("t", "late");
    assert_eq!(drain(&late).await, ["a0"]);
    assert!(late.recv().await.is_none());
}

#[tokio::test]
async fn dropping_the_last_broker_value_ends_members() {
    let broker = MemoryBroker::new();
    let member = broker.subscriber("t", "g");
    publish(&broker, &["a"]).await;
    drop(broker.clone());
    assert!(timeout(Duration::from_millis(20), broker.subscriber("t", "g2").recv()).await.is_ok());
    drop(broker);
    member.recv().await.unwrap().ack();
    assert!(member.recv().await.is_none());
}
