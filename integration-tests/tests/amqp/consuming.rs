//! Tests of the RabbitMQ source: receiving, redelivery, bounds.

use std::time::Duration;

use cqrs_amqp::{AmqpSubscription, QueueKind};
use cqrs_core::consume::{SourceStatus, SubscribeRequest};
use cqrs_core::{Message, MessageBroker, MessageBrokerExt};
use cqrs_testkit::source::text;
use integration_tests::amqp::{QueueTest, unacknowledged};
use integration_tests::consuming::fixture::until;
use integration_tests::consuming::open;

const LONG: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn published_message_arrives_whole_and_once() {
    let test = QueueTest::new("whole").await;
    let mut source = test.open(|_| {}).await;
    assert_eq!(*source.status.borrow(), SourceStatus::Consuming);
    let mut message = Message::new(&*test.name, vec![0, 159, 146, 150])
        .with_name("UserCreated")
        .with_key(vec![0xff, 1])
        .with_content_type("application/json");
    message.headers.set_correlation_id("c-1");
    test.broker.publish(message.clone()).await.unwrap();
    let mut delivery = source.next().await;
    let incoming = &delivery.message;
    assert_eq!(incoming.body.as_ref(), Some(&message.body));
    assert_eq!((&*incoming.topic, incoming.key.as_ref()), (&*test.name, message.key.as_ref()));
    assert_eq!(incoming.id.as_deref(), Some(&*message.id.to_string()));
    assert_eq!(incoming.name.as_deref(), Some("UserCreated"));
    assert_eq!(incoming.content_type.as_deref(), Some("application/json"));
    assert_eq!(incoming.headers.correlation_id(), Some("c-1"));
    assert_eq!(incoming.queue.as_deref(), Some(&*test.queue));
    assert!(incoming.timestamp.is_some() && !incoming.redelivered);
    assert_eq!((delivery.retry.attempts, delivery.retry.crashes), (0, 0));
    assert!(delivery.settle.begin());
    delivery.settle.ack().await.unwrap();
    drop(delivery);
    source.close().await;
    assert_eq!(test.count().await, 0);
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_get_all_and_members_share() {
    let test = QueueTest::new("groups").await;
    let mut a1 = open(&test.broker, &[&test.name], "a", |_| {}).await;
    let mut a2 = open(&test.broker, &[&test.name], "a", |_| {}).await;
    let mut b = open(&test.broker, &[&test.name], "b", |_| {}).await;
    for n in 0..20 {
        test.broker.publish(Message::new(&*test.name, n.to_string())).await.unwrap();
    }
    let mut shared: Vec<u32> = Vec::new();
    let mut came = [0, 0];
    while shared.len() < 20 {
        let (index, mut delivery) = tokio::select! {
            delivery = a1.next() => (0, delivery),
            delivery = a2.next() => (1, delivery),
        };
        shared.push(text(&delivery).parse().unwrap());
        delivery.settle.ack().await.unwrap();
        came[index] += 1;
    }
    shared.sort_unstable();
    assert!(came.iter().all(|count| *count > 0), "{came:?}");
    assert_eq!(shared, (0..20).collect::<Vec<_>>());
    // More than the server sends ahead by default.
    let mut all = b.ack(10).await;
    all.extend(b.ack(10).await);
    assert_eq!(all, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    for source in [a1, a2, b] {
        source.close().await;
    }
    let queues = ["a", "b"].map(|group| format!("{}.{group}", test.name));
    test.raw.clean(&queues.each_ref().map(String::as_str), &[&test.name]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_or_unsettled_is_redelivered() {
    for kind in [QueueKind::Quorum, QueueKind::Classic] {
        let test = QueueTest::new("again").await;
        let options = AmqpSubscription::new().with_kind(kind);
        let open = async || {
            let change = |request: &mut SubscribeRequest| request.options.insert(options.clone());
            test.open(change).await
        };
        let mut source = open().await;
        test.put(0..3).await;
        drop(source.next().await);
        let mut came = source.take(3).await;
        came.sort_by_key(text);
        let bodies: Vec<_> =
            came.iter().map(|delivery| (text(delivery), delivery.message.redelivered)).collect();
        assert_eq!(bodies, [("0".into(), true), ("1".into(), false), ("2".into(), false)]);
        // Not settled: the source ends, and the next one gets them.
        source.close_within(LONG).await.1.unwrap();
        drop(came);
        let mut source = open().await;
        // One after the other: a server before 4.3 counts what came back, so each is handed out alone.
        let mut came = Vec::new();
        for _ in 0..3 {
            came.extend(source.ack(1).await);
        }
        came.sort();
        assert_eq!(came, ["0", "1", "2"]);
        source.close().await;
        assert_eq!(test.count().await, 0);
        test.clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_flight_stays_within_max_unsettled() {
    let test = QueueTest::new("bound").await;
    let mut source = test.open(|request| request.max_unsettled = Some(3)).await;
    test.put(0..6).await;
    let mut out = source.take(3).await;
    source.nothing_within(Duration::from_millis(500)).await;
    assert_eq!(test.count().await, 3, "the others wait with the server");
    out[1].settle.ack().await.unwrap();
    out.push(source.next().await);
    source.nothing_within(Duration::from_millis(200)).await;
    for mut delivery in out.into_iter().filter(|delivery| text(delivery) != "1") {
        delivery.settle.ack().await.unwrap();
    }
    assert_eq!(source.ack(2).await, ["4", "5"]);
    source.close().await;
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_around_unsettled_deliveries_reach_the_server() {
    let test = QueueTest::new("around").await;
    let mut source = test.open(|_| {}).await;
    test.put(0..10).await;
    let mut out: Vec<_> = source.take(10).await.into_iter().map(Some).collect();
    let unacked = async |count| {
        let what = format!("{count} are unacknowledged");
        until(&what, async || unacknowledged(&test.queue).await == Some(count)).await;
    };
    let mut ack = async |indices: &[usize]| {
        for index in indices {
            let mut delivery = out[*index].take().unwrap();
            assert!(delivery.settle.begin());
            delivery.settle.ack().await.unwrap();
        }
    };
    ack(&[1, 0, 9, 4, 3]).await;
    unacked(5).await;
    // 2, 5 and 8 are unsettled.
    ack(&[6, 7]).await;
    unacked(3).await;
    // The dropped one is requeued, and not acked with those around it.
    drop(out[2].take());
    let mut again = source.next().await;
    assert_eq!((text(&again), again.message.redelivered), ("2".to_owned(), true));
    for mut delivery in [out[5].take().unwrap(), out[8].take().unwrap()] {
        delivery.settle.ack().await.unwrap();
    }
    unacked(1).await;
    again.settle.ack().await.unwrap();
    unacked(0).await;
    source.close().await;
    assert_eq!(test.count().await, 0);
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_just_before_the_close_are_kept() {
    let test = QueueTest::new("last-acks").await;
    for stopped in [true, false, true] {
        let mut source = test.open(|request| request.max_unsettled = Some(300)).await;
        let mut receipts = Vec::new();
        for n in 0..300 {
            receipts
                .push(test.broker.enqueue(Message::new(&*test.name, n.to_string())).await.unwrap());
        }
        for receipt in receipts {
            receipt.await.unwrap();
        }
        let mut out = source.take(300).await;
        if stopped {
            source.stop().await;
        }
        let acks = out.iter_mut().map(|delivery| delivery.settle.ack());
        futures_util::future::try_join_all(acks).await.unwrap();
        source.close_within(LONG).await.1.unwrap();
        // A lost ack would cause a redelivery.
        let mut again = test.open(|_| {}).await;
        again.nothing_within(Duration::from_millis(300)).await;
        again.close().await;
    }
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_with_dots_share_no_queue() {
    let test = QueueTest::new("dots").await;
    let (topic, below) = (test.name.clone(), format!("{}.eu", test.name));
    // Both pairs joined by a dot are `{name}.eu.mailer`.
    let mut of_topic = open(&test.broker, &[&topic], "eu.mailer", |_| {}).await;
    let mut of_below = open(&test.broker, &[&below], "mailer", |_| {}).await;
    for (topic, of) in [(&topic, "topic"), (&below, "below")] {
        for n in 0..10 {
            test.broker.publish(Message::new(topic.as_str(), format!("{of} {n}"))).await.unwrap();
        }
    }
    let expected = |of: &str| (0..10).map(|n| format!("{of} {n}")).collect::<Vec<_>>();
    assert_eq!(of_topic.ack(10).await, expected("topic"));
    assert_eq!(of_below.ack(10).await, expected("below"));
    of_topic.close().await;
    of_below.close().await;
    let queues = [&*format!("{topic}.eu..mailer"), &format!("{below}.mailer")];
    test.raw.clean(&queues, &[&topic]).await;
}
