//! One test of all drivers on PostgreSQL: what a transaction commits is published by a relay as it was emitted,
//! in order, and what it does not commit is not there.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

use std::error::Error;
use std::marker::PhantomData;
use std::time::Duration;

use cqrs::message::Headers;
use cqrs::outbox::{PostgresOutbox, Relay, Tables};
use cqrs::prelude::*;
use cqrs::scope::{OutboxUnit, UnitOfWorkFactory};
use cqrs::{MemoryBroker, Message, UnitOfWork};
use serde::Serialize;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgPool, PgPoolOptions};
use uuid::Uuid;

type BoxError = Box<dyn Error + Send + Sync>;

const LIMIT: Duration = Duration::from_secs(60);

/// What the test needs of a driver.
trait Driver: UnitOfWorkFactory<Unit: OutboxUnit> + Sized {
    /// A pool of one connection to `url`. Its relay is that of `outbox`.
    fn connect(url: &str, outbox: &PostgresOutbox) -> impl Future<Output = Self>;

    /// Runs a statement in a transaction.
    fn execute(
        unit: &mut Self::Unit,
        sql: &'static str,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;
}

impl Driver for outbox_drivers::tokio_postgres::Database {
    async fn connect(url: &str, outbox: &PostgresOutbox) -> Self {
        let manager = outbox_drivers::tokio_postgres::Manager(url.parse().unwrap());
        let pool = bb8::Pool::builder().max_size(1).build(manager).await.unwrap();
        Self { pool, tables: Tables::default(), wakeup: Some(outbox.wakeup().clone()) }
    }

    async fn execute(unit: &mut Self::Unit, sql: &'static str) -> Result<(), BoxError> {
        Ok(unit.client().batch_execute(sql).await?)
    }
}

impl Driver for outbox_drivers::diesel_async::Database {
    async fn connect(url: &str, outbox: &PostgresOutbox) -> Self {
        use diesel_async::pooled_connection::AsyncDieselConnectionManager;
        let manager = AsyncDieselConnectionManager::new(url);
        let pool = bb8::Pool::builder().max_size(1).build(manager).await.unwrap();
        Self { pool, tables: Tables::default(), wakeup: Some(outbox.wakeup().clone()) }
    }

    async fn execute(unit: &mut Self::Unit, sql: &'static str) -> Result<(), BoxError> {
        use diesel_async::RunQueryDsl;
        diesel::sql_query(sql).execute(unit.connection()).await?;
        Ok(())
    }
}

impl Driver for outbox_drivers::sea_orm::Database {
    async fn connect(url: &str, outbox: &PostgresOutbox) -> Self {
        let mut options = sea_orm::ConnectOptions::new(url);
        options.max_connections(1);
        let connection = sea_orm::Database::connect(options).await.unwrap();
        Self { connection, tables: Tables::default(), wakeup: Some(outbox.wakeup().clone()) }
    }

    async fn execute(unit: &mut Self::Unit, sql: &'static str) -> Result<(), BoxError> {
        use sea_orm::ConnectionTrait;
        unit.connection().execute_unprepared(sql).await?;
        Ok(())
    }
}

#[derive(Serialize, Notification)]
#[cqrs(topic = "users", key = "name")]
struct UserAdded {
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    Succeed,
    Fail,
    /// Ignores the error of a statement, and emits nothing.
    IgnoreError,
    /// As that, but emits.
    IgnoreErrorAndEmit,
}

#[derive(Command)]
#[cqrs(error = BoxError)]
struct AddUser(Act);

struct AddUsers<D>(PhantomData<fn(D)>);

impl<D: Driver> RequestHandler<AddUser> for AddUsers<D> {
    async fn handle(&self, AddUser(act): AddUser, scope: &mut Scope) -> Result<(), BoxError> {
        let unit = scope.unit_of_work::<D::Unit>().await?;
        D::execute(unit, "INSERT INTO users VALUES ('ada')").await?;
        if matches!(act, Act::IgnoreError | Act::IgnoreErrorAndEmit) {
            assert!(D::execute(unit, "SELECT 1 / 0").await.is_err());
        }
        if act != Act::IgnoreError {
            scope.emit(UserAdded { name: "ada".to_owned() });
        }
        if act == Act::Fail { Err("not today".into()) } else { Ok(()) }
    }
}

/// A schema of its own with the outbox's tables and a table `users`.
struct Fixture {
    schema: String,
    url: String,
    pool: PgPool,
    outbox: PostgresOutbox,
}

impl Fixture {
    async fn new() -> Self {
        let server = std::env::var("CQRS_TEST_POSTGRES")
            .unwrap_or_else(|_| "postgres://cqrs:cqrs@localhost:5432/cqrs".to_owned());
        let schema = format!("test_{}", Uuid::now_v7().simple());
        let url = format!("{server}?options=-c%20search_path%3D{schema}");
        let pool = PgPoolOptions::new().max_connections(4).connect(&url).await;
        let pool = pool.expect("PostgreSQL: start it with `scripts/brokers up postgres`");
        let outbox = PostgresOutbox::new(pool.clone());
        let fixture = Self { schema, url, pool, outbox };
        fixture.sql(format!("CREATE SCHEMA {}", fixture.schema)).await;
        fixture.outbox.migrate().await.unwrap();
        fixture.sql("CREATE TABLE users (name text NOT NULL)").await;
        fixture
    }

    async fn sql(&self, sql: impl Into<String>) {
        sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(&self.pool).await.unwrap();
    }

    async fn count(&self, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }

    /// What a relay publishes of the stored rows, in order.
    async fn published(&self, topic: &str, count: usize) -> Vec<Message> {
        let broker = MemoryBroker::new();
        let relay = Relay::builder(&self.outbox, broker.clone()).build().unwrap();
        let (handle, running) = (relay.handle(), tokio::spawn(relay.run()));
        let drained = async {
            while self.count("cqrs_outbox").await + self.count("cqrs_outbox_parked").await > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, drained).await.expect("all rows are published");
        handle.stop();
        running.await.unwrap();
        let messages = broker.messages(topic);
        assert_eq!(messages.len(), count);
        messages
    }

    async fn drop(self) {
        self.sql(format!("DROP SCHEMA {} CASCADE", self.schema)).await;
    }
}

fn mediator<D: Driver>(database: D) -> Mediator {
    let handler = AddUsers::<D>(PhantomData);
    Mediator::builder().handle::<AddUser, _>(handler).outbox(database).build().unwrap()
}

async fn only_committed_transactions_are_stored<D: Driver>() {
    let fixture = Fixture::new().await;
    let mediator = mediator(D::connect(&fixture.url, &fixture.outbox).await);
    for act in [Act::Fail, Act::IgnoreError, Act::IgnoreErrorAndEmit] {
        let error = mediator.send(AddUser(act)).await.unwrap_err();
        assert!(error.is_rolled_back(), "{act:?}: {error:?}");
    }
    assert_eq!((fixture.count("users").await, fixture.count("cqrs_outbox").await), (0, 0));
    mediator.send(AddUser(Act::Succeed)).await.unwrap();
    assert_eq!((fixture.count("users").await, fixture.count("cqrs_outbox").await), (1, 1));
    let published = fixture.published("users", 1).await;
    let body = String::from_utf8_lossy(&published[0].body);
    assert!(body.contains(r#""payload":{"name":"ada"}"#), "{body}");
    assert_eq!(&*published[0].name, "UserAdded");
    assert_eq!(published[0].key.as_deref(), Some(&b"ada"[..]));
    fixture.drop().await;
}

async fn dropped_transaction_is_rolled_back<D: Driver>() {
    let fixture = Fixture::new().await;
    let database = D::connect(&fixture.url, &fixture.outbox).await;
    let mut unit = database.begin().await.unwrap();
    D::execute(&mut unit, "INSERT INTO users VALUES ('ada')").await.unwrap();
    unit.put(&[Message::new("users", "{}")]).await.unwrap();
    drop(unit);
    // Waits for the lock of the dropped transaction, which the database ends.
    let unlocked = fixture.sql("BEGIN; LOCK TABLE users; COMMIT");
    tokio::time::timeout(LIMIT, unlocked).await.expect("the transaction has ended");
    assert_eq!((fixture.count("users").await, fixture.count("cqrs_outbox").await), (0, 0));
    // The only connection of the pool is usable, and in no transaction.
    let unit = database.begin().await.unwrap();
    unit.rollback().await.unwrap();
    let mut unit = database.begin().await.unwrap();
    unit.put(&[Message::new("users", "{}")]).await.unwrap();
    unit.commit().await.unwrap();
    assert_eq!(fixture.count("cqrs_outbox").await, 1);
    fixture.drop().await;
}

/// 1,000 messages of one key, of which some lack what may be missing.
fn messages() -> Vec<Message> {
    let mut headers = Headers::new();
    headers.insert("zone", "first, with é").unwrap();
    headers.insert_bytes("raw", vec![0, 0xff]).unwrap();
    let message = |number: usize| {
        let mut message = Message::new("users", number.to_string())
            .with_key(vec![0, 0xff])
            .with_name("UserAdded")
            .with_mandatory(!number.is_multiple_of(3));
        if number.is_multiple_of(2) {
            message = message.with_headers(headers.clone());
        }
        if number.is_multiple_of(5) {
            message = message.with_content_type("text/plain");
        }
        message
    };
    (0..1_000).map(message).collect()
}

async fn rows_are_published_as_they_were_written<D: Driver>() {
    let fixture = Fixture::new().await;
    let database = D::connect(&fixture.url, &fixture.outbox).await;
    let mut written = messages();
    let mut unit = database.begin().await.unwrap();
    unit.put(&written).await.unwrap();
    unit.commit().await.unwrap();
    let published = fixture.published("users", written.len()).await;
    for (message, published) in written.iter_mut().zip(&published) {
        // The table keeps microseconds.
        let lost = message.timestamp.duration_since(published.timestamp).unwrap();
        assert!(lost < Duration::from_micros(1), "{lost:?}");
        message.timestamp = published.timestamp;
        assert_eq!(message, published);
    }

    // Without a key, which fits no order.
    let mut unit = database.begin().await.unwrap();
    unit.put(&[Message::new("keyless", "{}")]).await.unwrap();
    unit.commit().await.unwrap();
    assert_eq!(fixture.published("keyless", 1).await[0].key, None);
    fixture.drop().await;
}

macro_rules! conformance {
    ($($driver:ident)+) => {
        $(
            mod $driver {
                type Database = outbox_drivers::$driver::Database;

                #[tokio::test]
                async fn only_committed_transactions_are_stored() {
                    crate::only_committed_transactions_are_stored::<Database>().await;
                }

                #[tokio::test]
                async fn dropped_transaction_is_rolled_back() {
                    crate::dropped_transaction_is_rolled_back::<Database>().await;
                }

                #[tokio::test]
                async fn rows_are_published_as_they_were_written() {
                    crate::rows_are_published_as_they_were_written::<Database>().await;
                }
            }
        )+
    };
}

/// Apart, as the modules have names of crates.
mod drivers {
    conformance! { tokio_postgres diesel_async sea_orm }
}
