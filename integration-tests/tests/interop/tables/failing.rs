//! Tests of the relay's statuses and counters while rows, the broker or the database fail.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Receipt, ShutdownReport};
use cqrs_core::{MemoryBroker, Message, MessageBroker, PublishError, PublishErrorKind};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
use cqrs_outbox::PythonRelay;
use integration_tests::consuming::fixture::until;
use integration_tests::kafka::delete_topics;
use integration_tests::servers;
use serde_json::json;

use super::{Running, Tables, payloads, topic};

/// A row that the broker refuses ends as the package's producer leaves it, whoever counted the attempts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_row_ends_as_the_package_leaves_it() {
    let (tables, topic) = (Tables::new().await, topic().await);
    let mut large = payloads(2);
    for payload in &mut large {
        payload["email"] = "x".repeat(1_100_000).into();
    }
    tables.add(&topic, "dataclass", large, false).await;
    // It is over the limit of both clients.
    assert_eq!(tables.produce("dataclass", false, 2).await, [2, 2]);
    assert_eq!(tables.count("NOT_PRODUCED", 2).await, 2);
    tables.execute("UPDATE outbox SET flush_counter = 0 WHERE id = 2").await;
    tables.add(&topic, "dataclass", payloads(10), false).await;
    let mut config = KafkaConfig::new([servers::kafka()]);
    config.max_message_size = 1_000_000;
    let broker = KafkaMessageBroker::new(config).unwrap();
    let relay = Running::start(PythonRelay::builder(&tables.outbox(), broker));
    tables.until_produced(10).await;
    until("no attempt is left", async || tables.count("NOT_PRODUCED", 5).await == 2).await;
    assert_eq!(relay.stop().await.published, 10);
    assert_eq!(tables.produce("dataclass", false, 1).await, [0], "the package leaves them, too");
    tables.schema.drop().await;
    delete_topics(&topic).await;
}

/// As the package's repository with a compressor, which cannot read a plain row.
#[tokio::test]
async fn broken_payload_counts_as_failed_attempt() {
    let tables = Tables::new().await;
    tables.add("users", "dataclass", payloads(1), false).await;
    tables.add("users", "dataclass", payloads(1), true).await;
    // The package counts the first one, too, as it cannot read it.
    tables.execute("UPDATE outbox SET event_status = 'NOT_PRODUCED', flush_counter = 1").await;
    let broker = MemoryBroker::new();
    let outbox = tables.outbox().with_zlib();
    let relay = Running::start(PythonRelay::builder(&outbox, broker));
    until("both are settled", async || {
        tables.count("NOT_PRODUCED", 5).await == 1 && tables.count("PRODUCED", 1).await == 1
    })
    .await;
    relay.stop().await;
    tables.schema.drop().await;
}

/// A broker whose state the test sets.
#[derive(Debug, Clone)]
struct Switched(MemoryBroker, Arc<AtomicBool>);

impl Switched {
    fn refusal(&self, message: Message) -> Result<Message, PublishError> {
        match self.state().is_ready() {
            true => Ok(message),
            false => Err(PublishError::new(PublishErrorKind::NotSent, message, "away")),
        }
    }
}

impl MessageBroker for Switched {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(async move { self.0.enqueue(self.refusal(message)?).await })
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        self.0.try_enqueue(self.refusal(message)?)
    }

    fn state(&self) -> BrokerState {
        match self.1.load(Ordering::Relaxed) {
            true => BrokerState::Ready,
            false => BrokerState::Disconnected { last_error: "gone".into() },
        }
    }

    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.0.shutdown(deadline)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_outage_costs_no_attempt() {
    let tables = Tables::new().await;
    tables.add("users", "dataclass", payloads(20), false).await;
    let broker = Switched(MemoryBroker::new(), Arc::default());
    let relay = Running::start(PythonRelay::builder(&tables.outbox(), broker.clone()));
    // Beyond the probe of one row, which comes every 5 s.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(tables.count("NEW", 0).await, 20);
    broker.1.store(true, Ordering::Relaxed);
    tables.until_produced(20).await;
    assert_eq!(relay.stop().await.published, 20);
    tables.schema.drop().await;
}

/// Makes all updates of the outbox fail.
const REFUSE_UPDATES: &str = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                              RAISE 'no updates now'; END $$; \
                              CREATE TRIGGER refuse BEFORE UPDATE ON outbox FOR EACH ROW \
                              EXECUTE FUNCTION refuse()";
const ALLOW_UPDATES: &str = "DROP TRIGGER refuse ON outbox; DROP FUNCTION refuse";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confirm_is_remembered_until_it_can_be_written() {
    let tables = Tables::new().await;
    let broker = MemoryBroker::new();
    let published = broker.subscriber("users", "audit");
    tables.execute(REFUSE_UPDATES).await;
    tables.add("users", "dataclass", payloads(3), false).await;
    let relay = Running::start(PythonRelay::builder(&tables.outbox(), broker));
    for _ in 0..3 {
        published.recv().await.unwrap().ack();
    }
    tables.execute(ALLOW_UPDATES).await;
    tables.until_produced(3).await;
    assert_eq!(relay.stop().await.published, 3, "none is published again");
    tables.schema.drop().await;
}

/// A relay that dies between the publish and the update.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_relay_repeats_and_loses_nothing() {
    let tables = Tables::new().await;
    let broker = MemoryBroker::new();
    let published = broker.subscriber("users", "audit");
    tables.execute(REFUSE_UPDATES).await;
    tables.add("users", "dataclass", payloads(3), false).await;
    let mut bodies = Vec::new();
    for round in 0..2 {
        let relay = Running::start(PythonRelay::builder(&tables.outbox(), broker.clone()));
        let mut of_round = Vec::new();
        for _ in 0..3 {
            let delivery = published.recv().await.unwrap();
            of_round.push(delivery.message().body.clone());
            delivery.ack();
        }
        bodies.push(of_round);
        if round == 0 {
            relay.task.abort();
            assert!(relay.task.await.unwrap_err().is_cancelled());
            assert_eq!(tables.count("NEW", 0).await, 3);
            tables.execute(ALLOW_UPDATES).await;
        } else {
            tables.until_produced(3).await;
            relay.stop().await;
        }
    }
    assert_eq!(bodies[0], bodies[1]);
    tables.schema.drop().await;
}

/// A broker whose first publish blocks the relay's task until the test lets it go on.
#[derive(Debug)]
struct Blocking(MemoryBroker, Mutex<Option<Receiver<()>>>);

impl MessageBroker for Blocking {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        self.0.enqueue(message)
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        let go_on = self.1.lock().unwrap().take();
        if let Some(go_on) = go_on {
            tokio::task::block_in_place(|| go_on.recv().unwrap());
        }
        self.0.try_enqueue(message)
    }

    fn state(&self) -> BrokerState {
        self.0.state()
    }

    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.0.shutdown(deadline)
    }
}

/// `true` while a relay has the lock.
pub(super) async fn is_locked(tables: &Tables) -> bool {
    let lock = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 6517106 \
                AND objid = 'outbox'::regclass::oid AND granted";
    tables.schema.column::<i64>(lock).await[0] == 1
}

/// As a relay that is stopped by SIGSTOP in the middle of a batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn silent_relay_loses_its_lock_to_another() {
    let tables = Tables::new().await;
    tables.add("users", "dataclass", payloads(20), false).await;
    let broker = MemoryBroker::new();
    let (go_on, blocked) = std::sync::mpsc::channel();
    let blocking = Blocking(broker.clone(), Mutex::new(Some(blocked)));
    let lease = Duration::from_secs(3);
    let silent = PythonRelay::builder(&tables.outbox(), blocking).lease(lease);
    let silent = Running::start(silent);
    until("the silent relay has the lock", async || is_locked(&tables).await).await;
    let other = Running::start(PythonRelay::builder(&tables.outbox(), broker.clone()));
    tables.until_produced(20).await;
    assert_eq!(other.stop().await.published, 20);
    go_on.send(()).unwrap();
    let report = silent.stop().await;
    assert_eq!(report.unsettled, 0, "its confirms are written, too");
    assert_eq!(tables.count("PRODUCED", 0).await, 20);
    assert!(report.published <= 1, "{} are published without the lock", report.published);
    assert_eq!(broker.messages("users").len() as u64, 20 + report.published);
    tables.schema.drop().await;
}

#[tokio::test]
async fn missing_table_is_waited_for() {
    let tables = Tables::new().await;
    let outbox = tables.outbox().with_table("later").with_schema(&tables.schema.name);
    let broker = MemoryBroker::new();
    let published = broker.subscriber("users", "audit");
    let relay = Running::start(PythonRelay::builder(&outbox, broker));
    tables.add("users", "dataclass", payloads(1), false).await;
    tables.execute("ALTER TABLE outbox RENAME TO later").await;
    let delivery = published.recv().await.unwrap();
    let body: serde_json::Value = serde_json::from_slice(&delivery.message().body).unwrap();
    assert_eq!(body["eventName"], json!("UserCreated"));
    delivery.ack();
    assert_eq!(relay.stop().await.unsettled, 0);
    tables.schema.drop().await;
}
