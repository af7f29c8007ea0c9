//! Cases of a source's deliveries: whole, in order, and not redelivered after an ack.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use cqrs_core::Message;
use cqrs_core::consume::{RetryState, SourceStatus, TopicSet};

use crate::conformance::fixture::{Fixture, KEY};
use crate::conformance::harness::Harness;
use crate::source::{ack, text};

pub(crate) async fn a_published_message_is_received_whole<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
    let mut source = fixture.open().await;
    // A content type with which every broker carries the id and the name.
    let mut message = Message::new(fixture.topic.as_str(), vec![0, 159, 146, 150])
        .with_name("UserCreated")
        .with_key(vec![0xff, 1])
        .with_content_type("application/x-protobuf");
    message.headers.set_correlation_id("c-1");
    message.headers.insert("tenant", "Zürich").expect("a header");
    fixture.publish(message.clone()).await;

    let delivery = source.next().await;
    let (received, can) = (&delivery.message, fixture.can);
    assert_eq!(received.body.as_ref(), Some(&message.body), "body");
    assert_eq!(*received.topic, *message.topic, "topic");
    assert_eq!(received.key, message.key, "key");
    assert_eq!(received.id.as_deref(), Some(&*message.id.to_string()), "id");
    assert_eq!(received.name.as_deref(), Some("UserCreated"), "name");
    assert_eq!(received.headers.correlation_id(), Some("c-1"));
    assert_eq!(received.headers.get("tenant"), Some("Zürich"));
    let content_type = can.content_type.then_some("application/x-protobuf");
    assert_eq!(received.content_type.as_deref(), content_type, "content type");
    assert_eq!(received.offset.is_some(), can.offsets, "offset: {:?}", received.offset);
    assert_eq!(received.partition.is_some(), can.partitions, "partition: {:?}", received.partition);
    assert_eq!(received.queue.is_some(), can.queues, "queue: {:?}", received.queue);
    assert!(!received.redelivered, "it is delivered for the first time");
    assert_eq!(delivery.retry, RetryState::default(), "it was never tried");
    let published = cut(message.timestamp, can.timestamp_unit);
    assert_eq!(
        received.timestamp.map(|at| cut(at, can.timestamp_unit)),
        Some(published),
        "timestamp"
    );
    assert!(ack(delivery).await);
    source.close().await;
}

fn cut(time: SystemTime, unit: Duration) -> Duration {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    match unit.as_nanos() {
        0 => since,
        unit => since - Duration::from_nanos((since.as_nanos() % unit) as u64),
    }
}

pub(crate) async fn messages_of_a_key_are_received_in_order<H: Harness>(harness: &H) {
    keys_are_in_order_by_rooms(harness, &[1]).await;
}

pub(crate) async fn messages_fetched_together_are_in_order<H: Harness>(harness: &H) {
    keys_are_in_order_by_rooms(harness, &[128, 2, 7, 1]).await;
}

/// Receives the messages of several keys, fetched with these rooms in turn.
async fn keys_are_in_order_by_rooms<H: Harness>(harness: &H, rooms: &[usize]) {
    const COUNT: usize = 200;
    let fixture = Fixture::new(harness).await;
    let mut source = fixture.open().await;
    let keys = ["a", "b", "c"];
    let message = |number: usize| fixture.message_of(keys[number % keys.len()], number);
    fixture.publish_all((0..COUNT).map(message)).await;
    let mut came: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    let mut rooms = rooms.iter().cycle();
    while came.values().map(Vec::len).sum::<usize>() < COUNT {
        let room = rooms.next().expect("a cycle has no end");
        for delivery in source.fetch(*room).await {
            let key = delivery.message.key.clone().expect("a key");
            came.entry(key).or_default().push(text(&delivery).parse().expect("a number"));
            assert!(ack(delivery).await);
        }
    }
    for (index, key) in keys.iter().enumerate() {
        let sent: Vec<_> = (index..COUNT).step_by(keys.len()).collect();
        assert_eq!(came[key.as_bytes()], sent, "key {key}");
    }
    source.close().await;
}

pub(crate) async fn several_topics_are_one_subscription<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
    let other = harness.fresh_topic().await;
    let topics = [fixture.topic.as_str(), &other].map(Into::into);
    let mut source =
        fixture.open_with(|request| request.topics = TopicSet::Named(topics.to_vec())).await;
    fixture.publish(fixture.message("here")).await;
    fixture.publish(Message::new(other.as_str(), "there").with_key(KEY)).await;
    let mut came = Vec::new();
    for _ in 0..2 {
        let delivery = source.next().await;
        came.push((delivery.message.topic.to_string(), text(&delivery)));
        assert!(ack(delivery).await);
    }
    came.sort_by(|one, two| one.1.cmp(&two.1));
    assert_eq!(came, [(fixture.topic.clone(), "here".into()), (other, "there".into())]);
    source.close().await;
}

pub(crate) async fn acked_message_is_not_redelivered<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
    let mut source = fixture.open().await;
    fixture.publish_all((1..=3).map(|number| fixture.message(number))).await;
    assert_eq!(source.ack(3).await, ["1", "2", "3"]);
    source.close().await;
    fixture.assert_all_settled().await;
}

pub(crate) async fn the_status_becomes_consuming<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
    let source = fixture.open().await;
    assert_eq!(*source.status.borrow(), SourceStatus::Consuming);
    source.close().await;
}
