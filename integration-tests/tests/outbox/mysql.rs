//! What only MySQL and MariaDB do: deadlocks that end transactions, and the forms of their columns.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::message::Headers;
use cqrs_core::scope::{Inbox as _, UnitOfWorkError};
use cqrs_core::{Mediator, MemoryBroker, Message, RequestHandler, SendError, UnitOfWork as _};
use cqrs_macros::Command;
use cqrs_outbox::{MysqlUnitOfWork, OutboxError, OutboxErrorKind, Relay};
use integration_tests::outbox::drained;
use sqlx::MySql;
use tokio::sync::Notify;
use uuid::Uuid;

use super::*;

type MysqlSchema = database::Schema<MySql>;

#[derive(Command)]
#[cqrs(crate = "cqrs_core", error = String)]
struct Lock {
    emits: bool,
}

/// Locks two rows, and ignores the deadlock.
struct IgnoreDeadlock(Arc<Notify>);

impl RequestHandler<Lock> for IgnoreDeadlock {
    async fn handle(&self, Lock { emits }: Lock, scope: &mut Scope) -> Result<(), String> {
        insert_user::<MySql>(scope, "ada").await.map_err(|error| error.to_string())?;
        let connection = scope.unit_of_work::<MysqlUnitOfWork>().await.unwrap().connection();
        let lock = |id: u32| format!("UPDATE locks SET n = n + 1 WHERE id = {id}");
        MySql::run(connection, lock(1)).await.unwrap();
        self.0.notify_one();
        let error = MySql::run(connection, lock(2)).await.unwrap_err();
        assert!(error.to_string().contains("1213"), "{error}");
        if emits {
            scope.emit(UserAdded { name: "ada".to_owned() });
        }
        Ok(())
    }
}

#[tokio::test]
async fn ignored_deadlock_is_not_taken_for_committed() {
    let schema = schema_with_users::<MySql>().await;
    schema.run("CREATE TABLE locks (id int PRIMARY KEY, n int NOT NULL)").await;
    let rows = (1..=100).map(|id| format!("({id}, 0)")).collect::<Vec<_>>().join(", ");
    schema.run(format!("INSERT INTO locks VALUES {rows}")).await;
    for emits in [false, true] {
        let has_first = Arc::new(Notify::new());
        let handler = IgnoreDeadlock(Arc::clone(&has_first));
        let mediator = Mediator::builder()
            .handle::<Lock, _>(handler)
            .outbox(schema.outbox.clone())
            .build()
            .unwrap();
        let mut other = schema.pool.begin().await.unwrap();
        // Has changed more rows, so the handler's transaction is the victim.
        let lock = "UPDATE locks SET n = n + 1 WHERE id >= 2";
        MySql::run(&mut other, lock.to_owned()).await.unwrap();
        let closing = async {
            has_first.notified().await;
            let lock = "UPDATE locks SET n = n + 1 WHERE id = 1";
            MySql::run(&mut other, lock.to_owned()).await.unwrap();
        };
        let (sent, ()) = tokio::join!(mediator.send(Lock { emits }), closing);
        let error = sent.unwrap_err();
        assert_ended(&error);
        other.rollback().await.unwrap();
        let counts = "SELECT count(*) FROM users UNION ALL SELECT count(*) FROM cqrs_outbox";
        assert_eq!(schema.numbers(counts).await, [0, 0]);
    }
    schema.drop().await;
}

/// What a handler writes after the end of its transaction is committed at once: a retry may repeat it.
fn assert_ended<E: std::fmt::Debug + std::fmt::Display>(error: &SendError<(), E>) {
    let SendError::UnitOfWork(UnitOfWorkError::Ended(ended)) = error else { panic!("{error:?}") };
    let source = std::error::Error::source(ended).unwrap().downcast_ref::<OutboxError>().unwrap();
    assert_eq!(source.kind(), OutboxErrorKind::TransactionEnded);
    assert!(!error.is_rolled_back() && !source.is_retryable(), "{source}");
}

/// Creates a table: MySQL commits what was written before.
struct CreateTable;

impl RequestHandler<Lock> for CreateTable {
    async fn handle(&self, Lock { emits }: Lock, scope: &mut Scope) -> Result<(), String> {
        insert_user::<MySql>(scope, "ada").await.map_err(|error| error.to_string())?;
        let connection = scope.unit_of_work::<MysqlUnitOfWork>().await.unwrap().connection();
        let create = "CREATE OR REPLACE TABLE other (n int)";
        MySql::run(connection, create.to_owned()).await.unwrap();
        if emits {
            scope.emit(UserAdded { name: "ada".to_owned() });
        }
        Ok(())
    }
}

#[tokio::test]
async fn implicit_commit_is_not_taken_for_rolled_back() {
    let schema = schema_with_users::<MySql>().await;
    for (emits, users) in [(false, 1), (true, 2)] {
        let mediator = Mediator::builder().handle::<Lock, _>(CreateTable);
        let mediator = mediator.outbox(schema.outbox.clone()).build().unwrap();
        assert_ended(&mediator.send(Lock { emits }).await.unwrap_err());
        let counts = "SELECT count(*) FROM users UNION ALL SELECT count(*) FROM cqrs_outbox";
        assert_eq!(schema.numbers(counts).await, [users, 0]);
    }
    schema.drop().await;
}

/// Several copies wait for a transaction that rolls back: InnoDB ends all but one by a deadlock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlock_of_copies_is_a_conflict() {
    let schema = MysqlSchema::new().await;
    let (inbox, id) = (schema.outbox.inbox(), Uuid::now_v7());
    let mut first = begin(&schema.outbox).await;
    assert!(inbox.mark(&mut first, "mailer", id).await.unwrap());
    let copies = (0..4).map(|_| {
        let (inbox, outbox) = (inbox.clone(), schema.outbox.clone());
        tokio::spawn(async move {
            let mut unit = begin(&outbox).await;
            let is_new = inbox.mark(&mut unit, "mailer", id).await?;
            unit.commit().await.unwrap();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(is_new)
        })
    });
    let copies: Vec<_> = copies.collect();
    let wait = async || schema.numbers(MySql::WAITING).await[0] >= 4;
    integration_tests::consuming::fixture::until("the copies wait", wait).await;
    first.rollback().await.unwrap();
    let (mut new, mut conflicts) = (0, 0);
    for copy in copies {
        match copy.await.unwrap() {
            Ok(is_new) => new += usize::from(is_new),
            Err(error) => {
                let error = error.downcast::<OutboxError>().unwrap();
                assert_eq!((error.kind(), error.is_retryable()), (OutboxErrorKind::Conflict, true));
                conflicts += 1;
            }
        }
    }
    assert_eq!(new, 1);
    assert!(conflicts > 0, "no deadlock");
    schema.drop().await;
}

#[tokio::test]
async fn names_of_consumers_are_never_cut() {
    let schema = MysqlSchema::new().await;
    let inbox = schema.outbox.inbox();
    let mut unit = begin(&schema.outbox).await;
    let name = "é".repeat(510);
    let names =
        [("Mailer", true), ("mailer", true), ("mailer ", true), (&*name, true), (&*name, false)];
    for (consumer, is_new) in names {
        assert_eq!(inbox.mark(&mut unit, consumer, Uuid::nil()).await.unwrap(), is_new);
    }
    assert!(inbox.mark(&mut unit, &format!("{name}a"), Uuid::nil()).await.is_err());
    unit.rollback().await.unwrap();
    schema.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_rows_are_published_as_they_were_written() {
    let schema = MysqlSchema::new().await;
    let mut headers = Headers::new();
    headers.insert("zone", "first, with é and 🦀").unwrap();
    headers.insert("a", "").unwrap();
    headers.insert_bytes("raw", vec![0, 0xff]).unwrap();
    let message = |number: u32| {
        let body = if number == 7 { vec![0xff; 5 << 20] } else { number.to_string().into() };
        Message::new("users", body)
            .with_key(vec![0, 0xff])
            .with_name("UserAdded🦀")
            .with_content_type("application/json")
            .with_headers(headers.clone())
            .with_mandatory(number.is_multiple_of(2))
    };
    let mut messages: Vec<_> = (0..1_001).map(message).collect();
    messages.push(Message::new("users", ""));
    let mut tx = schema.pool.begin().await.unwrap();
    schema.outbox.put(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();
    let broker = MemoryBroker::new();
    let relay = Relay::builder(&schema.outbox, broker.clone()).build().unwrap();
    let (handle, running) = (relay.handle(), tokio::spawn(relay.run()));
    drained(&schema, Duration::from_secs(60)).await;
    handle.stop();
    running.await.unwrap();
    let published = broker.messages("users");
    assert_eq!(published.len(), messages.len());
    let keyed: Vec<_> = published.iter().filter(|sent| sent.key.is_some()).collect();
    for (sent, message) in keyed.into_iter().zip(&messages) {
        assert!(sent.body == message.body && sent.id == message.id, "{:?}", message.id);
        assert_eq!((&sent.key, &sent.name), (&message.key, &message.name));
        assert_eq!((&sent.content_type, &sent.headers), (&message.content_type, &message.headers));
    }
    schema.drop().await;
}
