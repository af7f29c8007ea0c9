//! Cases of confirmed messages, which the broker holds unchanged.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cqrs_core::message::{Headers, content_type};
use cqrs_core::{Message, PublishErrorKind};

use super::fixture::{ProducingFixture, assert_kind};
use crate::conformance::harness::{Capabilities, Harness};
use crate::probe::StoredMessage;

const MIB: usize = 1024 * 1024;

/// Compares all but id, name and content type.
#[track_caller]
fn assert_same(received: &StoredMessage, sent: &Message, can: &Capabilities) {
    assert_eq!(received.topic, *sent.topic, "topic");
    assert_eq!(received.key, sent.key, "key");
    assert!(received.body == sent.body, "the body differs");
    assert_eq!(sorted(&received.headers), sorted(&sent.headers), "headers");
    let sent = cut(sent.timestamp, can.timestamp_unit);
    assert_eq!(received.timestamp, Some(sent), "timestamp");
}

/// Brokers need not keep the order of headers.
fn sorted(headers: &Headers) -> Vec<(&str, &[u8])> {
    let text = headers.iter().map(|(name, value)| (name, value.as_bytes()));
    let bytes = headers.iter_bytes().map(|(name, value)| (name, &value[..]));
    let mut headers: Vec<_> = text.chain(bytes).collect();
    headers.sort_unstable();
    headers
}

fn cut(time: SystemTime, unit: Duration) -> SystemTime {
    if unit.is_zero() {
        return time;
    }
    let since = time.duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
    let units = u64::try_from(since / unit.as_nanos()).expect("few units since 1970");
    UNIX_EPOCH + Duration::from_nanos(units * u64::try_from(unit.as_nanos()).expect("short"))
}

/// A message with everything.
fn full(topic: &str) -> Message {
    let mut message = Message::new(topic, r#"{"a":1}"#)
        .with_key("key-1")
        .with_name("UserCreated")
        .with_timestamp(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123))
        .with_content_type(content_type::PROTOBUF);
    for (name, value) in [("plain", "value"), ("Ünicode", "wärt 🦀"), ("empty", "")] {
        message.headers.insert(name, value).expect("a valid header");
    }
    message.headers.insert_bytes("bytes", vec![0, 0xff, 7]).expect("a valid header");
    message.headers.set_correlation_id("cause-1");
    message
}

pub(crate) async fn a_confirmed_message_arrives_byte_for_byte<H: Harness>(harness: &H) {
    let mut fixture = ProducingFixture::new(harness).await;
    for mandatory in [true, false] {
        let sent = full(&fixture.topic).with_mandatory(mandatory);
        let received = fixture.round_trip(sent.clone()).await;
        assert_same(&received, &sent, &fixture.can);
        assert_eq!(received.id, Some(sent.id), "id");
        assert_eq!(received.name.as_deref(), Some("UserCreated"), "name");
        let content_type = fixture.can.content_type.then_some(content_type::PROTOBUF);
        assert_eq!(received.content_type.as_deref(), content_type, "content type");
    }
}

pub(crate) async fn a_json_message_carries_what_is_declared<H: Harness>(harness: &H) {
    let mut fixture = ProducingFixture::new(harness).await;
    let sent = full(&fixture.topic).with_content_type(content_type::JSON);
    let received = fixture.round_trip(sent.clone()).await;
    assert_same(&received, &sent, &fixture.can);
    assert_eq!(received.id, fixture.can.identity_always.then_some(sent.id), "id");
    let name = fixture.can.identity_always.then_some("UserCreated");
    assert_eq!(received.name.as_deref(), name, "name");
    let content_type = fixture.can.content_type.then_some(content_type::JSON);
    assert_eq!(received.content_type.as_deref(), content_type, "content type");
}

pub(crate) async fn a_bare_message_arrives_without_additions<H: Harness>(harness: &H) {
    let mut fixture = ProducingFixture::new(harness).await;
    let sent = Message::new(fixture.topic.as_str(), "bare");
    let received = fixture.round_trip(sent.clone()).await;
    assert_same(&received, &sent, &fixture.can);
    assert_eq!(received.id, fixture.can.identity_always.then_some(sent.id), "id");
    assert_eq!((received.name, received.content_type), (None, None), "name and content type");
}

pub(crate) async fn an_empty_body_arrives<H: Harness>(harness: &H) {
    let mut fixture = ProducingFixture::new(harness).await;
    let sent = Message::new(fixture.topic.as_str(), "").with_key("k");
    let received = fixture.round_trip(sent.clone()).await;
    assert_same(&received, &sent, &fixture.can);
}

pub(crate) async fn any_bytes_arrive<H: Harness>(harness: &H) {
    let mut fixture = ProducingFixture::new(harness).await;
    let bytes: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
    let sent = Message::new(fixture.topic.as_str(), bytes.clone()).with_key(bytes);
    let received = fixture.round_trip(sent.clone()).await;
    assert_same(&received, &sent, &fixture.can);
}

pub(crate) async fn a_large_body_arrives<H: Harness>(harness: &H) {
    let mut fixture = ProducingFixture::new(harness).await;
    let size = fixture.can.max_message_size.map_or(MIB, |max| (max - max / 16).min(MIB));
    let sent = Message::new(fixture.topic.as_str(), noise(size)).with_key("k");
    let received = fixture.round_trip(sent.clone()).await;
    assert_same(&received, &sent, &fixture.can);
}

pub(crate) async fn largest_message_arrives_and_larger_is_refused<H: Harness>(harness: &H) {
    let mut fixture = ProducingFixture::new(harness).await;
    let size = fixture.can.max_message_size.unwrap_or(4 * MIB);
    let largest = Message::new(fixture.topic.as_str(), noise(size));
    let received = fixture.round_trip(largest.clone()).await;
    assert_same(&received, &largest, &fixture.can);
    if fixture.can.max_message_size.is_some() {
        let larger = Message::new(fixture.topic.as_str(), noise(size + 1));
        assert_kind(&fixture.refused(larger).await, &[PublishErrorKind::TooLarge]);
        let next = Message::new(fixture.topic.as_str(), "next");
        assert_eq!(fixture.round_trip(next).await.text(), "next", "the broker goes on");
    }
}

/// Bytes that do not compress.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        // Xorshift (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

pub(crate) async fn an_id_is_kept_when_published_again<H: Harness>(harness: &H) {
    let mut fixture = ProducingFixture::new(harness).await;
    let sent = full(&fixture.topic);
    for _ in 0..2 {
        fixture.publish(sent.clone()).await;
    }
    let ids: Vec<_> = fixture.receive_all(2).await.into_iter().map(|message| message.id).collect();
    assert_eq!(ids, [Some(sent.id); 2]);
}

pub(crate) async fn confirmations_name_the_place<H: Harness>(harness: &H) {
    let mut fixture = ProducingFixture::new(harness).await;
    for number in 0..20 {
        let message = fixture.numbered(number).with_key(number.to_string());
        let confirmed = fixture.publish(message).await;
        let received = fixture.receive(1).await.remove(0);
        let place = (received.partition, received.offset);
        match fixture.can.place {
            true => assert_eq!((confirmed.partition, confirmed.offset), place),
            false => assert_eq!((confirmed.partition, confirmed.offset), (None, None)),
        }
    }
}
