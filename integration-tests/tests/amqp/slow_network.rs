//! Tests of the RabbitMQ producer on a network that takes its bytes slowly, or none: the socket is full.

use std::num::NonZeroU32;
use std::time::Duration;

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, DeclareMode, Pem};
use cqrs_core::broker::Receipt;
use cqrs_core::{Message, MessageBroker};
use cqrs_testkit::{FaultProxy, error_chain};
use integration_tests::amqp::{self, Outcomes, Raw, fresh, key_of};
use integration_tests::consuming::fixture::until;
use integration_tests::servers::{self, connected};

/// The bytes of a body: two frames.
const BODY: usize = 200_000;
/// More than the memory of the sockets between client and server takes.
const MESSAGES: usize = 160;
/// Bytes per second.
const RATE: NonZeroU32 = NonZeroU32::new(4 << 20).unwrap();
/// Less than a peer waits for a heartbeat.
const STALL: Duration = Duration::from_secs(3);

/// A proxy to the server, and settings to publish through it with four channels on one connection.
async fn slow(exchange: &str, tls: bool) -> (FaultProxy, AmqpConfig) {
    let server = if tls { amqp::tls_address() } else { amqp::address() };
    let proxy = FaultProxy::start("127.0.0.1:0", server).await.unwrap();
    let port = proxy.address().port();
    let scheme = if tls { "amqps" } else { "amqp" };
    let mut config = amqp::config_at(format!("{scheme}://guest:guest@localhost:{port}"), exchange);
    if tls {
        config.tls.ca = Some(Pem::Path(servers::certs("ca.pem")));
    }
    config.channels_per_connection = 4;
    config.window_bytes = 4 * MESSAGES * BODY;
    config.publish_timeout = Duration::from_secs(120);
    (proxy, config)
}

/// Publishes a message that the window has a place for.
async fn enqueue(
    broker: &AmqpMessageBroker,
    outcomes: &Outcomes,
    topic: &str,
    key: String,
    size: usize,
) -> Receipt {
    let message = Message::new(topic, vec![b'x'; size]).with_key(key);
    let (key, id) = (key_of(&message), message.id);
    let receipt = broker.enqueue(message).await.unwrap();
    outcomes.attempt(&key, id);
    receipt
}

/// Waits for all confirms, in the order of their messages.
async fn settle(outcomes: &Outcomes, receipts: Vec<Receipt>) {
    for receipt in receipts {
        let id = receipt.message().id;
        outcomes.outcome(id, Duration::ZERO, receipt.await);
    }
}

/// Fills the socket of a connection, which opens channels and declares queues meanwhile.
async fn full_socket(tls: bool) {
    let exchange = fresh("slow");
    let topics = ["most", "other"].map(|topic| format!("{exchange}-{topic}"));
    let (proxy, mut config) = slow(&exchange, tls).await;
    config.declare = DeclareMode::PythonCompatible;
    proxy.throttle(Some(RATE));
    let broker = AmqpMessageBroker::new(config).unwrap();
    let outcomes = Outcomes::default();
    let mut receipts = Vec::new();
    for n in 0..MESSAGES {
        // The other topic is declared while messages of the first one fill the socket.
        let topic = &topics[usize::from(n == 8)];
        // So many keys that each channel has some.
        let key = format!("{topic} {}", n % 40);
        receipts.push(enqueue(&broker, &outcomes, topic, key, BODY).await);
    }
    until("all channels are open", async || broker.state().is_ready()).await;
    let open_at = broker.in_flight();
    proxy.stall(true);
    tokio::time::sleep(STALL).await;
    proxy.stall(false);
    settle(&outcomes, vec![receipts.remove(8)]).await;
    let declared_at = broker.in_flight();
    settle(&outcomes, receipts).await;
    println!("open with {open_at} in flight, declared with {declared_at}");
    assert!(open_at > MESSAGES / 2, "{open_at} were in flight when all channels were open");
    // At least the later messages of the channel that declared.
    assert!(declared_at > 0, "none was in flight when all was declared");
    assert_eq!(proxy.accepted(), 1, "the connection was lost");
    let raw = Raw::connect().await;
    let mut arrived = Vec::new();
    for topic in &topics {
        arrived.extend(raw.drain(topic).await);
    }
    let summary = outcomes.check(&format!("amqp full socket, tls {tls}"), &arrived);
    summary.assert_sound();
    assert_eq!((summary.confirmed, summary.duplicates), (MESSAGES, 0), "{summary}");
    assert!(arrived.iter().all(|delivery| delivery.data.len() == BODY));
    assert_eq!(broker.shutdown(Duration::from_secs(5)).await.undelivered, 0);
    raw.clean(&topics.each_ref().map(|topic| &**topic), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_socket_confirms_each_message_once() {
    full_socket(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_socket_with_tls_confirms_each_message_once() {
    full_socket(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn channel_opens_behind_messages_that_take_long() {
    const LARGE: usize = 15 << 20;
    let (name, raw, _) = amqp::with_queue("slow-open", "classic", "t").await;
    let (proxy, mut config) = slow(&name, false).await;
    config.channels_per_connection = 2;
    // Much more than the memory of the sockets takes, and less than a message.
    config.attempt_timeout = Duration::from_secs(6);
    proxy.throttle(NonZeroU32::new(2 << 20));
    let broker = AmqpMessageBroker::new(config).unwrap();
    // Without a key: the channels take turns.
    let enqueue = async || broker.enqueue(Message::new("t", vec![b'x'; LARGE])).await.unwrap();
    for receipt in [enqueue().await, enqueue().await, enqueue().await] {
        receipt.await.unwrap();
    }
    assert_eq!(proxy.accepted(), 1, "the connection was lost");
    assert_eq!(raw.count(&name).await, 3);
    let _ = broker.shutdown(Duration::from_secs(5)).await;
    raw.clean(&[&name], &[&name]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_within_a_frame_loses_nothing() {
    const CUTS: usize = 4;
    let (name, raw, _) = amqp::with_queue("slow-cut", "quorum", "t").await;
    let (proxy, config) = slow(&name, false).await;
    let broker = AmqpMessageBroker::connect(config).await.unwrap();
    proxy.throttle(Some(RATE));
    let outcomes = Outcomes::default();
    let mut receipts = Vec::new();
    for n in 0..MESSAGES {
        receipts.push(enqueue(&broker, &outcomes, "t", format!("{}", n % 7), BODY).await);
    }
    for _ in 0..CUTS {
        let goal = broker.in_flight() - MESSAGES / 8;
        until("more confirms", async || broker.in_flight() <= goal).await;
        // The rest fills the socket: the last of its bytes are those of a frame that is not complete.
        proxy.cut();
        until("it is lost", async || !broker.state().is_ready()).await;
    }
    settle(&outcomes, receipts).await;
    assert_eq!(proxy.accepted(), 1 + CUTS);
    let summary = outcomes.check("amqp cut within a frame", &raw.drain(&name).await);
    summary.assert_sound();
    assert_eq!(summary.confirmed, MESSAGES, "{summary}");
    let _ = broker.shutdown(Duration::from_secs(5)).await;
    raw.clean(&[&name], &[&name]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_socket_leaves_large_messages_unsent() {
    const LARGE: usize = 1 << 20;
    const COUNT: usize = 48;
    /// The memory of the sockets, and what the connection keeps.
    const HANDED_OVER: usize = 20;
    let (name, raw, _) = amqp::with_queue("slow-large", "classic", "t").await;
    let (proxy, mut config) = slow(&name, false).await;
    config.channels_per_connection = 1;
    config.publish_timeout = Duration::from_secs(10);
    let broker = connected(|| AmqpMessageBroker::connect(config.clone())).await;
    proxy.stall(true);
    let outcomes = Outcomes::default();
    let mut receipts = Vec::new();
    for _ in 0..COUNT {
        receipts.push(enqueue(&broker, &outcomes, "t", "k".into(), LARGE).await);
    }
    for receipt in receipts {
        let (id, outcome) = (receipt.message().id, receipt.await);
        let cause = error_chain(outcome.as_ref().unwrap_err());
        assert!(cause.contains("messages wait to be written"), "{cause}");
        outcomes.outcome(id, Duration::ZERO, outcome);
    }
    proxy.stall(false);
    let (unknown, not_sent) = (outcomes.errors("Unknown"), outcomes.errors("NotSent"));
    assert_eq!(unknown + not_sent, COUNT);
    assert!(unknown <= HANDED_OVER, "{unknown} were handed over");
    let last = enqueue(&broker, &outcomes, "t", "k".into(), 1).await;
    settle(&outcomes, vec![last]).await;
    let summary = outcomes.check("amqp large messages unsent", &raw.drain(&name).await);
    summary.assert_sound();
    assert_eq!(summary.confirmed, 1, "{summary}");
    let _ = broker.shutdown(Duration::from_secs(5)).await;
    raw.clean(&[&name], &[&name]).await;
}
