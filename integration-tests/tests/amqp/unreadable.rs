//! Tests of messages whose frames lapin cannot read: each becomes a dead letter and stops no other.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker};
use cqrs_core::{
    HandlerError, MessageBrokerExt, NotificationEvent, PublishErrorKind, Received, Retry, Service,
    Subscription, each,
};
use integration_tests::amqp::{self, QueueTest, Raw, fresh, header};
use integration_tests::amqp_frames::{
    CORRELATION_ID, HEADERS, RawPublisher, TYPE, nested_header, short, text_header,
};
use integration_tests::consuming::fixture::until;
use integration_tests::consuming::work::Work;
use integration_tests::control::ctl;
use integration_tests::interop::TestService;
use lapin::ExchangeKind;
use lapin::message::Delivery;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

fn subscription(topic: &str) -> Subscription {
    Subscription::to(topic.to_owned()).group("g").json::<Work>().retry(Retry::none())
}

fn json(topic: &str, seq: u32) -> Vec<u8> {
    Work::new("k", seq).message(topic).body.to_vec()
}

fn bytes(copy: &Delivery, name: &str) -> Vec<u8> {
    match copy.properties.headers().as_ref().and_then(|table| table.inner().get(name)) {
        Some(AMQPValue::ByteArray(bytes)) => bytes.as_slice().to_vec(),
        other => panic!("{name}: {other:?}"),
    }
}

/// Publishes messages 0 to 3, of which number 1 is `publish`'s own; the others must be handled once and
/// that one become a dead letter.
async fn one_of_four(
    config: AmqpConfig,
    publish: impl AsyncFnOnce(&mut RawPublisher, &str),
) -> Delivery {
    let (topic, raw) = (config.exchange.name.clone(), Raw::connect().await);
    let queue = format!("{topic}.g");
    let broker = AmqpMessageBroker::connect(config).await.unwrap();
    // Made by a first subscription, so that all four are there when the second one comes.
    TestService::<Work>::open(broker.clone(), subscription(&topic)).await.stop().await;
    let mut publisher = RawPublisher::connect().await;
    publisher.publish("", queue.as_bytes(), (0, b""), &json(&topic, 0)).await;
    publish(&mut publisher, &queue).await;
    for seq in [2, 3] {
        publisher.publish("", queue.as_bytes(), (0, b""), &json(&topic, seq)).await;
    }
    let mut service = TestService::<Work>::open(broker, subscription(&topic)).await;
    let handled: Vec<u32> = service.take(3).await.iter().map(|event| event.payload.seq).collect();
    assert_eq!(handled, [0, 2, 3]);
    let dead = format!("{queue}.dead");
    until("the dead letter", async || raw.count(&dead).await == 1).await;
    until("an empty queue", async || raw.count(&queue).await == 0).await;
    assert!(service.drain().is_empty(), "handled again");
    service.stop().await;
    assert_eq!(raw.count(&queue).await, 0, "all were settled");
    let letter = raw.drain(&dead).await.remove(0);
    raw.clean(&[&queue, &dead], &[&topic]).await;
    assert_eq!(header(&letter, "cqrs-dead-letter-reason").as_deref(), Some("decode"));
    letter
}

/// Publishes four messages, one with these property flags and properties, which its dead letter keeps.
async fn unreadable(flags: u16, properties: &[u8], why: &str) {
    let name = fresh("unreadable");
    let body = json(&name, 1);
    let letter = one_of_four(amqp::config(&name), async |publisher, queue| {
        publisher.publish("", queue.as_bytes(), (flags, properties), &body).await;
    })
    .await;
    assert_eq!(letter.data, body);
    let error = header(&letter, "cqrs-dead-letter-error").unwrap();
    assert!(error.contains(why), "{error}");
    assert_eq!(header(&letter, "cqrs-unreadable").as_deref(), Some(why));
    let original = [&flags.to_be_bytes()[..], properties].concat();
    assert_eq!(bytes(&letter, "cqrs-unreadable-properties"), original);
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_correlation_id_is_a_decode_dead_letter() {
    let uuid = *b"\x01\x9a\xf0\x1c\x88\xfe\x70\x00\xbf\xff\x00\xce\xe9\xe8\x80\x81";
    let why = "its property correlation_id is not UTF-8";
    unreadable(CORRELATION_ID, &short(&uuid), why).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn latin1_type_is_a_decode_dead_letter() {
    unreadable(TYPE, &short(b"Stra\xdfe"), "its property type is not UTF-8").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn latin1_header_name_is_a_decode_dead_letter() {
    let properties = text_header(b"Stra\xdfe", b"x");
    unreadable(HEADERS, &properties, "a header has a name that is not UTF-8").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deeply_nested_header_is_a_decode_dead_letter() {
    unreadable(HEADERS, &nested_header(2_000), "a header is nested more than 64 deep").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_routing_key_is_a_decode_dead_letter() {
    let name = fresh("unreadable-key");
    let fanout = format!("{name}-fanout");
    let letter = one_of_four(amqp::config(&name), async |publisher, queue| {
        let raw = Raw::connect().await;
        let options = ExchangeDeclareOptions { auto_delete: true, ..Default::default() };
        let (exchange, channel) = (fanout.as_str(), &raw.channel);
        let table = FieldTable::default;
        let kind = ExchangeKind::Fanout;
        channel.exchange_declare(exchange.into(), kind, options, table()).await.unwrap();
        let options = QueueBindOptions::default();
        channel
            .queue_bind(queue.into(), exchange.into(), "".into(), options, table())
            .await
            .unwrap();
        publisher.publish(exchange, b"Stra\xdfe", (0, b""), &json(&name, 1)).await;
    })
    .await;
    let why = "its routing_key is not UTF-8";
    assert_eq!(header(&letter, "cqrs-unreadable").as_deref(), Some(why));
    assert_eq!(bytes(&letter, "cqrs-unreadable-routing-key"), b"Stra\xdfe");
    assert_eq!(header(&letter, "original-routing-key").as_deref(), Some("Stra\u{fffd}e"));
}

#[tokio::test(flavor = "multi_thread")]
async fn frame_outgrown_on_the_way_is_a_dead_letter() {
    // A foreign queue in front adds `x-death` to what fits a frame barely.
    let name = fresh("outgrown");
    let front = format!("{name}-front");
    let properties = text_header(b"large", &vec![b'x'; 130_950]);
    let body = json(&name, 1);
    let letter = one_of_four(amqp::config(&name), async |publisher, queue| {
        let raw = Raw::connect().await;
        let mut table = FieldTable::default();
        table.insert("x-message-ttl".into(), AMQPValue::LongInt(0));
        table.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
        table.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString(queue.into()));
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        raw.channel.queue_declare(front.as_str().into(), options, table).await.unwrap();
        publisher.publish("", front.as_bytes(), (HEADERS, &properties), &body).await;
        until("the message in the second queue", async || raw.count(queue).await == 2).await;
        raw.clean(&[&front], &[]).await;
    })
    .await;
    assert_eq!(letter.data, body);
    let why = header(&letter, "cqrs-unreadable").unwrap();
    assert!(why.contains("this connection takes 131072"), "{why}");
    // The header is behind the server's additions.
    let kept = bytes(&letter, "cqrs-unreadable-properties");
    assert!(kept.len() > 120_000 && kept.ends_with(b"xxxx"), "{}", kept.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn small_frame_max_does_not_stop_the_queue() {
    let name = fresh("small-frames");
    let mut config = amqp::config(&name);
    config.dsn = format!("{}?frame_max=8192", amqp::dsn()).into();
    let properties = text_header(b"large", &[b'x'; 20_000]);
    let body = json(&name, 1);
    let letter = one_of_four(config, async |publisher, queue| {
        publisher.publish("", queue.as_bytes(), (HEADERS, &properties), &body).await;
    })
    .await;
    let why = header(&letter, "cqrs-unreadable").unwrap();
    assert!(why.contains("this connection takes 8192"), "{why}");
    assert_eq!(letter.data, body);
}

#[tokio::test(flavor = "multi_thread")]
async fn largest_header_we_publish_survives_a_retry() {
    let test = QueueTest::new("largest-header").await;
    let failures = AtomicU32::new(0);
    let (sender, mut handled) = tokio::sync::mpsc::unbounded_channel();
    let handler = each(move |event: NotificationEvent<Work>, received: Received| {
        let first = failures.fetch_add(1, Ordering::Relaxed) == 0;
        sender.send((event.payload.seq, received.attempt())).unwrap();
        async move {
            match first {
                true => Err(HandlerError::retryable("the first one fails")),
                false => Ok(()),
            }
        }
    });
    let retry = Retry::none().delayed([Duration::from_secs(1)]);
    let service = Service::builder(test.broker.clone())
        .subscribe(subscription(&test.name).retry(retry), handler)
        .build()
        .unwrap();
    let (stop, health) = (service.stop_handle(), service.health());
    let running = tokio::spawn(service.run_until(std::future::pending::<()>()));
    until("the service to consume", async || health.is_ready()).await;
    let message = |seq, size| {
        let mut message = Work::new("k", seq).message(&test.name);
        message.headers.insert("large", "x".repeat(size)).unwrap();
        message
    };
    // The largest that is taken, to 8 bytes.
    let refused = test.broker.publish(message(0, 130_600)).await.unwrap_err();
    assert_eq!(refused.kind(), PublishErrorKind::TooLarge, "{refused}");
    let (mut fits, mut not) = (100_000, 130_600);
    while not - fits > 8 {
        let size = usize::midpoint(fits, not);
        let mut probe = message(0, size);
        probe.topic = format!("{}-elsewhere", test.name).into();
        // Comes back whole, with the server's reason, and the connection goes on.
        match test.broker.publish(probe).await.unwrap_err() {
            error if error.kind() == PublishErrorKind::Unroutable => fits = size,
            error => {
                assert_eq!(error.kind(), PublishErrorKind::TooLarge, "{error}");
                not = size;
            }
        }
    }
    test.broker.publish(message(1, fits)).await.unwrap();
    test.broker.publish(message(2, 1)).await.unwrap();
    let mut came = Vec::new();
    while came.len() < 3 {
        let next = tokio::time::timeout(Duration::from_secs(60), handled.recv()).await;
        came.push(next.expect("an event in time").unwrap());
    }
    came.sort_unstable();
    assert_eq!(came, [(1, 1), (1, 2), (2, 1)]);
    stop.stop();
    running.await.unwrap().unwrap();
    assert!(handled.try_recv().is_err());
    for queue in [&test.queue, &test.queue_of("dead"), &test.queue_of("retry.1s")] {
        assert_eq!(test.raw.count(queue).await, 0, "{queue}");
    }
    test.clean().await;
}

/// The promise of `with_delivery_limit` about a policy.
#[tokio::test(flavor = "multi_thread")]
async fn policy_limits_deliveries_and_keeps_the_message() {
    let test = QueueTest::new("policy-limit").await;
    let (name, dead) = (&test.name, test.queue_of("dead"));
    let declare = async || {
        TestService::<Work>::open(test.broker.clone(), subscription(name)).await.stop().await;
    };
    declare().await;
    let definition = format!(
        r#"{{"delivery-limit":2,"dead-letter-exchange":"","dead-letter-routing-key":"{dead}"}}"#
    );
    let pattern = format!("^{}$", test.queue);
    ctl(&["set_policy", "--apply-to", "queues", name, &pattern, &definition]).await;
    let shown = async || ctl(&["-q", "list_queues", "name", "policy"]).await;
    until("the policy", async || shown().await.matches(name).count() > 2).await;
    test.put(["kills"]).await;
    // The limit, and the one over it.
    for _ in 0..3 {
        RawPublisher::connect().await.take_and_die(&test.queue).await;
        let moved = async || test.count().await + test.raw.count(&dead).await == 1;
        until("the message to be requeued", moved).await;
    }
    until("the dead letter", async || test.raw.count(&dead).await == 1).await;
    // The queue is declared as before: a policy is no other argument.
    declare().await;
    assert_eq!(test.raw.drain(&dead).await[0].data, b"kills");
    ctl(&["clear_policy", name]).await;
    test.clean().await;
}
