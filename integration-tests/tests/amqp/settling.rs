//! Tests of the RabbitMQ source's retry copies and dead letters.

use std::time::{Duration, SystemTime};

use cqrs_amqp::{AmqpSubscription, DeclareMode};
use cqrs_core::Retry;
use cqrs_core::consume::{
    DEAD_LETTER_HEADERS, DeadLetter, DeadLetterReason, DeadLetterTarget, Delayed, RETRY_HEADERS,
    RetryState, SourceDelivery, SubscribeRequest,
};
use cqrs_core::event::Timestamp;
use cqrs_core::message::Headers;
use cqrs_testkit::error_chain;
use cqrs_testkit::source::text;
use integration_tests::amqp::{QueueTest, header};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldArray, FieldTable};

fn seconds(delays: &[u64]) -> Retry {
    Retry::none().delayed(delays.iter().map(|delay| Duration::from_secs(*delay)))
}

fn long_string(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// Headers of every kind that a foreign sender may write.
fn typed_headers() -> FieldTable {
    let mut inner = FieldTable::default();
    inner.insert("deep".into(), AMQPValue::Boolean(true));
    let mut table = FieldTable::default();
    for (name, value) in [
        ("message_key", AMQPValue::ByteArray(vec![0xff, 0].into())),
        ("text", long_string("ä")),
        ("bytes", AMQPValue::LongString(vec![0xfe, 0xff].into())),
        ("count", AMQPValue::LongInt(-7)),
        ("big", AMQPValue::LongLongInt(1 << 40)),
        ("ratio", AMQPValue::Double(0.5)),
        ("when", AMQPValue::Timestamp(1_700_000_000)),
        ("none", AMQPValue::Void),
        (
            "list",
            AMQPValue::FieldArray(FieldArray::from(vec![
                long_string("a"),
                AMQPValue::Boolean(false),
            ])),
        ),
        ("table", AMQPValue::FieldTable(inner)),
    ] {
        table.insert(name.into(), value);
    }
    table
}

fn all_properties() -> BasicProperties {
    let mut headers = typed_headers();
    let other = AMQPValue::FieldArray(FieldArray::from(vec![long_string("elsewhere")]));
    headers.insert("CC".into(), other);
    BasicProperties::default()
        .with_headers(headers)
        .with_content_type("application/json".into())
        .with_content_encoding("identity".into())
        .with_delivery_mode(1)
        .with_priority(3)
        .with_correlation_id("c-1".into())
        .with_reply_to("answers".into())
        .with_expiration("600000".into())
        .with_message_id("m-1".into())
        .with_timestamp(1_700_000_001)
        .with_type("UserCreated".into())
        .with_user_id("guest".into())
        .with_app_id("shop".into())
}

fn assert_application_headers(copy: &Delivery) {
    let headers = copy.properties.headers().as_ref().unwrap().inner();
    for (name, value) in typed_headers().inner() {
        assert_eq!(headers.get(name.as_str()), Some(value), "{name}");
    }
    assert!(!headers.contains_key("CC"));
    assert!(matches!(headers["original-cc"], AMQPValue::FieldArray(_)));
    for (name, value) in [
        ("original-user-id", "guest"),
        ("original-expiration", "600000"),
        ("original-delivery-mode", "1"),
    ] {
        assert_eq!(header(copy, name).as_deref(), Some(value), "{name}");
    }
    let properties = &copy.properties;
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().unwrap().to_string();
    assert_eq!(text(properties.content_type()), "application/json");
    assert_eq!(text(properties.content_encoding()), "identity");
    assert_eq!(text(properties.message_id()), "m-1");
    assert_eq!(text(properties.kind()), "UserCreated");
    assert_eq!(text(properties.correlation_id()), "c-1");
    assert_eq!(
        (*properties.timestamp(), *properties.delivery_mode()),
        (Some(1_700_000_001), Some(2))
    );
    assert!(properties.user_id().is_none() && properties.expiration().is_none());
}

fn letter(delivery: &SourceDelivery) -> DeadLetter {
    let message = &delivery.message;
    let mut letter = DeadLetter::new(DeadLetterReason::Exhausted, &*message.topic, "g")
        .with_error("MailError", "no such host");
    (letter.attempts, letter.queue) = (7, message.queue.as_deref().map(Into::into));
    letter
}

/// The parsed headers of a dead letter.
fn read(copy: &Delivery) -> DeadLetter {
    let mut headers = Headers::new();
    for name in DEAD_LETTER_HEADERS {
        if let Some(value) = header(copy, name) {
            headers.insert(name, value).unwrap();
        }
    }
    DeadLetter::from_headers(&headers).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_is_never_early_nor_behind_a_longer_one() {
    let test = QueueTest::new("retry").await;
    let mut source = test
        .open(|request| {
            // So far apart that the short one is dead before the long one is due.
            request.retry = seconds(&[1, 15]);
        })
        .await;
    let properties = || BasicProperties::default().with_headers(typed_headers());
    for text in ["long", "short"] {
        test.publish(text.as_bytes(), properties()).await;
    }
    let mut due = Vec::new();
    for mut delivery in source.take(2).await {
        let delay = Duration::from_secs(if text(&delivery) == "long" { 15 } else { 1 });
        let state = delivery.retry.failed(Timestamp::now());
        // The server counts a TTL by the system clock, which may be slewed.
        due.push((text(&delivery), SystemTime::now() + delay, state));
        assert_eq!(delivery.settle.retry_later(delay, &state).await.unwrap(), Delayed::Scheduled);
        delivery.settle.ack().await.unwrap();
    }
    for (expected, at, state) in due.into_iter().rev() {
        let mut again = source.next().await;
        let late = SystemTime::now().duration_since(at).expect("not early");
        // The short one comes before the long one is due.
        let bound = Duration::from_secs(if expected == "short" { 14 } else { 60 });
        assert!(late < bound, "{late:?} late");
        assert_eq!((text(&again), again.retry), (expected.clone(), state));
        let message = &again.message;
        assert_eq!((&*message.topic, message.queue.as_deref()), (&*test.name, Some(&*test.queue)));
        assert_eq!(message.key.as_deref(), Some(&[0xff, 0][..]));
        assert_eq!(message.headers.get("count"), Some("-7"));
        // And once more: the attempts add up, the place it came from stays.
        let state = again.retry.failed(Timestamp::now());
        let later = again.settle.retry_later(Duration::from_secs(1), &state).await.unwrap();
        assert_eq!((later, state.attempts), (Delayed::Scheduled, 2));
        again.settle.ack().await.unwrap();
        let mut third = source.next().await;
        assert_eq!((text(&third), third.retry), (expected, state));
        assert_eq!(&*third.message.topic, test.name);
        third.settle.dead_letter(&letter(&third)).await.unwrap();
        third.settle.ack().await.unwrap();
    }
    source.close().await;
    let dead = test.raw.drain(&test.queue_of("dead")).await;
    assert_eq!(dead.len(), 2);
    for copy in &dead {
        let headers = copy.properties.headers().as_ref().unwrap().inner();
        for (name, value) in typed_headers().inner() {
            assert_eq!(headers.get(name.as_str()), Some(value), "{name}");
        }
        assert!(RETRY_HEADERS.iter().all(|name| !headers.contains_key(*name)));
        assert!(headers.keys().all(|name| !name.as_str().contains("death")), "{headers:?}");
        assert_eq!(header(copy, "original-exchange").unwrap(), test.name);
        assert_eq!(header(copy, "original-routing-key").unwrap(), test.name);
    }
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_the_message_byte_for_byte() {
    let test = QueueTest::new("copies").await;
    let mut source = test.open(|request| request.retry = seconds(&[3600])).await;
    let elsewhere = format!("{}.elsewhere", test.name);
    test.raw.queue(&elsewhere, "classic", &test.name, &["elsewhere"]).await;
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    test.publish(&bytes, all_properties()).await;
    assert_eq!(test.raw.drain(&elsewhere).await.len(), 1, "routed by CC once");
    let mut delivery = source.next().await;
    let state = RetryState::default().failed(Timestamp::now());
    delivery.settle.retry_later(Duration::from_secs(3600), &state).await.unwrap();
    let letter = letter(&delivery);
    delivery.settle.dead_letter(&letter).await.unwrap();
    // Nothing was settled by that.
    assert!(delivery.settle.begin());
    delivery.settle.ack().await.unwrap();
    let retry = test.raw.drain(&test.queue_of("retry.3600s")).await.remove(0);
    let dead = test.raw.drain(&test.queue_of("dead")).await.remove(0);
    for copy in [&retry, &dead] {
        assert!(copy.data == bytes, "the same bytes");
        assert_application_headers(copy);
        assert_eq!(header(copy, "original-exchange").unwrap(), test.name);
        assert_eq!(header(copy, "original-routing-key").unwrap(), test.name);
    }
    assert_eq!(header(&retry, RETRY_HEADERS[0]).unwrap(), "1");
    assert_eq!(retry.properties.priority(), &Some(3));
    assert_eq!(read(&dead), letter);
    for (name, value) in [
        ("original-message-id", "m-1"),
        ("original-type", "UserCreated"),
        ("original-content-type", "application/json"),
        ("original-correlation-id", "c-1"),
        ("original-reply-to", "answers"),
        ("original-app-id", "shop"),
        ("original-timestamp", "1700000001"),
        ("original-priority", "3"),
    ] {
        assert_eq!(header(&dead, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(test.raw.drain(&elsewhere).await.len(), 0, "not routed by CC again");
    source.close().await;
    test.raw.clean(&[&test.queue, &elsewhere], &[&test.name]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_targets_are_declared_again() {
    let test = QueueTest::new("healed").await;
    let mut source = test.open(|request| request.retry = seconds(&[1])).await;
    for end in ["dead", "retry.1s"] {
        let queue = test.queue_of(end);
        test.raw.channel.queue_delete(queue.into(), Default::default()).await.unwrap();
    }
    test.put(["x"]).await;
    let mut delivery = source.next().await;
    let state = RetryState::default().failed(Timestamp::now());
    delivery.settle.retry_later(Duration::from_secs(1), &state).await.unwrap();
    delivery.settle.retry_later(Duration::from_secs(1), &state).await.unwrap();
    delivery.settle.ack().await.unwrap();
    for _ in 0..2 {
        let mut again = source.next().await;
        assert_eq!(again.retry.attempts, 1);
        again.settle.dead_letter(&letter(&again)).await.unwrap();
        again.settle.ack().await.unwrap();
    }
    assert_eq!(test.raw.drain(&test.queue_of("dead")).await.len(), 2);
    source.close().await;
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_settled_while_a_target_is_missing() {
    let test = QueueTest::new("missing").await;
    let dead = test.queue_of("letters");
    test.raw.queue(&test.queue, "quorum", &test.name, &[&test.name]).await;
    // Nothing is declared, so nothing heals itself.
    let options =
        AmqpSubscription::new().with_queue(&test.queue).with_declare(DeclareMode::Passive);
    let change = |request: &mut SubscribeRequest| {
        request.retry = seconds(&[1]);
        request.dead_letter = DeadLetterTarget::Named(dead.as_str().into());
        request.options.insert(options.clone());
    };
    let mut source = test.open(change).await;
    test.put(["x"]).await;
    let mut delivery = source.next().await;
    let letter = letter(&delivery);
    for _ in 0..3 {
        let error = error_chain(&delivery.settle.dead_letter(&letter).await.unwrap_err());
        assert!(error.contains(&dead) && error.contains("does not exist"), "{error}");
        let later = delivery.settle.retry_later(Duration::from_secs(1), &delivery.retry).await;
        assert!(error_chain(&later.unwrap_err()).contains(".retry.1s"));
    }
    assert!(delivery.settle.begin());
    test.raw.queue(&dead, "quorum", &test.name, &[]).await;
    delivery.settle.dead_letter(&letter).await.unwrap();
    delivery.settle.ack().await.unwrap();
    assert_eq!(read(&test.raw.drain(&dead).await[0]), letter);
    source.close().await;
    assert_eq!(test.count().await, 0);
    test.raw.clean(&[&test.queue, &dead], &[&test.name]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_that_a_full_queue_refuses_is_not_stored() {
    let test = QueueTest::new("full").await;
    let dead = test.queue_of("dead");
    // Declared by another client, with a limit.
    test.raw.queue_of_one(&dead).await;
    let mut source = test.open(|request| request.retry = Retry::none()).await;
    test.put_to(&dead, ["another"]).await;
    test.put(["x"]).await;
    let mut delivery = source.next().await;
    let letter = letter(&delivery);
    for _ in 0..2 {
        let error = error_chain(&delivery.settle.dead_letter(&letter).await.unwrap_err());
        assert!(error.contains("basic.nack"), "{error}");
    }
    assert!(delivery.settle.begin());
    assert_eq!(test.raw.drain(&dead).await[0].data, b"another");
    delivery.settle.dead_letter(&letter).await.unwrap();
    delivery.settle.ack().await.unwrap();
    assert_eq!(test.raw.drain(&dead).await[0].data, b"x");
    source.close().await;
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_headers_stop_nothing() {
    let test = QueueTest::new("room").await;
    let mut source = test.open(|request| request.retry = seconds(&[1])).await;
    let mut headers = typed_headers();
    // A frame has 128 KiB.
    headers.insert("large".into(), AMQPValue::LongString(vec![b'x'; 130_700].into()));
    test.publish(b"x", BasicProperties::default().with_headers(headers)).await;
    let mut delivery = source.next().await;
    let state = RetryState::default().failed(Timestamp::now());
    let later = delivery.settle.retry_later(Duration::from_secs(1), &state).await.unwrap();
    assert_eq!(later, Delayed::Hold);
    let mut letter = letter(&delivery).with_error("E", "x".repeat(1_024));
    letter.topic.clone_from(&test.name);
    delivery.settle.dead_letter(&letter).await.unwrap();
    delivery.settle.ack().await.unwrap();
    source.close().await;
    let dead = test.raw.drain(&test.queue_of("dead")).await.remove(0);
    assert_eq!((read(&dead), &dead.data[..]), (letter, &b"x"[..]));
    let headers = dead.properties.headers().as_ref().unwrap().inner();
    assert_eq!(headers["message_key"], AMQPValue::ByteArray(vec![0xff, 0].into()));
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letter_leaves_out_a_key_that_does_not_fit() {
    let test = QueueTest::new("long-key").await;
    let mut source = test.open(|_| {}).await;
    let mut headers = FieldTable::default();
    headers.insert("message_key".into(), AMQPValue::LongString(vec![b'k'; 130_900].into()));
    test.publish(b"x", BasicProperties::default().with_headers(headers)).await;
    let mut delivery = source.next().await;
    let letter = letter(&delivery).with_error("E", "x".repeat(1_024));
    delivery.settle.dead_letter(&letter).await.unwrap();
    delivery.settle.ack().await.unwrap();
    source.close().await;
    let dead = test.raw.drain(&test.queue_of("dead")).await.remove(0);
    assert_eq!((read(&dead).error, &dead.data[..]), (letter.error, &b"x"[..]));
    let headers = dead.properties.headers().as_ref().unwrap().inner();
    assert_eq!(headers["cqrs-dead-letter-key-omitted"], AMQPValue::LongString("true".into()));
    assert!(!headers.contains_key("message_key"));
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delay_outside_the_schedule_makes_no_queue() {
    let test = QueueTest::new("delays").await;
    let schedule = |request: &mut SubscribeRequest| request.retry = seconds(&[2, 60]);
    let mut source = test.open(schedule).await;
    test.put(["x"]).await;
    let mut delivery = source.next().await;
    let state = RetryState::default().failed(Timestamp::now());
    let longer = delivery.settle.retry_later(Duration::from_secs(61), &state).await.unwrap_err();
    assert!(longer.to_string().contains("61s") && longer.to_string().contains("60s"), "{longer}");
    let failed = SystemTime::now();
    let later = delivery.settle.retry_later(Duration::from_millis(700), &state).await.unwrap();
    assert_eq!(later, Delayed::Scheduled);
    delivery.settle.ack().await.unwrap();
    let mut again = source.next().await;
    let waited = failed.elapsed().unwrap();
    assert!(waited >= Duration::from_secs(2), "it waited with those of 2 s");
    again.settle.ack().await.unwrap();
    for end in ["700ms", "61s"] {
        assert!(!test.raw.exists(&test.queue_of(&format!("retry.{end}"))).await, "{end}");
    }
    source.close().await;
    test.clean().await;
}
