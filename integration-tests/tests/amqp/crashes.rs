//! Tests of the RabbitMQ source's quarantine.

use std::collections::BTreeMap;
use std::time::Duration;

use cqrs_amqp::{AmqpMessageBroker, AmqpSubscription};
use cqrs_core::Retry;
use cqrs_core::consume::{SourceDelivery, SubscribeRequest};
use cqrs_testkit::FaultProxy;
use cqrs_testkit::source::text;
use futures_util::StreamExt;
use integration_tests::amqp::{self, QueueTest, through_proxy};
use integration_tests::consuming::fixture::until;
use integration_tests::consuming::{TIMEOUT, interrupt, open};
use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use tokio::sync::MutexGuard;

/// The silence after which nothing more is expected.
const QUIET: Duration = Duration::from_millis(500);

fn plain(request: &mut SubscribeRequest) {
    request.retry = Retry::none();
    request.max_unsettled = Some(10);
}

fn single(request: &mut SubscribeRequest) {
    plain(request);
    request.options.insert(AmqpSubscription::new().with_single_active_consumer(true));
}

async fn start(test: &str) -> (MutexGuard<'static, ()>, QueueTest) {
    (crate::QUARANTINE.lock().await, QueueTest::new(test).await)
}

/// Simulates another process that dies with `count` messages.
async fn die_with(test: &QueueTest, count: u16) {
    let before = test.count().await;
    consume_raw(&test.queue, count).await.cut();
    until_ready(test, before).await;
}

/// Simulates another process with `count` messages, until the proxy cuts its connection.
async fn consume_raw(queue: &str, count: u16) -> FaultProxy {
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
        tokio::time::timeout(TIMEOUT, consumer.next()).await.unwrap().unwrap().unwrap();
    }
    // The connection ends with the proxy only.
    std::mem::forget((connection, channel, consumer));
    proxy
}

/// Messages ready in the quarantine queue.
async fn quarantined(test: &QueueTest) -> u32 {
    test.raw.count(&test.queue_of("quarantine")).await
}

/// Waits until `count` messages are ready in the queue and its quarantine queue.
async fn until_ready(test: &QueueTest, count: u32) {
    until("the messages to be redelivered", async || {
        test.count().await + quarantined(test).await >= count
    })
    .await;
}

/// Ends the connection of `source` with its deliveries, which the server sees as a dead process.
async fn die<T>(test: &QueueTest, left: u32, process: (FaultProxy, AmqpMessageBroker), with: T) {
    process.0.cut();
    drop((process, with));
    until_ready(test, left).await;
}

fn body_and_crashes(delivery: &SourceDelivery) -> (String, u32) {
    (text(delivery), delivery.retry.crashes)
}

async fn clean(test: QueueTest) {
    assert_eq!((test.count().await, quarantined(&test).await), (0, 0));
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twice_returned_messages_run_alone() {
    let (_alone, test) = start("alone").await;
    test.open(plain).await.close().await;
    test.put(0..6).await;
    die_with(&test, 3).await;
    die_with(&test, 3).await;
    let mut source = test.open(plain).await;
    for n in 0..3_u32 {
        let mut suspect = source.next().await;
        assert_eq!(body_and_crashes(&suspect), (n.to_string(), 0), "its handler never started");
        assert!(suspect.message.redelivered && suspect.message.headers.is_empty());
        source.nothing_within(Duration::from_millis(200)).await;
        suspect.settle.ack().await.unwrap();
    }
    // These were not returned: they run together.
    let rest = source.take(3).await;
    assert_eq!(
        rest.iter().map(body_and_crashes).collect::<Vec<_>>(),
        ["3", "4", "5"].map(|n| (n.into(), 0))
    );
    for mut delivery in rest {
        delivery.settle.ack().await.unwrap();
    }
    source.close().await;
    clean(test).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_killer_counts_crashes() {
    let (_alone, test) = start("killer").await;
    test.open(plain).await.close().await;
    test.put(0..30).await;
    // Two deaths make a suspect, then it runs alone; before 4.3 ten of these are forgiven.
    let allowed = if amqp::counts_deaths().await { 2 + 3 } else { 2 + 10 + 3 };
    let (mut starts, mut handled) = (0, BTreeMap::new());
    // Each round is a process, killed by the message 7.
    'processes: while handled.len() < 30 {
        let (proxy, broker) = through_proxy(&test.name).await;
        let mut source = open(&broker, &[&test.name], "g", plain).await;
        let mut out = Vec::new();
        while handled.len() < 30 {
            let mut delivery = source.next().await;
            let (body, crashes) = body_and_crashes(&delivery);
            if body == "7" && crashes < 3 {
                starts += 1;
                let left = 30 - u32::try_from(handled.len()).unwrap();
                die(&test, left, (proxy, broker), (out, delivery, source)).await;
                continue 'processes;
            }
            assert_eq!(crashes, if body == "7" { 3 } else { 0 }, "of {body}");
            // Some are in flight when the first process dies.
            if starts == 0 && out.len() < 3 {
                out.push(delivery);
            } else {
                delivery.settle.ack().await.unwrap();
                handled.insert(body, crashes);
            }
        }
        source.close().await;
    }
    assert_eq!((starts, handled["7"]), (allowed, 3));
    clean(test).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prefetched_messages_count_no_crash() {
    let (_alone, test) = start("killed").await;
    test.open(plain).await.close().await;
    test.put(0..10).await;
    // Five kills from outside while the first message runs.
    for _ in 0..5 {
        let (proxy, broker) = through_proxy(&test.name).await;
        let mut source = open(&broker, &[&test.name], "g", plain).await;
        let first = source.next().await;
        assert_eq!(text(&first), "0");
        die(&test, 10, (proxy, broker), (first, source)).await;
    }
    let mut source = test.open(plain).await;
    let alone = if amqp::counts_deaths().await { 3 } else { 0 };
    for n in 0..10 {
        let mut delivery = source.next().await;
        assert_eq!(body_and_crashes(&delivery), (n.to_string(), if n == 0 { alone } else { 0 }));
        delivery.settle.ack().await.unwrap();
    }
    source.close().await;
    clean(test).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn losses_while_it_runs_alone_count_no_crash() {
    let (_alone, test) = start("lone").await;
    test.open(plain).await.close().await;
    test.put(0..1).await;
    die_with(&test, 1).await;
    die_with(&test, 1).await;
    for _ in 0..2 {
        let mut source = test.open(plain).await;
        for _ in 0..3 {
            let alone = source.next().await;
            assert_eq!(body_and_crashes(&alone), ("0".into(), 0));
            interrupt(&test.proxy, &mut source).await;
        }
        let alone = source.next().await;
        assert_eq!(body_and_crashes(&alone), ("0".into(), 0));
        // A graceful restart while it runs: a close without a stop before it.
        source.close_within(Duration::from_secs(30)).await.1.unwrap();
    }
    let mut source = test.open(plain).await;
    let mut alone = source.next().await;
    assert_eq!(body_and_crashes(&alone), ("0".into(), 0));
    alone.settle.ack().await.unwrap();
    source.close().await;
    clean(test).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn live_source_takes_over_a_left_quarantine() {
    let (_alone, test) = start("left").await;
    let mut living = test.open(plain).await;
    test.put(0..1).await;
    let mut running = living.next().await;
    // Another process dies after it has quarantined a message.
    test.put_to(&test.queue_of("quarantine"), 1..2).await;
    // The source looks for such messages every 10 s, and runs none beside another message.
    living.nothing_within(Duration::from_secs(15)).await;
    running.settle.ack().await.unwrap();
    let mut taken = living.next().await;
    assert_eq!(body_and_crashes(&taken), ("1".into(), 0));
    test.put(2..3).await;
    living.nothing_within(QUIET).await;
    taken.settle.ack().await.unwrap();
    assert_eq!(living.ack(1).await, ["2"]);
    living.close().await;
    clean(test).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn suspects_run_where_quarantine_refuses_them() {
    let (_alone, test) = start("full").await;
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongInt(0));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    test.raw
        .channel
        .queue_declare(test.queue_of("quarantine").into(), durable, full)
        .await
        .unwrap();
    test.open(plain).await.close().await;
    test.put(0..3).await;
    die_with(&test, 3).await;
    die_with(&test, 3).await;
    let mut source = test.open(plain).await;
    let together = source.take(3).await;
    assert_eq!(
        together.iter().map(body_and_crashes).collect::<Vec<_>>(),
        ["0", "1", "2"].map(|n| (n.into(), 0))
    );
    for mut delivery in together {
        delivery.settle.ack().await.unwrap();
    }
    source.close().await;
    clean(test).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn max_crashes_zero_runs_no_message_alone() {
    let (_alone, test) = start("off").await;
    let off = |request: &mut SubscribeRequest| {
        plain(request);
        request.max_crashes = 0;
    };
    test.open(off).await.close().await;
    assert!(!test.raw.exists(&test.queue_of("quarantine")).await);
    test.put(0..3).await;
    for _ in 0..4 {
        let before = test.count().await;
        consume_raw(&test.queue, 3).await.cut();
        until("the messages to be requeued", async || test.count().await >= before).await;
    }
    let mut source = test.open(off).await;
    let together = source.take(3).await;
    assert!(together.iter().all(|delivery| delivery.retry.crashes == 0));
    for mut delivery in together {
        delivery.settle.ack().await.unwrap();
    }
    source.close().await;
    test.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn graceful_end_and_losses_count_no_crash() {
    let (_alone, test) = start("innocent").await;
    // A server that counts all returns makes returned messages run alone.
    let together = if amqp::counts_deaths().await { 2 } else { 1 };
    // Graceful closes, with messages in flight and prefetched.
    for round in 0..4 {
        let mut source = test.open(plain).await;
        if round == 0 {
            test.put(0..5).await;
        }
        let out = source.take(together).await;
        assert!(out.iter().all(|delivery| delivery.retry.crashes == 0), "round {round}");
        source.close().await;
    }
    // Returned by the runtime, and lost with the connection.
    let mut source = test.open(plain).await;
    for round in 0..4 {
        drop(source.next().await);
        let again = source.take(1).await;
        assert_eq!(again[0].retry.crashes, 0, "round {round}");
        interrupt(&test.proxy, &mut source).await;
    }
    let mut seen = source.ack(1).await;
    while seen.len() < 5 {
        seen.extend(source.ack(1).await);
    }
    seen.sort();
    assert_eq!(seen, ["0", "1", "2", "3", "4"]);
    source.close().await;
    clean(test).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn passive_queue_may_be_single_active_consumer() {
    let (_alone, test) = start("single").await;
    let declared =
        AmqpSubscription::new().with_queue(&*test.name).with_single_active_consumer(true);
    let change = |options: AmqpSubscription| {
        move |request: &mut SubscribeRequest| {
            plain(request);
            request.options.insert(options);
        }
    };
    let mut active = test.open(change(declared)).await;
    let passive = AmqpSubscription::new().with_queue(&*test.name).with_passive(true);
    let mut waiting = test.open(change(passive)).await;
    test.put_to(&test.name, 0..2).await;
    let out = active.take(2).await;
    waiting.nothing_within(Duration::from_millis(200)).await;
    active.close().await;
    drop(out);
    assert_eq!(waiting.ack(2).await, ["0", "1"]);
    waiting.close().await;
    test.raw.clean(&[&test.name], &[&test.name]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn losses_and_a_restart_count_no_crash() {
    let (_alone, test) = start("blips").await;
    let mut source = test.open(plain).await;
    test.put(0..10).await;
    // One slow handler runs; nine messages are prefetched and never start.
    let slow = source.next().await;
    for _ in 0..3 {
        amqp::until_unacknowledged(&test.queue, 10).await;
        interrupt(&test.proxy, &mut source).await;
    }
    amqp::until_unacknowledged(&test.queue, 10).await;
    drop(slow);
    source.close().await;
    let mut source = test.open(plain).await;
    let mut seen = Vec::new();
    for _ in 0..10 {
        let mut delivery = source.next().await;
        assert_eq!(delivery.retry.crashes, 0, "message {}", text(&delivery));
        seen.push(text(&delivery));
        delivery.settle.ack().await.unwrap();
    }
    assert_eq!(seen, (0..10).map(|n: u32| n.to_string()).collect::<Vec<_>>());
    source.close().await;
    clean(test).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn suspect_waits_for_running_messages_only() {
    let _alone = crate::QUARANTINE.lock().await;
    /// Longer than the interval and the limit of the source's checks of the quarantine.
    const BACKLOG: u32 = 100;
    const HANDLING: Duration = Duration::from_millis(800);
    let test = QueueTest::new("backlog").await;
    let prefetched = |request: &mut SubscribeRequest| {
        plain(request);
        request.max_unsettled = Some(usize::try_from(BACKLOG).unwrap());
    };
    let mut source = test.open(prefetched).await;
    test.put(0..BACKLOG).await;
    test.put_to(&test.queue_of("quarantine"), [BACKLOG]).await;
    let (mut before, mut suspect) = (0, false);
    for _ in 0..=BACKLOG {
        let mut delivery = source.next().await;
        match text(&delivery) == BACKLOG.to_string() {
            true => suspect = true,
            false if suspect => {}
            false => {
                before += 1;
                tokio::time::sleep(HANDLING).await;
            }
        }
        delivery.settle.ack().await.unwrap();
    }
    assert!(suspect && before < BACKLOG, "it ran after {before} of {BACKLOG}");
    source.close().await;
    clean(test).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_goes_on_while_another_runs_a_message_alone() {
    let (_alone, test) = start("turn").await;
    let [first, second] = ["a", "b"].map(|group| format!("{}.{group}", test.name));
    for group in ["a", "b"] {
        open(&test.broker, &[&test.name], group, plain).await.close().await;
    }
    test.put_to(&format!("{first}.quarantine"), [0]).await;
    test.put_to(&format!("{second}.quarantine"), [1]).await;
    test.put_to(&second, [2]).await;
    let mut running = open(&test.broker, &[&test.name], "a", plain).await;
    let mut alone = running.next().await;
    assert_eq!(text(&alone), "0");
    let mut other = open(&test.broker, &[&test.name], "b", plain).await;
    assert_eq!(other.ack(1).await, ["2"]);
    other.nothing_within(QUIET).await;
    alone.settle.ack().await.unwrap();
    assert_eq!(other.ack(1).await, ["1"]);
    running.close().await;
    other.close().await;
    test.raw.clean(&[&first, &second], &[&test.name]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standby_runs_no_message_in_quarantine() {
    let (_alone, test) = start("standby").await;
    let mut active = test.open(single).await;
    test.put([0]).await;
    let mut running = active.next().await;
    test.put_to(&test.queue_of("quarantine"), [1]).await;
    let mut standby = test.open(single).await;
    standby.nothing_within(QUIET).await;
    running.settle.ack().await.unwrap();
    assert_eq!(active.ack(1).await, ["1"]);
    standby.nothing_within(QUIET).await;
    active.close().await;
    standby.close().await;
    clean(test).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sole_consumer_runs_the_quarantine_first() {
    let (_alone, test) = start("sole").await;
    test.open(single).await.close().await;
    // The queue itself stays empty, so it delivers nothing.
    test.put_to(&test.queue_of("quarantine"), [1]).await;
    let mut sole = test.open(single).await;
    assert_eq!(sole.ack(1).await, ["1"]);
    sole.close().await;
    clean(test).await;
}
