//! [`Fixture`]: the topic, journal and server access of one fault test.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_core::consume::{DeadLetter, Subscribe};
use cqrs_core::message::{Headers, header};
use cqrs_core::{Message, MessageBroker, Retry};
use lapin::types::{AMQPValue, FieldTable};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use uuid::Uuid;

use super::journal::Reader;
use super::outcomes::{Outcomes, Published};
use super::process::Worker;
use super::work::{Id, Kind, Work, WorkerOptions};
use super::{TIMEOUT, open, run};
use crate::control::{Restore, brokers, ctl, full, try_brokers};
use crate::{amqp, kafka, servers};

/// `scaled`, or `all` with `CQRS_FULL=1`.
pub fn count(scaled: usize, all: usize) -> usize {
    if full() { all } else { scaled }
}

/// Waits until `condition` holds; a minute at most.
pub async fn until(what: &str, condition: impl AsyncFnMut() -> bool) {
    until_within(TIMEOUT, what, condition).await;
}

/// Waits until `condition` holds.
pub async fn until_within(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition().await {
        assert!(Instant::now() < end, "waited {limit:?} for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The topic, journal and server access of one fault test.
#[derive(Debug)]
pub struct Fixture {
    /// The broker.
    pub kind: Kind,
    /// The topic, and RabbitMQ's exchange.
    pub topic: String,
    /// The consumers' group. On Kafka those of one group disturb each other, whatever they consume.
    pub group: String,
    /// The program of the workers.
    program: &'static str,
    directory: PathBuf,
}

/// A dead letter.
#[derive(Debug)]
pub struct Dead {
    /// Its body; `None` is a tombstone.
    pub body: Option<Vec<u8>>,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// All headers of text.
    pub headers: Headers,
    /// The parsed dead-letter headers.
    pub letter: DeadLetter,
}

impl Dead {
    /// The message's key and number.
    pub fn id(&self) -> Id {
        let body = self.body.as_deref().unwrap_or_default();
        let event: serde_json::Value = serde_json::from_slice(body).unwrap();
        serde_json::from_value::<Work>(event["payload"].clone()).unwrap().id()
    }
}

/// The messages of dead letters.
pub fn ids(dead: &[Dead]) -> Vec<Id> {
    dead.iter().map(Dead::id).collect()
}

impl Fixture {
    /// A topic of its own; on Kafka with `partitions`. `program` is `env!("CARGO_BIN_EXE_worker")`.
    pub async fn new(kind: Kind, program: &'static str, test: &str, partitions: i32) -> Self {
        let unique = Uuid::now_v7();
        let (topic, group) = (format!("it-{test}-{unique}"), format!("g-{unique}"));
        let directory = std::env::temp_dir().join(&topic);
        std::fs::create_dir_all(&directory).unwrap();
        match kind {
            Kind::Kafka => {
                servers::kafka();
                kafka::create_topic(&topic, partitions, &[]).await;
            }
            Kind::Amqp => {
                amqp::dsn();
                let raw = amqp::Raw::connect().await;
                raw.exchange(&topic).await;
                raw.clean(&[], &[]).await;
            }
        }
        Self { kind, topic, group, program, directory }
    }

    /// Options of a worker: the defaults of the framework, no retries, handlers that take no time.
    pub fn options(&self) -> WorkerOptions {
        WorkerOptions {
            broker: self.kind,
            topic: self.topic.clone(),
            group: self.group.clone(),
            exchange: self.topic.clone(),
            journal: self.directory.join("journal"),
            concurrency: 64,
            max_unsettled: None,
            handler_ms: (0, 0),
            hurry: false,
            drain_ms: 30_000,
            immediate_ms: Vec::new(),
            delayed_ms: Vec::new(),
            max_crashes: 3,
            instance: None,
            session_timeout_ms: 45_000,
            max_poll_interval_ms: 300_000,
            revoke_drain_ms: 10_000,
            makes_dead_letter_target: true,
        }
    }

    /// A broker value.
    pub fn broker(&self) -> Arc<dyn Subscribe> {
        run::broker(self.kind, &self.topic, true)
    }

    /// Declares the queues of `options` on RabbitMQ, so that published messages are routed.
    pub async fn declare(&self, options: &WorkerOptions) {
        if self.kind == Kind::Kafka {
            return;
        }
        let broker = self.broker();
        let delays = options.delayed_ms.iter().copied().map(Duration::from_millis);
        let retry = Retry::none().delayed(delays);
        let topics = [&*self.topic];
        let opening = open(&broker, &topics, &options.group, |request| request.retry = retry);
        opening.await.close().await;
        let _ = broker.shutdown(Duration::from_secs(5)).await;
    }

    /// Publishes `works`, in order; all are confirmed.
    pub async fn publish(&self, works: impl IntoIterator<Item = Work>) -> Published {
        let works: Vec<_> = works.into_iter().collect();
        let published = self.try_publish(works).await;
        assert_eq!(published.confirmed.len(), published.attempted.len(), "not all confirmed");
        published
    }

    /// Publishes `works`, in order.
    pub async fn try_publish(&self, works: impl IntoIterator<Item = Work>) -> Published {
        let broker = self.broker();
        let mut published = Published::default();
        let mut receipts = Vec::new();
        for work in works {
            published.attempted.insert(work.id());
            match broker.enqueue(work.message(&self.topic)).await {
                Ok(receipt) => receipts.push((work.id(), receipt)),
                Err(error) => println!("not published: {error}"),
            }
        }
        for (id, receipt) in receipts {
            match receipt.await {
                Ok(_) => drop(published.confirmed.insert(id)),
                Err(error) => println!("not confirmed: {error}"),
            }
        }
        let _ = broker.shutdown(Duration::from_secs(5)).await;
        published
    }

    /// Publishes as they are; all are confirmed.
    pub async fn publish_raw(&self, messages: impl IntoIterator<Item = Message>) {
        let broker = self.broker();
        let mut receipts = Vec::new();
        for message in messages {
            receipts.push(broker.enqueue(message).await.unwrap());
        }
        for receipt in receipts {
            receipt.await.unwrap();
        }
        let _ = broker.shutdown(Duration::from_secs(5)).await;
    }

    /// Kafka: publishes `count` tombstones.
    pub async fn publish_tombstones(&self, count: usize) {
        let topic = self.topic.clone();
        let publishing = tokio::task::spawn_blocking(move || {
            let mut config = ClientConfig::new();
            let producer: BaseProducer =
                config.set("bootstrap.servers", servers::kafka()).create().unwrap();
            for n in 0..count {
                let key = format!("gone{n}");
                producer.send(BaseRecord::<_, ()>::to(&topic).key(&key)).unwrap();
            }
            producer.flush(Duration::from_secs(30)).unwrap();
        });
        publishing.await.unwrap();
    }

    /// Waits until `total` messages are settled, and `dead` of them at least are dead letters.
    pub async fn until_settled_but(&self, total: usize, dead: usize) {
        self.until_settled(total).await;
        until("the dead letters", async || self.dead_count().await >= dead).await;
    }

    /// Set if `total` messages are settled and at least `dead` of them are dead letters.
    pub async fn is_settled_but(&self, total: usize, dead: usize) -> bool {
        self.is_settled(total).await && self.dead_count().await >= dead
    }

    async fn dead_count(&self) -> usize {
        let name = self.dead_name();
        match self.kind {
            Kind::Kafka => kafka::read_all(&name).await.len(),
            Kind::Amqp => {
                let raw = amqp::Raw::connect().await;
                let count = raw.count(&name).await;
                raw.clean(&[], &[]).await;
                count as usize
            }
        }
    }

    /// Waits until `total` messages are settled.
    pub async fn until_settled(&self, total: usize) {
        // A Kafka member waits until the session of its killed predecessor expires: 45 s.
        let limit = 2 * TIMEOUT;
        until_within(limit, "all to be settled", async || self.is_settled(total).await).await;
    }

    async fn is_settled(&self, total: usize) -> bool {
        match self.kind {
            Kind::Kafka => {
                let committed = self.committed().await;
                committed.iter().map(|(_, offset)| offset).sum::<i64>() == total as i64
            }
            Kind::Amqp => self.waiting().await == 0,
        }
    }

    /// Starts a worker.
    pub fn spawn(&self, options: &WorkerOptions) -> Worker {
        Worker::spawn(self.program, options)
    }

    /// Starts a worker and waits until it says that it consumes.
    pub async fn start(&self, options: &WorkerOptions, outcomes: &mut Outcomes) -> Worker {
        let worker = self.spawn(options);
        until("a worker to be ready", async || outcomes.refresh().ready().contains(&worker.pid))
            .await;
        worker
    }

    /// The results of the handlers.
    pub fn outcomes(&self) -> Outcomes {
        Outcomes::new(Reader::open(&self.directory.join("journal")).unwrap())
    }

    /// The name of the dead letters' queue or topic.
    pub fn dead_name(&self) -> String {
        format!("{}.{}.dead", self.topic, self.group)
    }

    /// Takes all dead letters. Their queue or topic must exist.
    pub async fn dead(&self) -> Vec<Dead> {
        let name = self.dead_name();
        let dead = |body, key, texts: Vec<(String, String)>| {
            let mut headers = Headers::new();
            for (name, value) in texts {
                headers.insert(name, value).unwrap();
            }
            let letter = DeadLetter::from_headers(&headers).unwrap();
            Dead { body, key, headers, letter }
        };
        match self.kind {
            Kind::Kafka => {
                let records = kafka::read_all(&name).await.into_iter();
                records.map(|record| dead(record.body, record.key, record.headers)).collect()
            }
            Kind::Amqp => {
                let raw = amqp::Raw::connect().await;
                let letters = raw.drain(&name).await;
                raw.clean(&[], &[]).await;
                letters
                    .into_iter()
                    .map(|letter| {
                        let texts = texts(letter.properties.headers().as_ref());
                        let key = texts.iter().find(|(name, _)| name == header::KEY);
                        let key = key.map(|(_, key)| key.clone().into_bytes());
                        dead(Some(letter.data), key, texts)
                    })
                    .collect()
            }
        }
    }

    /// Kafka: the committed offsets, read by another client.
    pub async fn committed(&self) -> Vec<(i32, i64)> {
        let end = Instant::now() + TIMEOUT;
        loop {
            let (topic, group) = (self.topic.clone(), self.group.clone());
            let asking = tokio::task::spawn_blocking(move || committed(&topic, &group));
            match asking.await.unwrap() {
                Ok(committed) => return committed,
                // A server that has just started still loads the commits.
                Err(error) => assert!(Instant::now() < end, "no committed offsets: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Kafka: the number of messages with `attempts` failed attempts in the commit metadata.
    pub async fn noted(&self, attempts: u32) -> usize {
        let attempts = format!("{attempts:x}");
        let mut noted = 0;
        for (partition, _) in self.committed().await {
            let (_, note) = kafka::committed(&self.group, &self.topic, partition).await;
            let entries = note.split(';').find_map(|section| section.strip_prefix("a="));
            // An offset, the attempts, and two times.
            let entries = entries.into_iter().flat_map(|entries| entries.split(','));
            noted += entries.filter(|entry| entry.split('.').nth(1) == Some(&*attempts)).count();
        }
        noted
    }

    /// RabbitMQ: messages that are ready in the source queue and its quarantine queue.
    pub async fn waiting(&self) -> usize {
        let raw = amqp::Raw::connect().await;
        let mut waiting = 0;
        for end in ["", ".quarantine"] {
            let queue = format!("{}.{}{end}", self.topic, self.group);
            if raw.exists(&queue).await {
                waiting += raw.count(&queue).await as usize;
            }
        }
        raw.clean(&[], &[]).await;
        waiting
    }

    /// Checks that all `total` messages are settled. No consumer may run.
    pub async fn settled(&self, total: usize) {
        match self.kind {
            Kind::Kafka => {
                let committed = self.committed().await;
                let committed: i64 = committed.iter().map(|(_, offset)| offset).sum();
                assert_eq!(committed, total as i64, "all is committed");
            }
            Kind::Amqp => {
                let raw = amqp::Raw::connect().await;
                let left = raw.drain(&format!("{}.{}", self.topic, self.group)).await;
                raw.clean(&[], &[]).await;
                assert!(left.is_empty(), "{} are not settled", left.len());
                assert_eq!(self.waiting().await, 0, "messages are left in quarantine");
            }
        }
    }

    /// Deletes its queues and topics on the server, and its files.
    pub async fn clean(self) {
        if self.kind == Kind::Amqp {
            let raw = amqp::Raw::connect().await;
            let listed = ctl(&["-q", "list_queues", "name"]).await;
            let own = format!("{}.", self.topic);
            let queues: Vec<_> = listed.lines().filter(|name| name.starts_with(&own)).collect();
            raw.clean(&queues, &[&self.topic]).await;
        }
        if self.kind == Kind::Kafka {
            kafka::delete_topics(&self.topic).await;
        }
        let _best_effort = std::fs::remove_dir_all(&self.directory);
    }
}

fn committed(topic: &str, group: &str) -> KafkaResult<Vec<(i32, i64)>> {
    const TIMEOUT: Duration = Duration::from_secs(30);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers::kafka()).set("group.id", group);
    let consumer: BaseConsumer = config.create()?;
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
    let mut list = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        list.add_partition(topic, partition.id());
    }
    let committed = consumer.committed_offsets(list, TIMEOUT)?;
    let offset = |offset| if let Offset::Offset(offset) = offset { offset } else { 0 };
    let elements = committed.elements();
    Ok(elements.iter().map(|one| (one.partition(), offset(one.offset()))).collect())
}

/// The headers that are texts.
fn texts(headers: Option<&FieldTable>) -> Vec<(String, String)> {
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => Some(text.to_string()),
        _ => None,
    };
    let headers = headers.into_iter().flatten();
    headers.filter_map(|(name, value)| Some((name.to_string(), text(value)?))).collect()
}

/// Takes the server of `kind` down (`kill` or `stop`), runs `meanwhile`, and starts the server again, also
/// when the test fails.
pub async fn outage<T>(kind: Kind, how: &str, meanwhile: impl Future<Output = T>) -> T {
    let server = kind.server();
    announce(&format!("{how} {server}"));
    let restore = Restore::by(["start", server]);
    brokers(&[how, server]).await;
    let done = meanwhile.await;
    // After a kill Kafka recovers all of its logs, which may take longer than the script waits.
    let end = Instant::now() + Duration::from_secs(300);
    while let Err(said) = try_brokers(&["start", server]).await {
        let said = said.lines().last().unwrap_or_default();
        assert!(Instant::now() < end, "{server} does not start again: {said}");
    }
    std::mem::forget(restore);
    announce(&format!("{server} is back"));
    done
}

/// Records an outage for other users of the servers in the file `CQRS_TEST_OUTAGES`, if it is set.
pub(super) fn announce(what: &str) {
    use std::io::Write as _;
    let Some(path) = std::env::var_os("CQRS_TEST_OUTAGES") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let at = super::journal::now().as_secs();
    let _best_effort = file.and_then(|mut file| writeln!(file, "{at} {what}"));
}
