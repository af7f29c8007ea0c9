//! Access to RabbitMQ by lapin alone, and the publish results of a fault test.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, Dsn};
use cqrs_core::{Message, PublishError};
use cqrs_testkit::FaultProxy;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use uuid::Uuid;

mod queue_test;

pub use queue_test::QueueTest;

use crate::control::ctl;
use crate::servers;

/// RabbitMQ's dsn. Fails when the server is not there.
pub fn dsn() -> String {
    let dsn = servers::variable("CQRS_TEST_AMQP", "amqp://guest:guest@localhost:5672/%2f");
    check(&dsn, "CQRS_TEST_AMQP");
    dsn
}

/// The dsn with TLS; the authority is `ca.pem` of [`servers::certs`].
pub fn tls_dsn() -> String {
    let dsn = servers::variable("CQRS_TEST_AMQPS", "amqps://guest:guest@localhost:5671/%2f");
    check(&dsn, "CQRS_TEST_AMQPS");
    dsn
}

/// `host:port` of [`dsn`].
pub fn address() -> String {
    host_and_port(&dsn())
}

/// `host:port` of [`tls_dsn`].
pub fn tls_address() -> String {
    host_and_port(&tls_dsn())
}

fn host_and_port(dsn: &str) -> String {
    let authority = dsn.split("://").nth(1).and_then(|rest| rest.split('/').next());
    let authority = authority.expect("a dsn amqp://user:password@host:port/vhost");
    authority.rsplit('@').next().unwrap_or(authority).to_owned()
}

fn check(dsn: &str, variable: &str) {
    // The variable holds a dsn: only its address is looked at.
    let address = host_and_port(dsn);
    let unset = format!("{variable}_ADDRESS");
    servers::reachable(&unset, &address);
}

/// Settings to publish to an exchange of this name, which `Declare` makes.
pub fn config(exchange: &str) -> AmqpConfig {
    config_at(dsn(), exchange)
}

/// The same at `dsn`. A busy server may be slow to answer.
pub fn config_at(dsn: impl Into<Dsn>, exchange: &str) -> AmqpConfig {
    let mut config = AmqpConfig::new(dsn);
    config.exchange.name = exchange.into();
    config.attempt_timeout = Duration::from_secs(30);
    config
}

/// A durable exchange with a queue of the same name and of `kind`, bound with `key`, and the settings to
/// publish to it.
pub async fn with_queue(test: &str, kind: &str, key: &str) -> (String, Raw, AmqpConfig) {
    let (name, raw) = (fresh(test), Raw::connect().await);
    raw.exchange(&name).await;
    raw.queue(&name, kind, &name, &[key]).await;
    let config = config(&name);
    (name, raw, config)
}

/// A broker value whose connections go through a proxy, with [`config`].
pub async fn through_proxy(exchange: &str) -> (FaultProxy, AmqpMessageBroker) {
    let proxy = FaultProxy::start("127.0.0.1:0", address()).await.unwrap();
    let config = config_at(format!("amqp://guest:guest@{}", proxy.address()), exchange);
    (proxy, AmqpMessageBroker::connect(config).await.unwrap())
}

/// A unique name.
pub fn fresh(test: &str) -> String {
    format!("it-{test}-{}", Uuid::now_v7())
}

/// Major and minor version of the server.
pub async fn version() -> (u32, u32) {
    let output = ctl(&["version"]).await;
    let last = output.split_whitespace().last().expect("a version");
    let mut numbers = last.split('.').map(|number| number.parse().expect("a number"));
    (numbers.next().expect("major"), numbers.next().expect("minor"))
}

/// Set if the server does not count messages that a consumer returns gracefully: since 4.3. Before, every
/// return counts, and a message that runs alone is forgiven ten.
pub async fn counts_deaths() -> bool {
    version().await >= (4, 3)
}

/// Unacknowledged deliveries on the channel that consumes `queue`, as the server counts them; `None` if there is
/// no such channel.
pub async fn unacknowledged(queue: &str) -> Option<usize> {
    let consumers = ctl(&["-q", "list_consumers", "queue_name", "channel_pid"]).await;
    let mut consumers = consumers.lines().filter_map(|line| line.split_once(char::is_whitespace));
    let (_, channel) = consumers.find(|(name, _)| *name == queue)?;
    let channels = ctl(&["-q", "list_channels", "pid", "messages_unacknowledged"]).await;
    let count = channels.lines().find_map(|line| line.strip_prefix(channel.trim()))?;
    count.trim().parse().ok()
}

/// Waits until at least `count` deliveries of `queue` are unacknowledged.
pub async fn until_unacknowledged(queue: &str, count: usize) {
    let end = Instant::now() + Duration::from_secs(300);
    while unacknowledged(queue).await < Some(count) {
        assert!(Instant::now() < end, "{count} are prefetched");
    }
}

/// A connection of lapin's own, for setting up and reading back.
#[derive(Debug)]
pub struct Raw {
    connection: Connection,
    /// For further requests of a test.
    pub channel: Channel,
}

impl Raw {
    /// Connects past any proxy; waits for a server that is starting.
    pub async fn connect() -> Self {
        let dsn = servers::variable("CQRS_TEST_AMQP", "amqp://guest:guest@localhost:5672/%2f");
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            match Connection::connect(&dsn, ConnectionProperties::default()).await {
                Ok(connection) => {
                    let channel = connection.create_channel().await.unwrap();
                    return Self { connection, channel };
                }
                Err(error) if Instant::now() > end => {
                    panic!("no RabbitMQ ({error}): run `./scripts/brokers up`")
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// A durable direct exchange, gone with [`clean`](Self::clean).
    pub async fn exchange(&self, name: &str) {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let table = FieldTable::default();
        self.channel
            .exchange_declare(name.into(), ExchangeKind::Direct, options, table)
            .await
            .unwrap();
    }

    /// A durable queue of `kind` (classic, quorum), bound to `exchange` with each of `keys`.
    pub async fn queue(&self, name: &str, kind: &str, exchange: &str, keys: &[&str]) {
        let mut table = FieldTable::default();
        table.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(name.into(), options, table).await.unwrap();
        for key in keys {
            self.channel
                .queue_bind(
                    name.into(),
                    exchange.into(),
                    (*key).into(),
                    QueueBindOptions::default(),
                    FieldTable::default(),
                )
                .await
                .unwrap();
        }
    }

    /// A durable queue that refuses (`basic.nack`) what comes while one message is in it.
    pub async fn queue_of_one(&self, name: &str) {
        let mut table = FieldTable::default();
        table.insert("x-max-length".into(), AMQPValue::LongInt(1));
        table.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(name.into(), options, table).await.unwrap();
    }

    /// Publishes straight to `queue`; confirmed.
    pub async fn put(&self, queue: &str, body: &[u8], properties: BasicProperties) {
        self.publish("", queue, body, properties).await;
    }

    /// Publishes; confirmed, and routed to some queue.
    pub async fn publish(&self, exchange: &str, key: &str, body: &[u8], with: BasicProperties) {
        let channel = self.connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm =
            channel.basic_publish(exchange.into(), key.into(), options, body, with).await.unwrap();
        let confirm = confirm.await.unwrap();
        assert!(matches!(confirm, lapin::Confirmation::Ack(None)), "{confirm:?}");
        channel.close(200, "OK".into()).await.unwrap();
    }

    /// Set if `queue` exists.
    pub async fn exists(&self, queue: &str) -> bool {
        let channel = self.connection.create_channel().await.unwrap();
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let found =
            channel.queue_declare(queue.into(), options, FieldTable::default()).await.is_ok();
        // A channel that is still closing would fail the close of the connection.
        let _closed_by_the_server = channel.close(200, "OK".into()).await;
        found
    }

    /// Messages ready in `queue`.
    pub async fn count(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let table = FieldTable::default();
        self.channel.queue_declare(queue.into(), options, table).await.unwrap().message_count()
    }

    /// Consumers of `queue`.
    pub async fn consumers(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let table = FieldTable::default();
        self.channel.queue_declare(queue.into(), options, table).await.unwrap().consumer_count()
    }

    /// Takes all messages out of `queue`, in order. No publisher may be running.
    pub async fn drain(&self, queue: &str) -> Vec<Delivery> {
        let expected = self.count(queue).await as usize;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let table = FieldTable::default();
        let tag = Uuid::now_v7().to_string();
        let mut consumer = self
            .channel
            .basic_consume(queue.into(), tag.as_str().into(), options, table)
            .await
            .unwrap();
        let mut taken = Vec::new();
        // Messages published without a confirm may arrive late: a second of silence ends it.
        loop {
            let limit = match taken.len() < expected {
                true => Duration::from_secs(60),
                false => Duration::from_secs(1),
            };
            match tokio::time::timeout(limit, consumer.next()).await {
                Ok(Some(delivery)) => taken.push(delivery.unwrap()),
                Ok(None) => panic!("the consumer of {queue} ended"),
                Err(_silence) => break,
            }
        }
        // RabbitMQ 4.3 may end the connection with 541 when a queue is deleted under a consumer.
        self.channel.basic_cancel(tag.into(), Default::default()).await.unwrap();
        assert!(taken.len() >= expected, "{queue}: {} of {expected} came", taken.len());
        taken
    }

    /// Deletes queues with those that belong to them, and exchanges, and closes the connection.
    pub async fn clean(self, queues: &[&str], exchanges: &[&str]) {
        let retries = ["1s", "2s", "10s", "15s", "60s", "300s", "3600s"];
        let retries = retries.map(|delay| format!(".retry.{delay}"));
        let parts =
            ["", ".dead", ".quarantine"].into_iter().chain(retries.iter().map(|end| &**end));
        for name in
            queues.iter().flat_map(|queue| parts.clone().map(move |end| format!("{queue}{end}")))
        {
            // Deleting a queue that is not there is no error.
            let options = QueueDeleteOptions::default();
            self.channel.queue_delete(name.into(), options).await.unwrap();
        }
        for exchange in exchanges {
            let options = ExchangeDeleteOptions::default();
            self.channel.exchange_delete((*exchange).into(), options).await.unwrap();
        }
        self.connection.close(200, "OK".into()).await.unwrap();
    }
}

/// The publish results of a test's messages, compared with the arrived ones.
#[derive(Debug, Default)]
pub struct Outcomes(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    /// In the order in which `enqueue` resolved, by key.
    attempted: HashMap<String, Vec<Uuid>>,
    confirmed: HashSet<Uuid>,
    errors: BTreeMap<String, usize>,
    /// Those that may or may not have arrived.
    unknown: HashSet<Uuid>,
    slowest: Duration,
}

impl Outcomes {
    /// `enqueue` resolved.
    pub fn attempt(&self, key: &str, id: Uuid) {
        self.0.lock().unwrap().attempted.entry(key.to_owned()).or_default().push(id);
    }

    /// The publish ended.
    pub fn outcome<T>(&self, id: Uuid, took: Duration, outcome: Result<T, PublishError>) {
        let mut entries = self.0.lock().unwrap();
        entries.slowest = entries.slowest.max(took);
        match outcome {
            Ok(_) => {
                entries.confirmed.insert(id);
            }
            Err(error) => {
                *entries.errors.entry(format!("{:?}", error.kind())).or_default() += 1;
                if !error.kind().is_certain() {
                    entries.unknown.insert(id);
                }
            }
        }
    }

    /// The longest a publish took.
    pub fn slowest(&self) -> Duration {
        self.0.lock().unwrap().slowest
    }

    /// The number of publishes that ended with this kind of error.
    pub fn errors(&self, kind: &str) -> usize {
        self.0.lock().unwrap().errors.get(kind).copied().unwrap_or_default()
    }

    /// The number of confirmed messages.
    pub fn confirmed(&self) -> usize {
        self.0.lock().unwrap().confirmed.len()
    }

    /// Compares with the arrived messages, in order of arrival: no confirmed one is missing, no refused or
    /// never attempted one arrived, and first deliveries of a key are in order. Prints and returns the
    /// summary.
    pub fn check(&self, test: &str, arrived: &[Delivery]) -> Summary {
        let entries = self.0.lock().unwrap();
        let mut first = HashSet::new();
        let mut order: HashMap<String, Vec<Uuid>> = HashMap::new();
        for delivery in arrived {
            let id = id(delivery);
            // A message of unknown fate can arrive late from an abandoned connection.
            if first.insert(id) && !entries.unknown.contains(&id) {
                order.entry(key(delivery).unwrap_or_default()).or_default().push(id);
            }
        }
        let attempted: HashSet<_> = entries.attempted.values().flatten().copied().collect();
        let summary = Summary {
            test: test.into(),
            attempted: attempted.len(),
            confirmed: entries.confirmed.len(),
            arrived: first.len(),
            duplicates: arrived.len() - first.len(),
            lost: entries.confirmed.difference(&first).count(),
            unexpected: first.iter().filter(|id| !attempted.contains(id)).count(),
            refused_arrived: first
                .iter()
                .filter(|id| !entries.confirmed.contains(id) && !entries.unknown.contains(id))
                .count(),
            out_of_order: order.iter().map(|(key, ids)| breaks(&entries.attempted[key], ids)).sum(),
            errors: entries.errors.clone(),
            slowest: entries.slowest,
        };
        println!("{summary}");
        summary
    }
}

/// The number of ids before one that was attempted earlier.
fn breaks(attempted: &[Uuid], arrived: &[Uuid]) -> usize {
    let place: HashMap<_, _> = attempted.iter().enumerate().map(|(at, id)| (*id, at)).collect();
    arrived.windows(2).filter(|pair| place.get(&pair[0]) > place.get(&pair[1])).count()
}

/// The `message_id` of a delivery.
pub fn id(delivery: &Delivery) -> Uuid {
    delivery.properties.message_id().as_ref().unwrap().as_str().parse().unwrap()
}

/// The text of a delivery's header.
pub fn header(delivery: &Delivery, name: &str) -> Option<String> {
    match delivery.properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        other => panic!("header {name} is {other:?}"),
    }
}

fn key(delivery: &Delivery) -> Option<String> {
    header(delivery, cqrs_core::message::header::KEY)
}

/// A message's key as text.
pub fn key_of(message: &Message) -> String {
    message.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default()
}

/// The summary line of a fault test.
#[derive(Debug)]
pub struct Summary {
    /// The test.
    pub test: String,
    /// Messages for which `enqueue` resolved.
    pub attempted: usize,
    /// Those that ended with `Ok`.
    pub confirmed: usize,
    /// Different messages in the queue.
    pub arrived: usize,
    /// Arrivals of a message beside its first.
    pub duplicates: usize,
    /// Confirmed, and not arrived.
    pub lost: usize,
    /// Arrived, and never attempted.
    pub unexpected: usize,
    /// Arrived, though the error said that it certainly was not stored.
    pub refused_arrived: usize,
    /// First arrivals of a key before one enqueued earlier.
    pub out_of_order: usize,
    /// Errors by kind.
    pub errors: BTreeMap<String, usize>,
    /// The longest publish.
    pub slowest: Duration,
}

impl Summary {
    /// Checks what must hold after every fault.
    pub fn assert_sound(&self) {
        assert_eq!((self.lost, self.unexpected, self.refused_arrived), (0, 0, 0), "{self}");
        assert_eq!(self.out_of_order, 0, "{self}");
        let ended = self.confirmed + self.errors.values().sum::<usize>();
        assert!(ended >= self.attempted, "{self}");
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SUMMARY {}: attempted {} confirmed {} arrived {} duplicates {} lost {} unexpected {} \
             refused-but-arrived {} out-of-order {} errors {:?} slowest {:.2?}",
            self.test,
            self.attempted,
            self.confirmed,
            self.arrived,
            self.duplicates,
            self.lost,
            self.unexpected,
            self.refused_arrived,
            self.out_of_order,
            self.errors,
            self.slowest
        )
    }
}
