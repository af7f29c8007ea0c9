//! Tests of the RabbitMQ source: lost connections, conflicts, stops and closes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cqrs_amqp::{AmqpMessageBroker, AmqpSubscription, DeclareMode, ExchangeConfig, QueueKind};
use cqrs_core::consume::{SourceStatus, Subscribe, SubscribeErrorKind, SubscribeRequest};
use cqrs_core::{Message, MessageBrokerExt, Retry};
use cqrs_testkit::TestSource;
use cqrs_testkit::source::{is_consuming, is_disconnected, text};
use integration_tests::amqp::{self, QueueTest, Raw, config, fresh, unacknowledged};
use integration_tests::consuming::fixture::until;
use integration_tests::consuming::{TIMEOUT, open, request, try_open};
use integration_tests::control::{brokers, ctl};
use lapin::BasicProperties;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::task::JoinHandle;

const LONG: Duration = Duration::from_secs(20);
/// The allowed time beyond a deadline on a busy machine; less than a heartbeat takes to detect a dead
/// connection.
const SLACK: Duration = Duration::from_secs(15);

/// Without delays, so that fewer queues are made.
fn plain(request: &mut SubscribeRequest) {
    request.retry = Retry::none();
}

fn with(options: AmqpSubscription) -> impl FnOnce(&mut SubscribeRequest) {
    |request| {
        plain(request);
        request.options.insert(options);
    }
}

/// Waits for a status in a task of its own: the status may last for milliseconds.
fn passing(source: &TestSource, is: fn(&SourceStatus) -> bool) -> JoinHandle<SourceStatus> {
    let mut status = source.status.clone();
    tokio::spawn(async move {
        let waiting = tokio::time::timeout(TIMEOUT, status.wait_for(is));
        waiting.await.expect("a status in time").unwrap().clone()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_connection_is_reported_and_loses_nothing() {
    let test = QueueTest::new("cut").await;
    let mut source = test.open(plain).await;
    test.put(0..4).await;
    let mut out = source.take(3).await;
    out[0].settle.ack().await.unwrap();
    // A sent ack may not have arrived.
    until("all are out", async || test.count().await == 0).await;
    until("the ack arrives", async || unacknowledged(&test.queue).await == Some(3)).await;
    test.proxy.refuse(true);
    test.proxy.cut();
    let cut = Instant::now();
    source.wait_for(is_disconnected).await;
    assert!(cut.elapsed() < SLACK, "noticed after {:?}", cut.elapsed());
    // The prefetched one is not delivered any more, and these are revoked.
    source.nothing_within(Duration::from_millis(300)).await;
    for delivery in &mut out[1..] {
        assert!(!delivery.settle.begin() && delivery.settle.is_revoked());
        let error = delivery.settle.ack().await.unwrap_err().to_string();
        assert!(error.contains(&test.queue), "{error}");
    }
    test.proxy.refuse(false);
    drop(out);
    source.wait_for(is_consuming).await;
    let again = source.take(3).await;
    assert!(again.iter().all(|delivery| delivery.message.redelivered));
    for mut delivery in again {
        assert!(delivery.settle.begin());
        delivery.settle.ack().await.unwrap();
    }
    source.close().await;
    assert_eq!(test.count().await, 0);
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_closed_by_an_operator_is_reopened() {
    let test = QueueTest::new("closed").await;
    let mut source = test.open(plain).await;
    let connections = ctl(&["list_connections", "pid", "client_properties"]).await;
    let ours =
        connections.lines().find(|line| line.contains(&test.name)).expect("named in the list");
    let pid = ours.split_whitespace().next().unwrap();
    // It may be reconnected before the command has ended.
    let lost = passing(&source, is_disconnected);
    brokers(&["ctl", "rabbitmq", "close_connection", pid, "tested"]).await;
    let SourceStatus::Disconnected { last_error } = lost.await.unwrap() else { unreachable!() };
    assert!(last_error.contains("320"), "{last_error}");
    source.wait_for(is_consuming).await;
    test.put(["x"]).await;
    assert_eq!(source.ack(1).await, ["x"]);
    source.close().await;
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_is_declared_again() {
    for kind in [QueueKind::Classic, QueueKind::Quorum] {
        let test = QueueTest::new("deleted").await;
        let options = AmqpSubscription::new().with_kind(kind);
        let mut source = test.open(with(options)).await;
        for round in 0..2 {
            test.put(["lost"]).await;
            let mut out = source.next().await;
            let lost = passing(&source, is_disconnected);
            // On a channel that may die of it.
            let other = Raw::connect().await;
            let deleting =
                other.channel.queue_delete(test.queue.as_str().into(), Default::default());
            let _may_crash = tokio::time::timeout(Duration::from_secs(10), deleting).await;
            lost.await.unwrap();
            assert!(!out.settle.begin());
            source.wait_for(is_consuming).await;
            // The binding is restored too.
            let body = format!("{round}");
            let message = Message::new(&*test.name, body.clone());
            until("the exchange routes again", async || {
                test.broker.publish(message.clone()).await.is_ok()
            })
            .await;
            let mut next = source.next().await;
            // 4.3 may lose a queue that was declared a moment ago, and with it the ack.
            assert_eq!(text(&next), body);
            next.settle.ack().await.unwrap();
        }
        source.close().await;
        test.clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_cancelled_by_the_server_is_restarted() {
    let version = amqp::version().await;
    if version < (3, 12) {
        println!("RabbitMQ {version:?} has no consumer timeout per queue: nothing to look at");
        return;
    }
    let test = QueueTest::new("cancelled").await;
    let options = AmqpSubscription::new().with_consumer_timeout(Duration::from_secs(1));
    let mut source = test.open(with(options)).await;
    let lost = passing(&source, is_disconnected);
    test.put(["slow"]).await;
    let mut slow = source.next().await;
    lost.await.unwrap();
    assert!(slow.settle.is_revoked() && slow.settle.ack().await.is_err());
    assert_eq!(source.ack(1).await, ["slow"]);
    source.close().await;
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribe_waits_for_a_server_that_is_down() {
    let test = QueueTest::new("down").await;
    test.proxy.refuse(true);
    test.proxy.cut();
    let (subscribing, mut status) = request(&[&test.name], "g", plain);
    let mut opening = test.broker.subscribe(subscribing);
    let failed =
        |status: &SourceStatus| matches!(status, SourceStatus::Connecting { last_error: Some(_) });
    tokio::select! {
        _ = &mut opening => panic!("there is no server"),
        seen = tokio::time::timeout(TIMEOUT, status.wait_for(failed)) => drop(seen.unwrap().unwrap()),
    }
    test.proxy.refuse(false);
    let source = tokio::time::timeout(TIMEOUT, opening).await.unwrap().unwrap();
    let mut source = TestSource::new(source, status, TIMEOUT);
    test.put(["x"]).await;
    assert_eq!(source.ack(1).await, ["x"]);
    // A dropped subscribe leaves no consumer, at any point of it.
    for wait in [0, 5, 10, 20, 40, 80, 160] {
        let (subscribing, _status) = request(&[&test.name], "g", plain);
        let opening = test.broker.subscribe(subscribing);
        let _ = tokio::time::timeout(Duration::from_millis(wait), opening).await;
    }
    until("one consumer is left", async || test.raw.consumers(&test.queue).await == 1).await;
    source.close().await;
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn close_ends_in_time_while_the_server_hangs() {
    let test = QueueTest::new("hangs").await;
    let mut source = test.open(plain).await;
    test.put(["x", "y"]).await;
    let mut out = source.next().await;
    test.proxy.stall(true);
    // The ack is sent and may not arrive.
    out.settle.ack().await.unwrap();
    let start = Instant::now();
    source.stop().await;
    assert!(source.poll().await.is_none());
    assert!(start.elapsed() < SLACK, "stop took {:?}", start.elapsed());
    let deadline = Duration::from_secs(2);
    let (took, ended) = source.close_within(deadline).await;
    assert!(took < deadline + SLACK, "close took {took:?}");
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("may be redelivered"), "{error}");
    test.proxy.stall(false);
    test.proxy.refuse(true);
    test.proxy.cut();
    until("the server notices", async || test.raw.consumers(&test.queue).await == 0).await;
    assert!((1..=2).contains(&test.count().await));
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_and_dropping_leave_the_broker() {
    let test = QueueTest::new("leave").await;
    let mut source = test.open(plain).await;
    test.put(0..3).await;
    let mut out = source.take(2).await;
    source.stop().await;
    source.stop().await;
    assert!(source.poll().await.is_none());
    test.put(["3"]).await;
    assert!(source.poll().await.is_none());
    // Deliveries in flight can be settled until the close.
    assert!(out[1].settle.begin());
    out[1].settle.ack().await.unwrap();
    let (took, ended) = source.close_within(LONG).await;
    ended.unwrap();
    assert!(took < SLACK, "{took:?}");
    assert!(out[0].settle.is_revoked() && out[0].settle.ack().await.is_err());
    let left: Vec<_> = test.raw.drain(&test.queue).await.iter().map(|left| left.data[0]).collect();
    assert_eq!(left, b"023", "in the order they had");
    let source = test.open(plain).await;
    assert_eq!(test.raw.consumers(&test.queue).await, 1);
    drop(source);
    until("no consumer is left", async || test.raw.consumers(&test.queue).await == 0).await;
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_deleted_after_stop_revokes_only_its_messages() {
    let (stays, goes, raw) = (fresh("stays"), fresh("goes"), Raw::connect().await);
    let queue_of = |topic: &str| format!("{topic}.g");
    let broker = AmqpMessageBroker::connect(config(&stays)).await.unwrap();
    let mut source = open(&broker, &[&stays, &goes], "g", plain).await;
    for topic in [&stays, &goes] {
        raw.put(&queue_of(topic), topic.as_bytes(), BasicProperties::default()).await;
    }
    let mut out = source.take(2).await;
    source.stop().await;
    let other = Raw::connect().await;
    let queue = queue_of(&goes);
    let deleting = other.channel.queue_delete(queue.as_str().into(), Default::default());
    let _may_crash = tokio::time::timeout(Duration::from_secs(10), deleting).await;
    until("the queue is gone", async || !raw.exists(&queue).await).await;
    // Time for the server's notification.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let ours = out.iter_mut().find(|delivery| text(delivery) == stays).unwrap();
    assert!(!ours.settle.is_revoked());
    ours.settle.ack().await.unwrap();
    source.close().await;
    assert_eq!(raw.count(&queue_of(&stays)).await, 0);
    let queue_that_stays = queue_of(&stays);
    raw.clean(&[&queue_that_stays, &queue], &[&stays]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn next_active_consumer_waits_for_running_messages() {
    let test = QueueTest::new("handover").await;
    let alone = || with(AmqpSubscription::new().with_single_active_consumer(true));
    let mut active = test.open(alone()).await;
    active.wait_for(is_consuming).await;
    let mut next = test.open(alone()).await;
    next.wait_for(is_consuming).await;
    test.put(0..40).await;
    // One handler runs, the others wait for it here and in the prefetch.
    let mut out = active.take(10).await.into_iter();
    let mut runs = out.next().unwrap();
    assert!(runs.settle.begin());
    active.stop().await;
    drop(out);
    next.nothing_within(Duration::from_millis(500)).await;
    assert!(!runs.settle.is_revoked());
    runs.settle.ack().await.unwrap();
    active.close().await;
    // The server delivers new messages before returned ones (4.3.6).
    let mut came = BTreeSet::new();
    while came.len() < 39 {
        let [body] = next.ack(1).await.try_into().unwrap();
        assert!(body != "0" && came.insert(body), "once");
    }
    next.close().await;
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conflict_with_an_existing_queue_is_named() {
    let test = QueueTest::new("conflict").await;
    test.raw.queue(&test.queue, "classic", &test.name, &[&test.name]).await;
    let error = try_open(&test.broker, &[&test.name], "g", plain).await.unwrap_err();
    assert_eq!(error.kind(), SubscribeErrorKind::Conflict);
    let text = cqrs_testkit::error_chain(&error);
    for part in [&*test.queue, "x-queue-type", "quorum", "classic", "with_passive(true)", "406"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(test.raw.consumers(&test.queue).await, 0);
    // As it stands.
    let mut source = test.open(with(AmqpSubscription::new().with_passive(true))).await;
    test.broker.publish(Message::new(&*test.name, "x")).await.unwrap();
    assert_eq!(source.ack(1).await, ["x"]);
    source.close().await;
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_are_an_error() {
    let dsn = format!("amqp://guest:s3cret@{}", amqp::address());
    let config = amqp::config_at(dsn, &fresh("refused"));
    let broker = AmqpMessageBroker::new(config).unwrap();
    let error = try_open(&broker, &["t"], "g", plain).await.unwrap_err();
    assert_eq!(error.kind(), SubscribeErrorKind::Forbidden, "{error}");
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("403") && !shown.contains("s3cret"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_passive_queue_is_an_error_only_at_start() {
    let test = QueueTest::new("passive").await;
    let options = AmqpSubscription::new().with_queue(&*test.name).with_passive(true);
    let error =
        try_open(&test.broker, &[&test.name], "g", with(options.clone())).await.unwrap_err();
    assert_eq!(error.kind(), SubscribeErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains(&test.name), "{error}");
    test.raw.queue(&test.name, "classic", &test.name, &[]).await;
    let mut source = test.open(with(options)).await;
    test.raw.channel.queue_delete(test.name.as_str().into(), Default::default()).await.unwrap();
    let gone = |status: &SourceStatus| matches!(status, SourceStatus::Disconnected { last_error } if last_error.contains("404"));
    source.wait_for(gone).await;
    test.raw.queue(&test.name, "classic", &test.name, &[]).await;
    source.wait_for(is_consuming).await;
    test.put_to(&test.name, ["x"]).await;
    assert_eq!(source.ack(1).await, ["x"]);
    source.close().await;
    test.raw.clean(&[&test.name], &[&test.name]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_is_shared_with_python_cqrs_and_faststream() {
    let (name, raw) = (fresh("python"), Raw::connect().await);
    // As python-cqrs does on each publish.
    let (table, fleeting) =
        (FieldTable::default, ExchangeDeclareOptions { auto_delete: true, ..Default::default() });
    let (kind, key) = (lapin::ExchangeKind::Direct, name.as_str());
    let python = async || {
        raw.channel
            .queue_declare(key.into(), QueueDeclareOptions::default(), table())
            .await
            .unwrap();
        raw.channel.exchange_declare(key.into(), kind.clone(), fleeting, table()).await.unwrap();
        let bind = QueueBindOptions::default();
        raw.channel.queue_bind(key.into(), key.into(), key.into(), bind, table()).await.unwrap();
    };
    python().await;
    let mut python_config = config(&name);
    python_config.declare = DeclareMode::PythonCompatible;
    let broker = AmqpMessageBroker::connect(python_config).await.unwrap();
    let mut source = open(&broker, &[&name], "g", plain).await;
    python().await;
    raw.publish(&name, &name, b"{}", BasicProperties::default().with_message_id("0a".into())).await;
    let mut delivery = source.next().await;
    assert_eq!((delivery.message.id.as_deref(), &*delivery.message.topic), (Some("0a"), &*name));
    delivery.settle.ack().await.unwrap();
    source.close().await;
    // On a broker value with other habits, by the subscription's own option.
    let other = AmqpMessageBroker::new(config("events-of-nobody")).unwrap();
    let mut exchange = ExchangeConfig::default();
    exchange.name.clone_from(&name);
    let options = AmqpSubscription::python_compatible().with_exchange(exchange.clone());
    let source = open(&other, &[&name], "g", with(options)).await;
    source.close().await;
    raw.channel.queue_delete(key.into(), Default::default()).await.unwrap();
    // FastStream's queue.
    raw.exchange(&name).await;
    raw.queue(&name, "classic", &name, &[]).await;
    let options = AmqpSubscription::faststream_compatible().with_exchange(exchange);
    let mut source = open(&other, &[&name], "g", with(options)).await;
    raw.publish(&name, &name, b"x", BasicProperties::default()).await;
    assert_eq!(source.ack(1).await, ["x"]);
    source.close().await;
    raw.clean(&[&name], &[&name]).await;
}
