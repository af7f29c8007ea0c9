//! Tests of the outbox and the inbox on SQLite, without a server.

#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

use std::path::PathBuf;
use std::time::Duration;

use cqrs_core::scope::{Inbox as _, UnitOfWorkFactory};
use cqrs_core::{
    EventHandler, EventMediator, HandlerError, Mediator, MemoryBroker, Message, MessageBrokerExt,
    NotificationEvent, RequestHandler, Scope, SendError, Service, Subscription, UnitOfWork,
};
use cqrs_macros::{Command, DomainEvent, Notification};
use cqrs_outbox::{OutboxErrorKind, SqliteOutbox, SqliteUnitOfWork, Tables};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{Row, SqlitePool};
use uuid::Uuid;

#[derive(Command)]
#[cqrs(crate = "cqrs_core", error = String)]
struct AddUser {
    name: String,
    fails: bool,
}

#[derive(DomainEvent)]
#[cqrs(crate = "cqrs_core")]
struct UserCounted;

#[derive(Clone, Notification, Serialize, Deserialize)]
#[cqrs(crate = "cqrs_core", topic = "users", key = "name")]
struct UserAdded {
    name: String,
}

struct AddUsers;

impl RequestHandler<AddUser> for AddUsers {
    async fn handle(&self, command: AddUser, scope: &mut Scope) -> Result<(), String> {
        let unit = scope.unit_of_work::<SqliteUnitOfWork>().await.map_err(|e| e.to_string())?;
        sqlx::query("INSERT INTO users (name) VALUES (?)")
            .bind(&command.name)
            .execute(unit.connection())
            .await
            .map_err(|error| error.to_string())?;
        scope.emit(UserCounted);
        scope.emit(UserAdded { name: command.name });
        if command.fails { Err("not today".to_owned()) } else { Ok(()) }
    }
}

struct CountUsers;

impl EventHandler<UserCounted> for CountUsers {
    async fn handle(&self, _event: &UserCounted, scope: &mut Scope) -> Result<(), HandlerError> {
        let unit = scope.unit_of_work::<SqliteUnitOfWork>().await?;
        sqlx::query("INSERT INTO users (name) VALUES ('counted')")
            .execute(unit.connection())
            .await?;
        Ok(())
    }
}

/// Adds the user of each event to the read model, which is the same table.
struct Project;

impl EventHandler<UserAdded> for Project {
    async fn handle(&self, event: &UserAdded, scope: &mut Scope) -> Result<(), HandlerError> {
        let unit = scope.unit_of_work::<SqliteUnitOfWork>().await?;
        sqlx::query("INSERT INTO users (name) VALUES (?)")
            .bind(&event.name)
            .execute(unit.connection())
            .await?;
        scope.emit(UserAdded { name: format!("{}'s follower", event.name) });
        Ok(())
    }
}

/// A database in a file of its own, removed at the end.
struct Database {
    path: PathBuf,
    pool: SqlitePool,
    outbox: SqliteOutbox,
}

impl Database {
    async fn new(connections: u32) -> Self {
        let path = std::env::temp_dir().join(format!("cqrs-outbox-{}.db", Uuid::now_v7()));
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        let pool = SqlitePoolOptions::new()
            .max_connections(connections)
            .connect_with(options)
            .await
            .unwrap();
        sqlx::query("CREATE TABLE users (name TEXT NOT NULL)").execute(&pool).await.unwrap();
        let outbox = SqliteOutbox::new(pool.clone());
        outbox.migrate().await.unwrap();
        Self { path, pool, outbox }
    }

    async fn users(&self) -> Vec<String> {
        let rows = sqlx::query("SELECT name FROM users").fetch_all(&self.pool).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// The keys of the waiting rows, in order of their ids.
    async fn waiting(&self) -> Vec<String> {
        let sql = "SELECT CAST(key AS TEXT) FROM cqrs_outbox ORDER BY id";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    fn mediator(&self) -> Mediator {
        Mediator::builder()
            .handle::<AddUser, _>(AddUsers)
            .event::<UserCounted, _>(CountUsers)
            .outbox(self.outbox.clone())
            .build()
            .unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        for end in ["", "-wal", "-shm"] {
            let mut file = self.path.clone().into_os_string();
            file.push(end);
            let _missing = std::fs::remove_file(file);
        }
    }
}

#[tokio::test]
async fn writes_and_events_are_one_transaction() {
    // A pool of one connection must be enough.
    let database = Database::new(1).await;
    let mediator = database.mediator();
    let add = |fails| AddUser { name: "ada".to_owned(), fails };
    assert!(matches!(mediator.send(add(true)).await, Err(SendError::Handler(_))));
    assert_eq!((database.users().await.len(), database.waiting().await.len()), (0, 0));
    mediator.send(add(false)).await.unwrap();
    assert_eq!(database.users().await, ["ada", "counted"]);
    assert_eq!(database.waiting().await, ["ada"]);
}

#[tokio::test]
async fn missing_table_rolls_the_writes_back() {
    let database = Database::new(2).await;
    sqlx::query("DROP TABLE cqrs_outbox").execute(&database.pool).await.unwrap();
    let sent = database.mediator().send(AddUser { name: "ada".to_owned(), fails: false }).await;
    assert!(matches!(sent, Err(SendError::UnitOfWork(_))), "{sent:?}");
    assert_eq!(database.users().await.len(), 0);
}

#[tokio::test]
async fn added_event_follows_the_callers_transaction() {
    let database = Database::new(2).await;
    for (name, commits) in [("ada", false), ("bob", true)] {
        let mut tx = database.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        database.outbox.add(&mut tx, UserAdded { name: name.to_owned() }).await.unwrap();
        if commits {
            tx.commit().await.unwrap();
        } else {
            tx.rollback().await.unwrap();
        }
    }
    assert_eq!(database.waiting().await, ["bob"]);
}

#[tokio::test]
async fn rows_of_one_statement_keep_their_order() {
    let database = Database::new(1).await;
    let messages: Vec<_> =
        (0..7_000).map(|n| Message::new("users", "{}").with_key(n.to_string())).collect();
    let mut tx = database.pool.begin().await.unwrap();
    database.outbox.put(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();
    let expected: Vec<_> = (0..7_000).map(|n| n.to_string()).collect();
    assert_eq!(database.waiting().await, expected);
}

#[tokio::test]
async fn id_of_a_deleted_row_is_not_used_again() {
    let database = Database::new(1).await;
    let mut ids = Vec::new();
    for name in ["ada", "bob"] {
        let mut tx = database.pool.begin().await.unwrap();
        database.outbox.add(&mut tx, UserAdded { name: name.to_owned() }).await.unwrap();
        let deleted = sqlx::query("DELETE FROM cqrs_outbox RETURNING id").fetch_one(&mut *tx).await;
        ids.push(deleted.unwrap().get::<i64, _>(0));
        tx.commit().await.unwrap();
    }
    assert!(ids[0] < ids[1], "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_migrations_run_once() {
    let database = Database::new(4).await;
    let tables = Tables::default().with_prefix("other_").unwrap();
    let outbox = SqliteOutbox::with_tables(database.pool.clone(), tables).unwrap();
    let runs = (0..8).map(|_| {
        let outbox = outbox.clone();
        tokio::spawn(async move { outbox.migrate().await.unwrap() })
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
    let sql = "SELECT count(*) FROM other_migrations";
    let count: i64 = sqlx::query_scalar(sql).fetch_one(&database.pool).await.unwrap();
    assert_eq!(count, 1);
    let schema = Tables::default().with_schema("orders").unwrap();
    let refused = SqliteOutbox::with_tables(database.pool.clone(), schema).unwrap_err();
    assert_eq!(refused.kind(), OutboxErrorKind::Config);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn only_one_of_concurrent_copies_is_new() {
    let database = Database::new(8).await;
    let id = Uuid::now_v7();
    let copies = (0..8).map(|_| {
        let outbox = database.outbox.clone();
        tokio::spawn(async move {
            let mut unit = outbox.begin().await.unwrap();
            let is_new = outbox.inbox().mark(&mut unit, "mailer", id).await.unwrap();
            unit.commit().await.unwrap();
            is_new
        })
    });
    let mut new = 0;
    for copy in copies.collect::<Vec<_>>() {
        new += usize::from(copy.await.unwrap());
    }
    assert_eq!(new, 1);
}

#[tokio::test]
async fn rolled_back_mark_is_forgotten() {
    let database = Database::new(1).await;
    let (inbox, id) = (database.outbox.inbox(), Uuid::now_v7());
    for _ in 0..2 {
        let mut unit = database.outbox.begin().await.unwrap();
        assert!(inbox.mark(&mut unit, "mailer", id).await.unwrap());
        unit.rollback().await.unwrap();
    }
    let mut unit = database.outbox.begin().await.unwrap();
    assert!(inbox.mark(&mut unit, "mailer", id).await.unwrap());
    assert!(inbox.mark(&mut unit, "other", id).await.unwrap(), "another consumer");
    unit.commit().await.unwrap();
    let mut unit = database.outbox.begin().await.unwrap();
    assert!(!inbox.mark(&mut unit, "mailer", id).await.unwrap());
}

#[tokio::test]
async fn purge_deletes_only_marks_past_retention() {
    let database = Database::new(1).await;
    let day = 24 * 60 * 60 * 1_000_000_i64;
    for (age, marks) in [(8 * day, 2_500), (6 * day, 3)] {
        let sql = "INSERT INTO cqrs_inbox (consumer, message_id, seen_at) \
                   WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) \
                   SELECT 'mailer', randomblob(16), unixepoch() * 1000000 - ? FROM n";
        sqlx::query(sql).bind(marks).bind(age).execute(&database.pool).await.unwrap();
    }
    let inbox = database.outbox.inbox();
    assert_eq!(inbox.purge().await.unwrap(), 2_500);
    assert_eq!(inbox.purge().await.unwrap(), 0);
    assert_eq!(inbox.retention(Duration::ZERO).purge().await.unwrap(), 3);
}

#[tokio::test]
async fn consumed_event_is_handled_once() {
    let database = Database::new(2).await;
    let broker = MemoryBroker::new();
    let event = NotificationEvent::new(UserAdded { name: "ada".to_owned() });
    for _ in 0..3 {
        broker.publish_event(event.clone()).await.unwrap();
    }
    let mediator = EventMediator::builder()
        .event::<UserAdded, _>(Project)
        .outbox(database.outbox.clone())
        .build()
        .unwrap();
    let subscription = Subscription::to("users")
        .group("projection")
        .json::<UserAdded>()
        .inbox(database.outbox.inbox());
    let service = Service::builder(broker).subscribe(subscription, mediator).build().unwrap();
    let (health, stop) = (service.health(), service.stop_handle());
    let running = tokio::spawn(service.run_until(std::future::pending::<()>()));
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while health.subscriptions()[0].counts.handled < 3 {
        assert!(tokio::time::Instant::now() < end, "{:?}", health.subscriptions());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(health.subscriptions()[0].counts.duplicates, 2);
    stop.stop();
    running.await.unwrap().unwrap();
    assert_eq!(database.users().await, ["ada"]);
    assert_eq!(database.waiting().await, ["ada's follower"]);
}
