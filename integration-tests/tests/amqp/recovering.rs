//! The RabbitMQ source against a real server: what it survives, what it refuses, how it leaves.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cqrs_amqp::{AmqpMessageBroker, AmqpSubscription, DeclareMode, ExchangeConfig, QueueKind};
use cqrs_core::consume::{SourceStatus, Subscribe, SubscribeErrorKind, SubscribeRequest};
use cqrs_core::{Message, MessageBrokerExt, Retry};
use cqrs_testkit::FaultProxy;
use integration_tests::amqp::{self, Raw, config, fresh, unacknowledged};
use integration_tests::consuming::{Opened, PATIENCE, body, request};
use integration_tests::control::{brokers, ctl};
use lapin::BasicProperties;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::task::JoinHandle;

const LONG: Duration = Duration::from_secs(20);
/// What anything may take beyond its deadline on a busy machine; less than a heartbeat takes to find out
/// that a connection is dead.
const SLACK: Duration = Duration::from_secs(15);

async fn through_proxy(exchange: &str) -> (FaultProxy, AmqpMessageBroker) {
    let proxy = FaultProxy::start("127.0.0.1:0", amqp::address()).await.unwrap();
    let config = amqp::config_at(format!("amqp://guest:guest@{}", proxy.address()), exchange);
    (proxy, AmqpMessageBroker::connect(config).await.unwrap())
}

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

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_disconnected(status: &SourceStatus) -> bool {
    matches!(status, SourceStatus::Disconnected { .. })
}

fn is_consuming(status: &SourceStatus) -> bool {
    *status == SourceStatus::Consuming
}

/// Waits for a status from now on, in a task that nothing holds up: it may last for milliseconds.
fn passing(opened: &Opened, is: fn(&SourceStatus) -> bool) -> JoinHandle<SourceStatus> {
    let mut status = opened.status.clone();
    tokio::spawn(async move {
        let waiting = tokio::time::timeout(PATIENCE, status.wait_for(is));
        waiting.await.expect("a status in time").unwrap().clone()
    })
}

async fn clean(raw: Raw, queue: &str, exchange: &str) {
    raw.clean(&[queue, &format!("{queue}.dead")], &[exchange]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_noticed_and_nothing_is_lost() {
    let (name, raw) = (fresh("cut"), Raw::connect().await);
    let queue = format!("{name}.g");
    let (proxy, broker) = through_proxy(&name).await;
    let mut opened = Opened::open(&broker, &[&name], "g", plain).await;
    for n in 0..4 {
        raw.put(&queue, n.to_string().as_bytes(), BasicProperties::default()).await;
    }
    let mut out = opened.take(3).await;
    out[0].settle.ack().await.unwrap();
    // An acknowledgement that left is not one that arrived.
    until("all are out", async || raw.count(&queue).await == 0).await;
    until("the ack arrives", async || unacknowledged(&queue).await == Some(3)).await;
    proxy.refuse(true);
    proxy.cut();
    let cut = Instant::now();
    opened.status(is_disconnected).await;
    assert!(cut.elapsed() < SLACK, "noticed after {:?}", cut.elapsed());
    // The one that was sent ahead is not handed out any more, and these are not ours.
    opened.nothing_within(Duration::from_millis(300)).await;
    for delivery in &mut out[1..] {
        assert!(!delivery.settle.begin() && delivery.settle.is_revoked());
        let error = delivery.settle.ack().await.unwrap_err().to_string();
        assert!(error.contains(&queue), "{error}");
    }
    proxy.refuse(false);
    drop(out);
    opened.status(is_consuming).await;
    let again = opened.take(3).await;
    assert!(again.iter().all(|delivery| delivery.message.redelivered));
    for mut delivery in again {
        assert!(delivery.settle.begin());
        delivery.settle.ack().await.unwrap();
    }
    opened.close(LONG).await.1.unwrap();
    assert_eq!(raw.count(&queue).await, 0);
    clean(raw, &queue, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_closed_by_an_operator_comes_back() {
    let (name, raw) = (fresh("closed"), Raw::connect().await);
    let queue = format!("{name}.g");
    let broker = AmqpMessageBroker::connect(config(&name)).await.unwrap();
    let mut opened = Opened::open(&broker, &[&name], "g", plain).await;
    let connections = ctl(&["list_connections", "pid", "client_properties"]).await;
    let ours = connections.lines().find(|line| line.contains(&name)).expect("named in the list");
    let pid = ours.split_whitespace().next().unwrap();
    // It may be back before the command has ended.
    let lost = passing(&opened, is_disconnected);
    brokers(&["ctl", "rabbitmq", "close_connection", pid, "tested"]).await;
    let SourceStatus::Disconnected { last_error } = lost.await.unwrap() else { unreachable!() };
    assert!(last_error.contains("320"), "{last_error}");
    opened.status(is_consuming).await;
    raw.put(&queue, b"x", BasicProperties::default()).await;
    assert_eq!(opened.acked(1).await, ["x"]);
    opened.close(LONG).await.1.unwrap();
    clean(raw, &queue, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_is_declared_again() {
    for kind in [QueueKind::Classic, QueueKind::Quorum] {
        let (name, raw) = (fresh("deleted"), Raw::connect().await);
        let queue = format!("{name}.g");
        let broker = AmqpMessageBroker::connect(config(&name)).await.unwrap();
        let options = AmqpSubscription::new().with_kind(kind);
        let mut opened = Opened::open(&broker, &[&name], "g", with(options)).await;
        for round in 0..2 {
            raw.put(&queue, b"lost", BasicProperties::default()).await;
            let mut out = opened.next().await;
            let lost = passing(&opened, is_disconnected);
            // On a channel that may die of it.
            let other = Raw::connect().await;
            let deleting = other.channel.queue_delete(queue.as_str().into(), Default::default());
            let _may_crash = tokio::time::timeout(Duration::from_secs(10), deleting).await;
            lost.await.unwrap();
            assert!(!out.settle.begin());
            opened.status(is_consuming).await;
            // Bound again as well.
            let text = format!("{round}");
            let message = Message::new(&*name, text.clone());
            until("the exchange routes again", async || {
                broker.publish(message.clone()).await.is_ok()
            })
            .await;
            let mut next = opened.next().await;
            // 4.3 may lose a queue that was declared a moment ago, and with it the ack.
            assert_eq!(body(&next), text);
            next.settle.ack().await.unwrap();
        }
        opened.close(LONG).await.1.unwrap();
        clean(raw, &queue, &name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_cancelled_by_the_server_comes_back() {
    let version = amqp::version().await;
    if version < (3, 12) {
        println!("RabbitMQ {version:?} has no consumer timeout per queue: nothing to look at");
        return;
    }
    let (name, raw) = (fresh("cancelled"), Raw::connect().await);
    let queue = format!("{name}.g");
    let broker = AmqpMessageBroker::connect(config(&name)).await.unwrap();
    let options = AmqpSubscription::new().with_consumer_timeout(Duration::from_secs(1));
    let mut opened = Opened::open(&broker, &[&name], "g", with(options)).await;
    let lost = passing(&opened, is_disconnected);
    raw.put(&queue, b"slow", BasicProperties::default()).await;
    let mut slow = opened.next().await;
    lost.await.unwrap();
    assert!(slow.settle.is_revoked() && slow.settle.ack().await.is_err());
    assert_eq!(opened.acked(1).await, ["slow"]);
    opened.close(LONG).await.1.unwrap();
    clean(raw, &queue, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_is_waited_for() {
    let (name, raw) = (fresh("down"), Raw::connect().await);
    let queue = format!("{name}.g");
    let (proxy, broker) = through_proxy(&name).await;
    proxy.refuse(true);
    proxy.cut();
    let (subscribing, mut status) = request(&[&name], "g", plain);
    let opening = broker.subscribe(subscribing);
    tokio::pin!(opening);
    let failed =
        |status: &SourceStatus| matches!(status, SourceStatus::Connecting { last_error: Some(_) });
    tokio::select! {
        _ = &mut opening => panic!("there is no server"),
        seen = tokio::time::timeout(PATIENCE, status.wait_for(failed)) => drop(seen.unwrap().unwrap()),
    }
    proxy.refuse(false);
    let source = tokio::time::timeout(PATIENCE, opening).await.unwrap().unwrap();
    let mut opened = Opened { source, status };
    raw.put(&queue, b"x", BasicProperties::default()).await;
    assert_eq!(opened.acked(1).await, ["x"]);
    // Dropped, an opening leaves nothing: here at any point of it.
    for wait in [0, 5, 10, 20, 40, 80, 160] {
        let (subscribing, _status) = request(&[&name], "g", plain);
        let opening = broker.subscribe(subscribing);
        let _ = tokio::time::timeout(Duration::from_millis(wait), opening).await;
    }
    until("one consumer is left", async || raw.consumers(&queue).await == 1).await;
    opened.close(LONG).await.1.unwrap();
    clean(raw, &queue, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_left_in_time() {
    let (name, raw) = (fresh("hangs"), Raw::connect().await);
    let queue = format!("{name}.g");
    let (proxy, broker) = through_proxy(&name).await;
    let mut opened = Opened::open(&broker, &[&name], "g", plain).await;
    raw.put(&queue, b"x", BasicProperties::default()).await;
    raw.put(&queue, b"y", BasicProperties::default()).await;
    let mut out = opened.next().await;
    proxy.stall(true);
    // It leaves this process, and nobody can say whether it arrives.
    out.settle.ack().await.unwrap();
    let start = Instant::now();
    opened.source.stop().await;
    assert!(opened.poll().await.is_none());
    assert!(start.elapsed() < SLACK, "stop took {:?}", start.elapsed());
    let deadline = Duration::from_secs(2);
    let (took, ended) = opened.close(deadline).await;
    assert!(took < deadline + SLACK, "close took {took:?}");
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("may be redelivered"), "{error}");
    proxy.stall(false);
    drop(proxy);
    until("the server notices", async || raw.consumers(&queue).await == 0).await;
    assert!((1..=2).contains(&raw.count(&queue).await));
    clean(raw, &queue, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_and_dropping_leave_the_broker() {
    let (name, raw) = (fresh("leave"), Raw::connect().await);
    let queue = format!("{name}.g");
    let broker = AmqpMessageBroker::connect(config(&name)).await.unwrap();
    let mut opened = Opened::open(&broker, &[&name], "g", plain).await;
    for n in 0..3 {
        raw.put(&queue, n.to_string().as_bytes(), BasicProperties::default()).await;
    }
    let mut out = opened.take(2).await;
    opened.source.stop().await;
    opened.source.stop().await;
    assert!(opened.poll().await.is_none());
    raw.put(&queue, b"3", BasicProperties::default()).await;
    assert!(opened.poll().await.is_none());
    // What is out can still be settled, until the close.
    assert!(out[1].settle.begin());
    out[1].settle.ack().await.unwrap();
    let (took, ended) = opened.close(LONG).await;
    ended.unwrap();
    assert!(took < SLACK, "{took:?}");
    assert!(out[0].settle.is_revoked() && out[0].settle.ack().await.is_err());
    let left: Vec<_> = raw.drain(&queue).await.iter().map(|left| left.data[0]).collect();
    assert_eq!(left, b"023", "in the order they had");
    let opened = Opened::open(&broker, &[&name], "g", plain).await;
    assert_eq!(raw.consumers(&queue).await, 1);
    drop(opened);
    until("nobody consumes", async || raw.consumers(&queue).await == 0).await;
    clean(raw, &queue, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_goes_after_the_stop_takes_only_its_own_along() {
    let (stays, goes, raw) = (fresh("stays"), fresh("goes"), Raw::connect().await);
    let queue_of = |topic: &str| format!("{topic}.g");
    let broker = AmqpMessageBroker::connect(config(&stays)).await.unwrap();
    let mut opened = Opened::open(&broker, &[&stays, &goes], "g", plain).await;
    for topic in [&stays, &goes] {
        raw.put(&queue_of(topic), topic.as_bytes(), BasicProperties::default()).await;
    }
    let mut out = opened.take(2).await;
    opened.source.stop().await;
    let other = Raw::connect().await;
    let queue = queue_of(&goes);
    let deleting = other.channel.queue_delete(queue.as_str().into(), Default::default());
    let _may_crash = tokio::time::timeout(Duration::from_secs(10), deleting).await;
    until("the queue is gone", async || !raw.exists(&queue).await).await;
    // Time for the server to say so.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let ours = out.iter_mut().find(|delivery| body(delivery) == stays).unwrap();
    assert!(!ours.settle.is_revoked());
    ours.settle.ack().await.unwrap();
    opened.close(LONG).await.1.unwrap();
    assert_eq!(raw.count(&queue_of(&stays)).await, 0);
    let queue_that_stays = queue_of(&stays);
    let dead = [&queue, &queue_that_stays].map(|queue| format!("{queue}.dead"));
    raw.clean(&[&queue_that_stays, &dead[0], &dead[1]], &[&stays]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_active_consumer_waits_for_what_a_stopped_one_still_runs() {
    let (name, raw) = (fresh("handover"), Raw::connect().await);
    let queue = format!("{name}.g");
    let broker = AmqpMessageBroker::connect(config(&name)).await.unwrap();
    let alone = || with(AmqpSubscription::new().with_single_active_consumer(true));
    let mut active = Opened::open(&broker, &[&name], "g", alone()).await;
    active.status(is_consuming).await;
    let mut next = Opened::open(&broker, &[&name], "g", alone()).await;
    next.status(is_consuming).await;
    for n in 0..40 {
        raw.put(&queue, n.to_string().as_bytes(), BasicProperties::default()).await;
    }
    // One handler runs, the others wait for it here and on the way here.
    let mut out = active.take(10).await.into_iter();
    let mut runs = out.next().unwrap();
    assert!(runs.settle.begin());
    active.source.stop().await;
    drop(out);
    next.nothing_within(Duration::from_millis(500)).await;
    assert!(!runs.settle.is_revoked());
    runs.settle.ack().await.unwrap();
    active.close(LONG).await.1.unwrap();
    // The server hands it what was not fetched before what goes back (4.3.6).
    let mut came = BTreeSet::new();
    while came.len() < 39 {
        let [body] = next.acked(1).await.try_into().unwrap();
        assert!(body != "0" && came.insert(body), "once");
    }
    next.close(LONG).await.1.unwrap();
    clean(raw, &queue, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_differently_is_named() {
    let (name, raw) = (fresh("conflict"), Raw::connect().await);
    let queue = format!("{name}.g");
    raw.exchange(&name).await;
    raw.queue(&queue, "classic", &name, &[&name]).await;
    let broker = AmqpMessageBroker::connect(config(&name)).await.unwrap();
    let error = Opened::try_open(&broker, &[&name], "g", plain).await.unwrap_err();
    assert_eq!(error.kind(), SubscribeErrorKind::Conflict);
    let text = error.to_string();
    for part in [&*queue, "x-queue-type", "quorum", "classic", "passive()", "406"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(raw.consumers(&queue).await, 0);
    // As it stands.
    let mut opened =
        Opened::open(&broker, &[&name], "g", with(AmqpSubscription::new().with_passive(true)))
            .await;
    broker.publish(Message::new(&*name, "x")).await.unwrap();
    assert_eq!(opened.acked(1).await, ["x"]);
    opened.close(LONG).await.1.unwrap();
    clean(raw, &queue, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_are_an_error_in_the_end() {
    let dsn = format!("amqp://guest:s3cret@{}", amqp::address());
    let config = amqp::config_at(dsn, &fresh("refused"));
    let broker = AmqpMessageBroker::new(config).unwrap();
    let error = Opened::try_open(&broker, &["t"], "g", plain).await.unwrap_err();
    assert_eq!(error.kind(), SubscribeErrorKind::Forbidden, "{error}");
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("403") && !shown.contains("s3cret"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passive_queue_is_an_error_first_and_waited_for_later() {
    let (name, raw) = (fresh("passive"), Raw::connect().await);
    let broker = AmqpMessageBroker::connect(config(&name)).await.unwrap();
    let options = AmqpSubscription::new().with_queue(&*name).with_passive(true);
    let error = Opened::try_open(&broker, &[&name], "g", with(options.clone())).await.unwrap_err();
    assert_eq!(error.kind(), SubscribeErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains(&name), "{error}");
    raw.queue(&name, "classic", &name, &[]).await;
    let mut opened = Opened::open(&broker, &[&name], "g", with(options)).await;
    raw.channel.queue_delete(name.as_str().into(), Default::default()).await.unwrap();
    let gone = |status: &SourceStatus| matches!(status, SourceStatus::Disconnected { last_error } if last_error.contains("404"));
    opened.status(gone).await;
    raw.queue(&name, "classic", &name, &[]).await;
    opened.status(is_consuming).await;
    raw.put(&name, b"x", BasicProperties::default()).await;
    assert_eq!(opened.acked(1).await, ["x"]);
    opened.close(LONG).await.1.unwrap();
    clean(raw, &name, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shares_a_queue_with_python_cqrs_and_with_faststream() {
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
    let mut opened = Opened::open(&broker, &[&name], "g", plain).await;
    python().await;
    raw.publish(&name, &name, b"{}", BasicProperties::default().with_message_id("0a".into())).await;
    let mut delivery = opened.next().await;
    assert_eq!((delivery.message.id.as_deref(), &*delivery.message.topic), (Some("0a"), &*name));
    delivery.settle.ack().await.unwrap();
    opened.close(LONG).await.1.unwrap();
    // On a broker value with other habits, by the subscription's own option.
    let other = AmqpMessageBroker::new(config("events-of-nobody")).unwrap();
    let mut exchange = ExchangeConfig::default();
    exchange.name.clone_from(&name);
    let options = AmqpSubscription::python_compatible().with_exchange(exchange.clone());
    let opened = Opened::open(&other, &[&name], "g", with(options)).await;
    opened.close(LONG).await.1.unwrap();
    raw.channel.queue_delete(key.into(), Default::default()).await.unwrap();
    // FastStream's queue.
    raw.exchange(&name).await;
    raw.queue(&name, "classic", &name, &[]).await;
    let options = AmqpSubscription::faststream_compatible().with_exchange(exchange);
    let mut opened = Opened::open(&other, &[&name], "g", with(options)).await;
    raw.publish(&name, &name, b"x", BasicProperties::default()).await;
    assert_eq!(opened.acked(1).await, ["x"]);
    opened.close(LONG).await.1.unwrap();
    clean(raw, &name, &name).await;
}
