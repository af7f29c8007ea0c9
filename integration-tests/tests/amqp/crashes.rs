//! The RabbitMQ source against a real server: which messages it suspects of killing processes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use cqrs_amqp::{AmqpMessageBroker, AmqpSubscription};
use cqrs_core::Retry;
use cqrs_core::consume::{SourceDelivery, SourceStatus, SubscribeRequest};
use cqrs_testkit::FaultProxy;
use futures_util::StreamExt;
use integration_tests::amqp::{self, Raw, fresh};
use integration_tests::consuming::{Opened, PATIENCE, body};
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};

const LONG: Duration = Duration::from_secs(20);
/// Whatever comes has come.
const LULL: Duration = Duration::from_millis(500);

/// A broker value that can die.
async fn mortal(exchange: &str) -> (FaultProxy, AmqpMessageBroker) {
    let proxy = FaultProxy::start("127.0.0.1:0", amqp::address()).await.unwrap();
    let config = amqp::config_at(format!("amqp://guest:guest@{}", proxy.address()), exchange);
    (proxy, AmqpMessageBroker::connect(config).await.unwrap())
}

fn plain(request: &mut SubscribeRequest) {
    request.retry = Retry::none();
    request.max_unsettled = Some(10);
}

async fn put(raw: &Raw, queue: &str, bodies: impl IntoIterator<Item = u32>) {
    for body in bodies {
        raw.put(queue, body.to_string().as_bytes(), BasicProperties::default()).await;
    }
}

/// Another process consumes `count` messages and dies of it.
async fn die_with(raw: &Raw, queue: &str, count: u16) {
    let before = raw.count(queue).await;
    let proxy = FaultProxy::start("127.0.0.1:0", amqp::address()).await.unwrap();
    let dsn = format!("amqp://guest:guest@{}/%2f", proxy.address());
    let connection = Connection::connect(&dsn, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.basic_qos(count, BasicQosOptions::default()).await.unwrap();
    let options = BasicConsumeOptions::default();
    let mut consumer = channel
        .basic_consume(queue.into(), "".into(), options, FieldTable::default())
        .await
        .unwrap();
    for _ in 0..count {
        tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap().unwrap().unwrap();
    }
    proxy.cut();
    drop(proxy);
    until_ready(raw, queue, before).await;
}

async fn until_ready(raw: &Raw, queue: &str, count: u32) {
    let end = Instant::now() + PATIENCE;
    while raw.count(queue).await < count {
        assert!(Instant::now() < end, "the messages come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn told(delivery: &SourceDelivery) -> (String, u32) {
    (body(delivery), delivery.retry.crashes)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_back_from_the_dead_is_handled_alone() {
    let (name, raw) = (fresh("alone"), Raw::connect().await);
    let deaths = u32::from(amqp::counts_deaths().await);
    let queue = format!("{name}.g");
    let (_proxy, broker) = mortal(&name).await;
    Opened::open(&broker, &[&name], "g", plain).await.close(LONG).await.1.unwrap();
    put(&raw, &queue, 0..6).await;
    die_with(&raw, &queue, 3).await;
    let mut opened = Opened::open(&broker, &[&name], "g", plain).await;
    for n in 0..3_u32 {
        let mut suspect = opened.next().await;
        assert_eq!(told(&suspect), (n.to_string(), deaths));
        opened.nothing_within(Duration::from_millis(200)).await;
        assert_eq!(raw.count(&queue).await, 5 - n, "nothing is sent ahead");
        suspect.settle.ack().await.unwrap();
    }
    // The others have no past.
    let mut rest = opened.take(3).await;
    assert!(rest.iter().all(|delivery| delivery.retry.crashes == 0));
    // Another process dies while these are out, and others that were handed out meanwhile.
    die_beside(&raw, &name, &queue).await;
    while let Ok(Some(next)) = tokio::time::timeout(LULL, opened.poll()).await {
        rest.push(next.unwrap());
    }
    assert!(rest.iter().all(|delivery| delivery.retry.crashes == 0));
    let mut seen: BTreeSet<_> = rest.iter().map(body).collect();
    assert!(seen.len() < 13, "some came back");
    put(&raw, &queue, 20..22).await;
    opened.nothing_within(LULL).await;
    for delivery in &mut rest {
        delivery.settle.ack().await.unwrap();
    }
    drop(rest);
    while seen.len() < 15 {
        let mut delivery = opened.next().await;
        if delivery.retry.crashes > 0 {
            opened.nothing_within(Duration::from_millis(100)).await;
        }
        assert!(delivery.retry.crashes <= 1);
        seen.insert(body(&delivery));
        delivery.settle.ack().await.unwrap();
    }
    opened.close(LONG).await.1.unwrap();
    assert_eq!(raw.count(&queue).await, 0);
    raw.clean(&[&queue, &format!("{queue}.dead")], &[&name]).await;
}

/// Another source shares the queue and dies with what it got of ten messages.
async fn die_beside(raw: &Raw, name: &str, queue: &str) {
    let (proxy, broker) = mortal(name).await;
    let mut other = Opened::open(&broker, &[name], "g", plain).await;
    put(raw, queue, 10..20).await;
    let mut got = vec![other.next().await];
    while let Ok(Some(next)) = tokio::time::timeout(LULL, other.poll()).await {
        got.push(next.unwrap());
    }
    proxy.cut();
    drop((proxy, got, other, broker));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_killer_is_accused() {
    let (name, raw) = (fresh("killer"), Raw::connect().await);
    let queue = format!("{name}.g");
    {
        let (_proxy, broker) = mortal(&name).await;
        Opened::open(&broker, &[&name], "g", plain).await.close(LONG).await.1.unwrap();
    }
    put(&raw, &queue, 0..30).await;
    let allowed = if amqp::counts_deaths().await { 3 } else { 13 };
    let (mut starts, mut handled) = (0, BTreeMap::new());
    // Each round is a process, killed by the message 7.
    'processes: loop {
        let (proxy, broker) = mortal(&name).await;
        let mut opened = Opened::open(&broker, &[&name], "g", plain).await;
        let mut out = Vec::new();
        while handled.len() < 29 || starts < allowed {
            let mut delivery = opened.next().await;
            let (body, crashes) = told(&delivery);
            if body == "7" && crashes >= 3 {
                // What the runtime makes of it.
                delivery.settle.ack().await.unwrap();
                handled.insert(body, crashes);
                continue;
            }
            assert!(crashes < 3, "{body} is innocent");
            if body == "7" {
                starts += 1;
                proxy.cut();
                drop((proxy, out, delivery, opened, broker));
                until_ready(&raw, &queue, 30 - u32::try_from(handled.len()).unwrap()).await;
                continue 'processes;
            }
            // Some are out when the process dies.
            if starts == 0 && out.len() < 3 {
                out.push(delivery);
            } else {
                delivery.settle.ack().await.unwrap();
                handled.insert(body, crashes);
            }
        }
        for mut delivery in out {
            let (body, crashes) = told(&delivery);
            delivery.settle.ack().await.unwrap();
            handled.insert(body, crashes);
        }
        while handled.len() < 30 {
            let mut delivery = opened.next().await;
            let (body, crashes) = told(&delivery);
            delivery.settle.ack().await.unwrap();
            handled.insert(body, crashes);
        }
        opened.close(LONG).await.1.unwrap();
        break;
    }
    assert_eq!((starts, handled["7"]), (allowed, 3));
    assert!(handled.iter().all(|(body, crashes)| body == "7" || *crashes <= 1), "{handled:?}");
    assert_eq!(raw.count(&queue).await, 0);
    raw.clean(&[&queue, &format!("{queue}.dead")], &[&name]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn good_order_and_lost_connections_accuse_nobody() {
    let (name, raw) = (fresh("innocent"), Raw::connect().await);
    let queue = format!("{name}.g");
    let (proxy, broker) = mortal(&name).await;
    // What came back is handed out alone by a server that counts everything that does.
    let together = if amqp::counts_deaths().await { 2 } else { 1 };
    // Left in good order, with messages out and sent ahead.
    for round in 0..4 {
        let mut opened = Opened::open(&broker, &[&name], "g", plain).await;
        if round == 0 {
            put(&raw, &queue, 0..5).await;
        }
        let out = opened.take(together).await;
        assert!(out.iter().all(|delivery| delivery.retry.crashes == 0), "round {round}");
        opened.close(LONG).await.1.unwrap();
    }
    // Given back by the runtime, and lost with the connection.
    let mut opened = Opened::open(&broker, &[&name], "g", plain).await;
    for round in 0..4 {
        drop(opened.next().await);
        let again = opened.take(1).await;
        assert_eq!(again[0].retry.crashes, 0, "round {round}");
        proxy.refuse(true);
        proxy.cut();
        opened.status(|status| matches!(status, SourceStatus::Disconnected { .. })).await;
        proxy.refuse(false);
        opened.status(|status| *status == SourceStatus::Consuming).await;
    }
    let mut seen = opened.acked(1).await;
    while seen.len() < 5 {
        seen.extend(opened.acked(1).await);
    }
    seen.sort();
    assert_eq!(seen, ["0", "1", "2", "3", "4"]);
    opened.close(LONG).await.1.unwrap();
    raw.clean(&[&queue, &format!("{queue}.dead")], &[&name]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_active_consumer_declared_elsewhere_works_without() {
    let (name, raw) = (fresh("single"), Raw::connect().await);
    let (_proxy, broker) = mortal(&name).await;
    let declared = AmqpSubscription::new().with_queue(&*name).with_single_active_consumer();
    let change = |options: AmqpSubscription| {
        move |request: &mut SubscribeRequest| {
            plain(request);
            request.options.insert(options);
        }
    };
    let mut active = Opened::open(&broker, &[&name], "g", change(declared)).await;
    let passive = AmqpSubscription::new().with_queue(&*name).passive();
    let mut waiting = Opened::open(&broker, &[&name], "g", change(passive)).await;
    put(&raw, &name, 0..2).await;
    let out = active.take(2).await;
    waiting.nothing_within(Duration::from_millis(200)).await;
    active.close(LONG).await.1.unwrap();
    drop(out);
    assert_eq!(waiting.acked(2).await, ["0", "1"]);
    waiting.close(LONG).await.1.unwrap();
    raw.clean(&[&name, &format!("{name}.dead")], &[&name]).await;
}
