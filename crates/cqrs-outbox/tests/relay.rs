//! Tests of the relay on SQLite and the in-memory broker, without a server.

#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_core::broker::{
    BoxFuture, BrokerState, Confirmation, Intake, PendingConfirm, Receipt, ShutdownReport, Window,
};
use cqrs_core::{MemoryBroker, Message, MessageBroker, PublishError};
use cqrs_outbox::{FailedFilter, Relay, RelayBuilder, RelayHandle, RelayReport, SqliteOutbox};
use sqlx::Sqlite;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use tokio::task::JoinHandle;
use uuid::Uuid;

const TOPIC: &str = "orders";
const LIMIT: Duration = Duration::from_secs(60);

/// An outbox in a file of its own, removed at the end.
struct Database {
    path: PathBuf,
    outbox: SqliteOutbox,
}

impl Database {
    async fn new() -> Self {
        let path = std::env::temp_dir().join(format!("cqrs-relay-{}.db", Uuid::now_v7()));
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await.unwrap();
        let outbox = SqliteOutbox::new(pool);
        outbox.migrate().await.unwrap();
        Self { path, outbox }
    }

    /// Writes a message for each pair of a key and a body, in one transaction.
    async fn write(&self, rows: &[(&str, &str)]) {
        let message = |(key, body): &(&str, &str)| {
            Message::new(TOPIC, (*body).to_owned()).with_key((*key).to_owned())
        };
        let messages: Vec<_> = rows.iter().map(message).collect();
        let mut tx = self.outbox.pool().begin_with("BEGIN IMMEDIATE").await.unwrap();
        self.outbox.put(&mut tx, &messages).await.unwrap();
        tx.commit().await.unwrap();
        self.outbox.wakeup().wake();
    }

    async fn count(&self, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM cqrs_{table}");
        let query = sqlx::query_scalar(sqlx::AssertSqlSafe(sql));
        query.fetch_one(self.outbox.pool()).await.unwrap()
    }

    /// Waits until no row is pending or parked.
    async fn drained(&self) {
        let is_empty = async || self.count("outbox").await + self.count("outbox_parked").await == 0;
        wait(is_empty, "an empty outbox").await;
    }

    fn relay(&self, broker: &(impl MessageBroker + Clone)) -> RelayBuilder<Sqlite> {
        let backoff = Duration::from_millis(20);
        Relay::builder(&self.outbox, broker.clone()).backoff(backoff, backoff)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        for end in ["", "-wal", "-shm"] {
            let _gone = std::fs::remove_file(format!("{}{end}", self.path.display()));
        }
    }
}

/// A broker that confirms when the test says so.
#[derive(Debug, Clone)]
struct HeldBroker {
    intake: Intake,
    held: Arc<Mutex<Vec<PendingConfirm>>>,
    bodies: Arc<Mutex<Vec<String>>>,
}

impl HeldBroker {
    fn new() -> Self {
        let intake = Intake::new(Window::new(1_000, 100_000_000), LIMIT);
        Self { intake, held: Arc::default(), bodies: Arc::default() }
    }

    fn hold(&self, (pending, receipt): (PendingConfirm, Receipt)) -> Receipt {
        let body = String::from_utf8(pending.message().body.to_vec()).unwrap();
        self.bodies.lock().unwrap().push(body);
        assert!(pending.start_sending());
        self.held.lock().unwrap().push(pending);
        receipt
    }

    fn bodies(&self) -> Vec<String> {
        self.bodies.lock().unwrap().clone()
    }

    fn confirm_all(&self) {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        held.into_iter().for_each(|pending| pending.confirm(Confirmation::default()));
    }
}

impl MessageBroker for HeldBroker {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(async move { self.intake.admit(message).await.map(|of| self.hold(of)) })
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        self.intake.try_admit(message).map(|of| self.hold(of))
    }

    fn state(&self) -> BrokerState {
        BrokerState::Ready
    }

    fn shutdown(&self, _deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        Box::pin(std::future::ready(ShutdownReport::new(0)))
    }
}

struct Running {
    handle: RelayHandle<Sqlite>,
    task: JoinHandle<RelayReport>,
}

impl Running {
    fn start(relay: RelayBuilder<Sqlite>) -> Self {
        let relay = relay.build().unwrap();
        Self { handle: relay.handle(), task: tokio::spawn(relay.run()) }
    }

    async fn stop(self) -> RelayReport {
        self.handle.stop();
        tokio::time::timeout(LIMIT, self.task).await.expect("an end in time").unwrap()
    }
}

async fn wait(condition: impl AsyncFn() -> bool, what: &str) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, poll).await.unwrap_or_else(|_| panic!("no {what}"));
}

fn bodies(broker: &MemoryBroker) -> Vec<String> {
    let messages = broker.messages(TOPIC).into_iter();
    messages.map(|message| String::from_utf8(message.body.to_vec()).unwrap()).collect()
}

#[tokio::test]
async fn committed_rows_are_published_in_order() {
    let database = Database::new().await;
    let broker = MemoryBroker::new();
    database.write(&[("a", "a0"), ("b", "b0"), ("a", "a1")]).await;
    let mut tx = database.outbox.pool().begin_with("BEGIN IMMEDIATE").await.unwrap();
    database.outbox.put(&mut tx, &[Message::new(TOPIC, "rolled back")]).await.unwrap();
    tx.rollback().await.unwrap();
    let relay = Running::start(database.relay(&broker));
    database.write(&[("a", "a2"), ("b", "b1")]).await;
    database.drained().await;
    let report = relay.stop().await;
    assert_eq!((report.published, report.unsettled), (5, 0));
    let mut all = bodies(&broker);
    let of =
        |key: &str| all.iter().filter(|body| body.starts_with(key)).cloned().collect::<Vec<_>>();
    assert_eq!(
        (of("a"), of("b")),
        (vec!["a0".into(), "a1".into(), "a2".into()], vec!["b0".into(), "b1".into()])
    );
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 5);
}

/// Times that overflow mean forever.
#[tokio::test]
async fn endless_times_are_allowed() {
    let database = Database::new().await;
    let broker = MemoryBroker::new();
    broker.faults().refuse_messages(1);
    database.write(&[("a", "a0"), ("b", "b0")]).await;
    let endless = Duration::MAX;
    let relay = database.relay(&broker).poll(endless, endless).sweep(endless);
    let running = Running::start(relay.backoff(endless, endless).drain(endless));
    wait(async || broker.messages(TOPIC).len() == 1, "a message").await;
    wait(async || database.count("outbox_parked").await == 1, "a parked row").await;
    assert_eq!(running.stop().await.published, 1);
}

#[tokio::test]
async fn published_message_is_the_written_one() {
    let database = Database::new().await;
    let broker = MemoryBroker::new();
    let mut message = Message::new(TOPIC, "{}").with_key("k").with_name("OrderPlaced");
    message = message.with_content_type("application/json").with_mandatory(false);
    message.headers.insert("traceparent", "00-x").unwrap();
    let mut tx = database.outbox.pool().begin_with("BEGIN IMMEDIATE").await.unwrap();
    database.outbox.put(&mut tx, std::slice::from_ref(&message)).await.unwrap();
    tx.commit().await.unwrap();
    let relay = Running::start(database.relay(&broker));
    database.drained().await;
    relay.stop().await;
    let published = broker.messages(TOPIC).remove(0);
    // The table keeps microseconds.
    assert_eq!(published.clone().with_timestamp(message.timestamp), message);
    let lost = message.timestamp.duration_since(published.timestamp).unwrap();
    assert!(lost < Duration::from_micros(1), "{lost:?}");
}

#[tokio::test]
async fn compressed_row_is_published_as_it_was() {
    let database = Database::new().await;
    let broker = MemoryBroker::new();
    let compressing = database.outbox.clone().compress_above(100);
    let bodies = ["x".repeat(5_000), "y".repeat(100)];
    let messages = bodies.clone().map(|body| Message::new(TOPIC, body).with_key("k"));
    let mut tx = database.outbox.pool().begin_with("BEGIN IMMEDIATE").await.unwrap();
    compressing.put(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();
    let sizes = "SELECT length(body), uncompressed_size FROM cqrs_outbox ORDER BY id";
    let sizes: Vec<(i64, Option<i64>)> =
        sqlx::query_as(sizes).fetch_all(database.outbox.pool()).await.unwrap();
    assert!(sizes[0].0 < 100 && sizes[0].1 == Some(5_000), "{sizes:?}");
    assert_eq!(sizes[1], (100, None), "not above the limit");
    // What is damaged is dead, and stops no other row.
    let damage = "UPDATE cqrs_outbox SET uncompressed_size = 3 WHERE id = 2";
    sqlx::raw_sql(damage).execute(database.outbox.pool()).await.unwrap();
    let relay = Running::start(database.relay(&broker));
    database.drained().await;
    relay.stop().await;
    let published: Vec<_> = broker.messages(TOPIC).into_iter().map(|sent| sent.body).collect();
    assert_eq!(published, [bodies[0].as_bytes()]);
    let dead = database.outbox.dead_rows(&FailedFilter::default(), 0, 10).await.unwrap();
    assert!(dead[0].last_error.contains("no zlib stream of 3 bytes"), "{}", dead[0].last_error);
    assert!(database.outbox.dead_body(&dead[0]).await.is_err());
}

#[tokio::test]
async fn row_refused_for_good_is_dead_and_replayable() {
    let database = Database::new().await;
    let broker = MemoryBroker::builder().max_message_size(100).build();
    let large = "x".repeat(200);
    database.write(&[("a", &large), ("a", "a1"), ("b", "b0")]).await;
    let relay = Running::start(database.relay(&broker));
    database.drained().await;
    assert_eq!(bodies(&broker), ["b0", "a1"]);
    let dead = database.outbox.dead_rows(&FailedFilter::default(), 0, 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].attempts, dead[0].body_size), (1, 1, 200));
    assert!(dead[0].last_error.contains("too large"), "{}", dead[0].last_error);
    assert!(!dead[0].last_error.contains("xx"), "the payload");
    let status = relay.handle.status().await.unwrap();
    assert_eq!((status.dead, status.pending, status.parked), (1, 0, 0));
    relay.stop().await;

    let roomy = MemoryBroker::new();
    let relay = Running::start(database.relay(&roomy));
    let these = FailedFilter::default().ids([dead[0].id, 99]);
    assert_eq!(database.outbox.replay_dead(&these, 10).await.unwrap(), 1);
    database.drained().await;
    relay.stop().await;
    assert_eq!(roomy.messages(TOPIC)[0].id, dead[0].event_id);
    assert_eq!(database.count("outbox_dead").await, 0);
}

#[tokio::test]
async fn failing_key_waits_alone_and_keeps_its_order() {
    let database = Database::new().await;
    let broker = MemoryBroker::new();
    // The first row fails twice; the rest of its key waits behind it.
    broker.faults().refuse_messages(2);
    database.write(&[("a", "a0"), ("a", "a1")]).await;
    let relay = Running::start(database.relay(&broker));
    wait(async || database.count("outbox_parked").await == 2, "parked rows").await;
    database.write(&[("b", "b0"), ("a", "a2"), ("a", "a3")]).await;
    database.drained().await;
    relay.stop().await;
    let of_a: Vec<_> = bodies(&broker).into_iter().filter(|body| body.starts_with('a')).collect();
    assert_eq!(of_a, ["a0", "a1", "a2", "a3"]);
    assert_eq!(database.count("outbox_dead").await, 0);
}

#[tokio::test]
async fn parked_key_is_taken_over_with_its_attempts() {
    let database = Database::new().await;
    let broker = MemoryBroker::new();
    broker.faults().refuse_messages(usize::MAX);
    database.write(&[("a", "a0"), ("a", "a1")]).await;
    let long = Duration::from_secs(3_600);
    let relay = Running::start(database.relay(&broker).backoff(Duration::from_millis(100), long));
    let is_tried_twice = async || {
        let parked = database.outbox.parked_rows(&FailedFilter::default(), 0, 10).await.unwrap();
        parked.len() == 2 && parked[0].attempts == 2 && parked[1].attempts == 0
    };
    wait(is_tried_twice, "second attempt").await;
    relay.stop().await;
    broker.faults().clear();
    let relay = Running::start(database.relay(&broker));
    database.write(&[("a", "a2")]).await;
    database.drained().await;
    relay.stop().await;
    assert_eq!(bodies(&broker), ["a0", "a1", "a2"]);
}

#[tokio::test]
async fn message_with_a_lost_confirm_is_sent_again() {
    let database = Database::new().await;
    let broker = MemoryBroker::new();
    broker.faults().lose_confirms(1);
    database.write(&[("a", "a0"), ("a", "a1")]).await;
    let relay = Running::start(database.relay(&broker));
    database.drained().await;
    relay.stop().await;
    assert_eq!(bodies(&broker), ["a0", "a0", "a1"]);
}

#[tokio::test]
async fn unreadable_row_is_dead_and_stops_no_other() {
    let database = Database::new().await;
    let broker = MemoryBroker::new();
    database.write(&[("a", "a0"), ("b", "b0")]).await;
    sqlx::query("UPDATE cqrs_outbox SET headers = '\"secret\"' WHERE id = 1")
        .execute(database.outbox.pool())
        .await
        .unwrap();
    let relay = Running::start(database.relay(&broker));
    database.drained().await;
    relay.stop().await;
    assert_eq!(bodies(&broker), ["b0"]);
    let errors = "SELECT last_error FROM cqrs_outbox_dead";
    let errors: Vec<String> =
        sqlx::query_scalar(errors).fetch_all(database.outbox.pool()).await.unwrap();
    assert!(errors.len() == 1 && errors[0].contains("headers"), "{errors:?}");
    assert!(!errors[0].contains("secret"), "the payload: {errors:?}");
}

#[tokio::test]
async fn large_bodies_fill_the_window_by_their_bytes() {
    const MIB: usize = 1 << 20;
    let database = Database::new().await;
    let broker = HeldBroker::new();
    let body = "x".repeat(MIB);
    let rows: Vec<_> = (0..20).map(|key| (key.to_string(), &*body)).collect();
    database.write(&rows.iter().map(|(key, body)| (&**key, *body)).collect::<Vec<_>>()).await;
    let poll = Duration::from_millis(5);
    let relay = database.relay(&broker).window_bytes(3 * MIB).poll(poll, poll);
    let relay = Running::start(relay);
    let mut published = 0;
    while published < 20 {
        wait(async || broker.bodies().len() > published, "publish").await;
        // Some polls later.
        tokio::time::sleep(poll * 10).await;
        let held = broker.bodies().len() - published;
        assert!(held <= 3, "{held} bodies in memory");
        published += held;
        broker.confirm_all();
        wait(async || database.count("outbox").await == 20 - published as i64, "deletes").await;
    }
    assert_eq!(relay.stop().await.published, 20);
}

#[tokio::test]
async fn row_with_an_id_used_again_is_not_deleted() {
    let database = Database::new().await;
    let broker = HeldBroker::new();
    database.write(&[("a", "old")]).await;
    let relay = Running::start(database.relay(&broker).sweep(Duration::from_millis(50)));
    wait(async || broker.bodies() == ["old"], "publish").await;
    // As after a failover that lost the old row and the end of the sequence.
    sqlx::query("UPDATE cqrs_outbox SET event_id = ?, body = CAST('new' AS BLOB)")
        .bind(Uuid::now_v7())
        .execute(database.outbox.pool())
        .await
        .unwrap();
    let is_drained = async || {
        broker.confirm_all();
        database.count("outbox").await == 0
    };
    wait(is_drained, "empty outbox").await;
    assert_eq!(broker.bodies(), ["old", "new"]);
    relay.stop().await;
}

#[tokio::test]
async fn second_relay_takes_over_from_a_stopped_one() {
    let database = Database::new().await;
    let broker = MemoryBroker::new();
    let first = Running::start(database.relay(&broker));
    database.write(&[("a", "a0")]).await;
    database.drained().await;
    let second = Running::start(database.relay(&broker));
    first.stop().await;
    database.write(&[("a", "a1")]).await;
    database.drained().await;
    assert_eq!(second.stop().await.published, 1);
    assert_eq!(bodies(&broker), ["a0", "a1"]);
}

#[tokio::test]
async fn aborted_relay_loses_its_lane_after_the_lease() {
    let database = Database::new().await;
    let broker = MemoryBroker::new();
    let lease = Duration::from_secs(3);
    let first = Running::start(database.relay(&broker).lease(lease));
    database.write(&[("a", "a0")]).await;
    database.drained().await;
    first.task.abort();
    let second = Running::start(database.relay(&broker).lease(lease));
    database.write(&[("a", "a1")]).await;
    database.drained().await;
    second.stop().await;
    assert_eq!(bodies(&broker), ["a0", "a1"]);
}

#[tokio::test]
async fn relay_that_owned_no_lane_is_forgotten() {
    let database = Database::new().await;
    let insert = "INSERT INTO cqrs_outbox_relay (id, seen_at) VALUES (randomblob(16), 0)";
    sqlx::query(insert).execute(database.outbox.pool()).await.unwrap();
    let running = Running::start(database.relay(&MemoryBroker::new()));
    let is_alone = async || {
        let relays = database.outbox.status().await.unwrap().relays;
        relays.len() == 1 && relays[0].lanes == 1
    };
    wait(is_alone, "one relay").await;
    running.stop().await;
}

#[tokio::test]
async fn shut_down_broker_ends_the_relay() {
    let database = Database::new().await;
    let broker = MemoryBroker::new();
    let _report = broker.shutdown(Duration::ZERO).await;
    database.write(&[("a", "a0")]).await;
    let relay = database.relay(&broker).build().unwrap();
    let report = tokio::time::timeout(LIMIT, relay.run()).await.expect("an end in time");
    assert!(report.is_broker_closed);
    assert_eq!(database.count("outbox").await, 1);
}

#[tokio::test]
async fn missing_tables_do_not_end_the_relay() {
    let database = Database::new().await;
    sqlx::query("ALTER TABLE cqrs_outbox_lane RENAME TO away")
        .execute(database.outbox.pool())
        .await
        .unwrap();
    let broker = MemoryBroker::new();
    let relay = Running::start(database.relay(&broker));
    let has_failed = async || relay.handle.status().await.unwrap().last_error.is_some();
    wait(has_failed, "error").await;
    sqlx::query("ALTER TABLE away RENAME TO cqrs_outbox_lane")
        .execute(database.outbox.pool())
        .await
        .unwrap();
    database.write(&[("a", "a0")]).await;
    database.drained().await;
    relay.stop().await;
    assert_eq!(bodies(&broker), ["a0"]);
}

#[tokio::test]
async fn settings_that_cannot_work_are_errors() {
    let database = Database::new().await;
    let broker = MemoryBroker::new();
    assert!(database.relay(&broker).window(0).build().is_err());
    assert!(database.relay(&broker).window_bytes(0).build().is_err());
    assert!(database.relay(&broker).statement_timeout(Duration::ZERO).build().is_err());
    assert!(database.relay(&broker).lease(Duration::from_secs(1)).build().is_err());
    let slow = database.relay(&broker).lease(Duration::from_secs(6));
    assert!(slow.build().is_ok(), "the default statement timeout gets shorter with the lease");
    let slow = database.relay(&broker).lease(Duration::from_secs(6));
    let error = slow.statement_timeout(Duration::from_secs(3)).build().unwrap_err();
    assert!(error.to_string().contains("a third of its lease"), "{error}");
    assert!(database.relay(&broker).sweep(Duration::ZERO).build().is_err());
}

#[tokio::test]
async fn id_that_is_used_again_is_another_dead_row() {
    let database = Database::new().await;
    let broker = MemoryBroker::new();
    for count in 1..=2 {
        database.write(&[("a", "a0")]).await;
        for sql in ["UPDATE cqrs_outbox SET headers = '[]'", "DELETE FROM sqlite_sequence"] {
            sqlx::query(sql).execute(database.outbox.pool()).await.unwrap();
        }
        let relay = Running::start(database.relay(&broker));
        database.drained().await;
        relay.stop().await;
        assert_eq!(database.count("outbox_dead").await, count);
    }
    let ids = sqlx::query_scalar("SELECT id FROM cqrs_outbox_dead");
    let ids: Vec<i64> = ids.fetch_all(database.outbox.pool()).await.unwrap();
    assert_eq!(ids, [1, 1]);
}
