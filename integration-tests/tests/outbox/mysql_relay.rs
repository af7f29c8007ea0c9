//! The relay on MySQL and MariaDB: settings of its connections, transactions that stay open for long, and abandoned statements.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use cqrs_core::{MemoryBroker, Message};
use cqrs_outbox::{MysqlOutbox, Relay, RelayBuilder, RelayHandle, RelayReport};
use integration_tests::consuming::fixture::until_within;
use integration_tests::outbox::drained;
use sqlx::MySql;
use sqlx::mysql::MySqlPoolOptions;
use tokio::task::JoinHandle;

use super::*;

type MysqlSchema = database::Schema<MySql>;

const LIMIT: Duration = Duration::from_secs(60);

fn start(relay: RelayBuilder<MySql>) -> (RelayHandle<MySql>, JoinHandle<RelayReport>) {
    let relay = relay.build().unwrap();
    (relay.handle(), tokio::spawn(relay.run()))
}

/// Writes a row and waits for its publish.
async fn publish(schema: &MysqlSchema, key: &str, body: u32) {
    let mut tx = schema.pool.begin().await.unwrap();
    let message = Message::new("users", body.to_string()).with_key(key.to_owned());
    schema.outbox.put(&mut tx, &[message]).await.unwrap();
    tx.commit().await.unwrap();
    schema.outbox.wakeup().wake();
    drained(schema, LIMIT).await;
}

fn bodies(broker: &MemoryBroker) -> Vec<String> {
    let messages = broker.messages("users").into_iter();
    messages.map(|message| String::from_utf8(message.body.to_vec()).unwrap()).collect()
}

/// The hook of the pool asks for uncommitted rows, and for no commit of single statements.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn isolation_of_the_pool_publishes_no_uncommitted_row() {
    let schema = MysqlSchema::new().await;
    let pool = MySqlPoolOptions::new().after_connect(|connection, _| {
        let settings = "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED; \
                        SET autocommit = 0; SELECT lane FROM cqrs_outbox_lane";
        Box::pin(MySql::run(connection, settings.to_owned()))
    });
    let pool = pool.connect_lazy_with(MySql::options(&schema.name));
    let broker = MemoryBroker::new();
    for is_alone in [false, true] {
        let relay = Relay::builder(&MysqlOutbox::new(pool.clone()), broker.clone());
        let relay = relay.poll(Duration::from_millis(20), Duration::from_millis(20));
        let (handle, running) = start(if is_alone { relay.heartbeat_only() } else { relay });
        let mut open = schema.pool.begin().await.unwrap();
        let message = Message::new("users", "uncommitted").with_key("key");
        schema.outbox.put(&mut open, &[message]).await.unwrap();
        for n in 0..5 {
            publish(&schema, "key", n).await;
        }
        open.rollback().await.unwrap();
        handle.stop();
        assert_eq!(running.await.unwrap().published, 5);
    }
    assert_eq!(bodies(&broker), ["0", "1", "2", "3", "4", "0", "1", "2", "3", "4"]);
    schema.drop().await;
}

/// Longer than the relay's setting allows, so that only a sweep finds its row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_of_a_too_long_transaction_is_found_by_a_sweep() {
    let schema = MysqlSchema::new().await;
    let broker = MemoryBroker::new();
    let longest = Duration::from_millis(300);
    let relay = Relay::builder(&schema.outbox, broker.clone()).longest_transaction(longest);
    let (handle, running) = start(relay.sweep(Duration::from_secs(3)));
    let mut late = schema.pool.begin().await.unwrap();
    let message = Message::new("users", "late").with_key("key");
    schema.outbox.put(&mut late, &[message]).await.unwrap();
    let began = Instant::now();
    let mut rows = 0;
    // The marks of the reads are a second apart.
    while began.elapsed() < Duration::from_secs(3) {
        publish(&schema, "key", rows).await;
        rows += 1;
    }
    late.commit().await.unwrap();
    drained(&schema, LIMIT).await;
    assert_eq!(handle.status().await.unwrap().late, 1);
    handle.stop();
    running.await.unwrap();
    let mut bodies = bodies(&broker);
    assert_eq!(bodies.len() as u32, rows + 1);
    assert!(bodies.pop().is_some_and(|last| last == "late"));
    schema.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_statements_end_on_the_server() {
    let schema = MysqlSchema::new().await;
    let relay = Relay::builder(&schema.outbox, MemoryBroker::new());
    let (handle, running) = start(relay.statement_timeout(Duration::from_secs(1)));
    let owns_lanes = async || handle.status().await.unwrap().lanes == 64;
    until_within(LIMIT, "the relay owns the lanes", owns_lanes).await;
    let mut other = schema.pool.acquire().await.unwrap();
    MySql::run(&mut other, "LOCK TABLES cqrs_outbox WRITE".to_owned()).await.unwrap();
    let waiting = "SELECT CAST(id AS SIGNED) FROM information_schema.processlist \
                   WHERE db = DATABASE() AND state LIKE 'Waiting for table metadata lock%'";
    let seen = std::sync::Mutex::new(HashSet::new());
    let is_abandoned = async || {
        let now = schema.numbers(waiting).await;
        let mut seen = seen.lock().unwrap();
        seen.extend(now);
        seen.len() >= 5
    };
    until_within(LIMIT, "statements that waited", is_abandoned).await;
    let left = schema.numbers(waiting).await.len();
    assert!(left <= 2, "{left} wait, of {}", seen.lock().unwrap().len());
    MySql::run(&mut other, "UNLOCK TABLES".to_owned()).await.unwrap();
    drop(other);
    publish(&schema, "key", 0).await;
    handle.stop();
    running.await.unwrap();
    schema.drop().await;
}

/// One process has the database of the tables as its default, another one names it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_of_the_same_tables_exclude_each_other() {
    let name = format!("test_{}", uuid::Uuid::now_v7().simple());
    MySql::create(&name).await.unwrap();
    let other = MysqlSchema::new().await;
    let tables = cqrs_outbox::Tables::default().with_schema(&*name).unwrap();
    let outboxes = [
        MysqlOutbox::new(MySql::pool(MySql::options(&name))),
        MysqlOutbox::with_tables(other.pool.clone(), tables).unwrap(),
    ];
    let mut holder = other.pool.acquire().await.unwrap();
    let lock = format!("CONCAT('cqrs_migrations_', MD5('{name}.cqrs_migrations'))");
    MySql::run(&mut holder, format!("DO GET_LOCK({lock}, 10)")).await.unwrap();
    let migrations = outboxes.map(|outbox| tokio::spawn(async move { outbox.migrate().await }));
    let waiting = format!(
        "SELECT count(*) FROM information_schema.processlist WHERE state = 'User lock' \
         AND db IN ('{name}', '{}')",
        other.name
    );
    let both_wait = async || other.numbers(&*waiting).await == [2];
    until_within(LIMIT, "both wait for the lock", both_wait).await;
    MySql::run(&mut holder, format!("DO RELEASE_LOCK({lock})")).await.unwrap();
    for migration in migrations {
        migration.await.unwrap().unwrap();
    }
    other.run(MySql::DROP.replace("$1", &name)).await;
    drop(holder);
    other.drop().await;
}
