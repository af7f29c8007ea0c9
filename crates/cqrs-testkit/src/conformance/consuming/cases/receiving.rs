//! What is published comes, whole, in order, and once it was acked no more.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use cqrs_core::consume::{SourceStatus, TopicSet};
use cqrs_core::{Message, RetryState};

use super::super::ConsumingHarness;
use super::super::opened::{ack, text};
use super::super::stage::{KEY, Stage};

pub(crate) async fn a_published_message_is_received_whole<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let mut opened = stage.open().await;
    // A content type with which every broker carries the id and the name.
    let mut message = Message::new(stage.topic.as_str(), vec![0, 159, 146, 150])
        .with_name("UserCreated")
        .with_key(vec![0xff, 1])
        .with_content_type("application/x-protobuf");
    message.headers.set_correlation_id("c-1");
    message.headers.insert("tenant", "Zürich").expect("a header");
    stage.publish(message.clone()).await;

    let delivery = opened.next().await;
    let (came, can) = (&delivery.message, stage.can);
    assert_eq!(came.body.as_ref(), Some(&message.body), "body");
    assert_eq!(*came.topic, *message.topic, "topic");
    assert_eq!(came.key, message.key, "key");
    assert_eq!(came.id.as_deref(), Some(&*message.id.to_string()), "id");
    assert_eq!(came.name.as_deref(), Some("UserCreated"), "name");
    assert_eq!(came.headers.correlation_id(), Some("c-1"));
    assert_eq!(came.headers.get("tenant"), Some("Zürich"));
    let content_type = can.content_type.then_some("application/x-protobuf");
    assert_eq!(came.content_type.as_deref(), content_type, "content type");
    assert_eq!(came.offset.is_some(), can.offsets, "offset: {:?}", came.offset);
    assert_eq!(came.partition.is_some(), can.partitions, "partition: {:?}", came.partition);
    assert_eq!(came.queue.is_some(), can.queues, "queue: {:?}", came.queue);
    assert!(!came.redelivered, "it comes for the first time");
    assert_eq!(delivery.retry, RetryState::default(), "it was never tried");
    let published = cut(message.timestamp, can.timestamp_unit);
    assert_eq!(came.timestamp.map(|at| cut(at, can.timestamp_unit)), Some(published), "timestamp");
    assert!(ack(delivery).await);
    opened.close().await;
}

fn cut(time: SystemTime, unit: Duration) -> Duration {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    match unit.as_nanos() {
        0 => since,
        unit => since - Duration::from_nanos((since.as_nanos() % unit) as u64),
    }
}

pub(crate) async fn messages_of_a_key_come_in_order<H: ConsumingHarness>(harness: &H) {
    const COUNT: usize = 200;
    let stage = Stage::new(harness).await;
    let mut opened = stage.open().await;
    let keys = ["a", "b", "c"];
    let message = |number: usize| stage.message_of(keys[number % keys.len()], number);
    stage.publish_all((0..COUNT).map(message)).await;
    let mut came: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for _ in 0..COUNT {
        let delivery = opened.next().await;
        let key = delivery.message.key.clone().expect("a key");
        came.entry(key).or_default().push(text(&delivery).parse().expect("a number"));
        assert!(ack(delivery).await);
    }
    for (index, key) in keys.iter().enumerate() {
        let sent: Vec<_> = (index..COUNT).step_by(keys.len()).collect();
        assert_eq!(came[key.as_bytes()], sent, "key {key}");
    }
    opened.close().await;
}

pub(crate) async fn several_topics_are_one_subscription<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let other = harness.fresh_topic().await;
    let topics = [stage.topic.as_str(), &other].map(Into::into);
    let mut opened =
        stage.open_with(|request| request.topics = TopicSet::Named(topics.to_vec())).await;
    stage.publish(stage.message("here")).await;
    stage.publish(Message::new(other.as_str(), "there").with_key(KEY)).await;
    let mut came = Vec::new();
    for _ in 0..2 {
        let delivery = opened.next().await;
        came.push((delivery.message.topic.to_string(), text(&delivery)));
        assert!(ack(delivery).await);
    }
    came.sort_by(|one, two| one.1.cmp(&two.1));
    assert_eq!(came, [(stage.topic.clone(), "here".into()), (other, "there".into())]);
    opened.close().await;
}

pub(crate) async fn an_acked_message_does_not_come_again<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let mut opened = stage.open().await;
    stage.publish_all((1..=3).map(|number| stage.message(number))).await;
    assert_eq!(opened.all_acked(3).await, ["1", "2", "3"]);
    opened.close().await;
    stage.assert_nothing_left().await;
}

pub(crate) async fn the_status_becomes_consuming<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let (request, status) = stage.request(|_| {});
    assert_eq!(*status.borrow(), SourceStatus::Connecting { last_error: None });
    drop(request);
    let opened = stage.open().await;
    assert_eq!(*opened.status.borrow(), SourceStatus::Consuming);
    opened.close().await;
}
