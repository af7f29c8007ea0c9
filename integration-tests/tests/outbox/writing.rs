//! Tests of the migrations, and of writes, events and their commit.

use std::marker::PhantomData;
use std::time::Duration;

use cqrs_core::message::{Headers, header};
use cqrs_core::scope::UnitOfWorkError;
use cqrs_core::{Mediator, Message, RequestHandler, SendError};
use cqrs_macros::Command;
use cqrs_outbox::{OutboxErrorKind, Tables};
use integration_tests::consuming::fixture::until_within;
use integration_tests::postgres::options;
use sqlx::postgres::PgPoolOptions;

use super::*;

on_each_database!(
    writes_and_events_are_one_transaction,
    added_event_follows_the_callers_transaction,
    concurrent_migrations_run_once_in_their_schema,
    missing_table_and_lost_server_have_their_kinds,
);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    Succeed,
    Fail,
    /// Ignores a failed statement of PostgreSQL, and emits nothing.
    IgnoreError,
    /// As that, but emits.
    IgnoreErrorAndEmit,
}

#[derive(Command)]
#[cqrs(crate = "cqrs_core", error = String)]
struct AddUser(Act);

struct AddUsers<DB>(PhantomData<DB>);

impl<DB: TestDatabase> RequestHandler<AddUser> for AddUsers<DB> {
    async fn handle(&self, AddUser(act): AddUser, scope: &mut Scope) -> Result<(), String> {
        insert_user::<DB>(scope, "ada").await.map_err(|error| error.to_string())?;
        if matches!(act, Act::IgnoreError | Act::IgnoreErrorAndEmit) {
            let unit = scope.unit_of_work::<SqlUnitOfWork<DB>>().await.unwrap();
            let failed = DB::run(unit.connection(), "SELECT 1 / 0".to_owned()).await;
            assert!(failed.is_err());
        }
        if act != Act::IgnoreError {
            scope.emit(UserAdded { name: "ada".to_owned() });
        }
        if act == Act::Fail { Err("not today".to_owned()) } else { Ok(()) }
    }
}

fn mediator<DB: TestDatabase>(outbox: &Outbox<DB>) -> Mediator {
    let builder = Mediator::builder()
        .handle::<AddUser, _>(AddUsers(PhantomData::<DB>))
        .outbox(outbox.clone());
    builder.build().unwrap()
}

async fn writes_and_events_are_one_transaction<DB: TestDatabase>() {
    let schema = schema_with_users::<DB>().await;
    let mediator = mediator(&schema.outbox);
    assert!(matches!(mediator.send(AddUser(Act::Fail)).await, Err(SendError::Handler(_))));
    let counts = "SELECT count(*) FROM users UNION ALL SELECT count(*) FROM cqrs_outbox";
    assert_eq!(schema.numbers(counts).await, [0, 0]);
    mediator.send(AddUser(Act::Succeed)).await.unwrap();
    assert_eq!(schema.numbers(counts).await, [1, 1]);
    schema.drop().await;
}

/// PostgreSQL answers the commit of a failed transaction with a rollback and no error.
#[tokio::test]
async fn failed_transaction_is_not_taken_for_committed() {
    let schema = schema_with_users::<sqlx::Postgres>().await;
    let mediator = mediator(&schema.outbox);
    let error = mediator.send(AddUser(Act::IgnoreError)).await.unwrap_err();
    assert!(matches!(error, SendError::UnitOfWork(UnitOfWorkError::Commit(_))), "{error:?}");
    let error = mediator.send(AddUser(Act::IgnoreErrorAndEmit)).await.unwrap_err();
    assert!(matches!(error, SendError::UnitOfWork(UnitOfWorkError::Outbox(_))), "{error:?}");
    assert!(error.is_rolled_back());
    assert_eq!(schema.numbers("SELECT count(*) FROM users").await, [0]);
    schema.drop().await;
}

#[tokio::test]
async fn thousand_rows_are_readable_in_order() {
    let schema = Schema::new().await;
    let mut headers = Headers::new();
    headers.insert("zone", "first, with é").unwrap();
    headers.insert_bytes("raw", vec![0, 0xff]).unwrap();
    headers.set_correlation_id("request-1");
    let messages: Vec<_> = (0..1_000)
        .map(|number: i32| {
            Message::new("users", number.to_string())
                .with_key(vec![0, 0xff])
                .with_name("UserAdded")
                .with_headers(headers.clone())
                .with_mandatory(number % 2 == 0)
        })
        .collect();
    let mut tx = schema.pool.begin().await.unwrap();
    schema.outbox.put(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();
    let bodies = "SELECT convert_from(body, 'UTF8')::int FROM cqrs_outbox ORDER BY id";
    assert_eq!(schema.column::<i32>(bodies).await, (0..1_000).collect::<Vec<_>>());
    let lanes = "SELECT DISTINCT lane::int FROM cqrs_outbox";
    assert_eq!(schema.column::<i32>(lanes).await.len(), 1, "rows of one key are in one lane");
    let id = format!("SELECT headers->>'{}' FROM cqrs_outbox LIMIT 1", header::CORRELATION_ID);
    let id: String =
        sqlx::query_scalar(sqlx::AssertSqlSafe(id)).fetch_one(&schema.pool).await.unwrap();
    assert_eq!(id, "request-1");
    schema.drop().await;
}

async fn added_event_follows_the_callers_transaction<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    for commits in [false, true] {
        let mut tx = schema.pool.begin().await.unwrap();
        schema.outbox.add(&mut tx, UserAdded { name: "ada".to_owned() }).await.unwrap();
        if commits {
            tx.commit().await.unwrap();
        } else {
            tx.rollback().await.unwrap();
        }
    }
    assert_eq!(schema.numbers("SELECT count(*) FROM cqrs_outbox").await, [1]);
    schema.drop().await;
}

async fn concurrent_migrations_run_once_in_their_schema<DB: TestDatabase>() {
    let schema = schema_with_users::<DB>().await;
    // A reserved word, beside many schemas; removed before and after.
    let tables = Tables::default().with_schema("order").unwrap().with_prefix("events_").unwrap();
    let outbox = Outbox::with_tables(schema.pool.clone(), tables).unwrap();
    let name = outbox.tables().name("").replace(".events_", "");
    schema.run(DB::DROP.replace("$1", &name)).await;
    let runs = (0..8).map(|_| {
        let outbox = outbox.clone();
        tokio::spawn(async move { outbox.migrate().await.unwrap() })
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
    mediator_writes_to(&outbox, &schema).await;
    schema.run(DB::DROP.replace("$1", &name)).await;
    schema.drop().await;
}

/// A session of PostgreSQL remembers that it did not find a name, and a wait for an advisory lock does not make it
/// look again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migration_that_waited_sees_the_tables_of_the_one_before() {
    let schema = Schema::new().await;
    let name = format!("new_{}", uuid::Uuid::now_v7().simple());
    let outbox = async || {
        let pool = PgPoolOptions::new().max_connections(1);
        let pool = pool.connect_with(options(&schema.name)).await.unwrap();
        let tables = Tables::default().with_schema(&*name).unwrap();
        let outbox = Outbox::with_tables(pool.clone(), tables).unwrap();
        (pool, outbox)
    };
    let (first_pool, first) = outbox().await;
    let (second_pool, second) = outbox().await;
    let table = second.tables().name("migrations");
    // Twice: the second one finds its statements prepared, and loads nothing that would make it look again.
    let remember = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = to_regclass($1)), \
                    to_regclass($1) IS NOT NULL";
    for _ in 0..2 {
        let found: (bool, bool) =
            sqlx::query_as(remember).bind(&table).fetch_one(&second_pool).await.unwrap();
        assert_eq!(found, (false, false));
    }
    let lock = format!("(hashtextextended('{table}', 0))");
    execute(&first_pool, format!("SELECT pg_advisory_lock{lock}")).await;
    let waiting = tokio::spawn(async move { second.migrate().await });
    let is_waiting = format!(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
         AND (classid::int8 << 32 | objid::int8) = hashtextextended('{table}', 0)"
    );
    let waits = async || schema.numbers(&*is_waiting).await == [1];
    until_within(Duration::from_secs(30), "the second migration waits", waits).await;
    first.migrate().await.unwrap();
    execute(&first_pool, format!("SELECT pg_advisory_unlock{lock}")).await;
    waiting.await.unwrap().unwrap();
    schema.run(format!("DROP SCHEMA {name} CASCADE")).await;
    schema.drop().await;
}

async fn mediator_writes_to<DB: TestDatabase>(outbox: &Outbox<DB>, schema: &database::Schema<DB>) {
    mediator(outbox).send(AddUser(Act::Succeed)).await.unwrap();
    let count = async |table: &str| {
        schema.numbers(format!("SELECT count(*) FROM {}", outbox.tables().name(table))).await
    };
    let migrations = outbox.tables().migrations(DB::DIALECT).len() as i64;
    assert_eq!(count("migrations").await, [migrations]);
    assert_eq!(count("outbox").await, [1]);
    assert_eq!(schema.numbers("SELECT count(*) FROM cqrs_outbox").await, [0]);
}

async fn missing_table_and_lost_server_have_their_kinds<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    let other = Tables::default().with_prefix("absent_").unwrap();
    let outbox = Outbox::with_tables(schema.pool.clone(), other).unwrap();
    let mut tx = schema.pool.begin().await.unwrap();
    let message = [Message::new("users", "{}")];
    let error = outbox.put(&mut tx, &message).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (OutboxErrorKind::NotMigrated, false));
    drop(tx);
    let mut tx = schema.pool.begin().await.unwrap();
    let own = DB::numbers(&mut tx, DB::CONNECTION.to_owned()).await.unwrap()[0];
    schema.run(DB::KILL.replace("$1", &own.to_string())).await;
    let error = schema.outbox.put(&mut tx, &message).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (OutboxErrorKind::Unavailable, true));
    drop(tx);
    schema.drop().await;
}
