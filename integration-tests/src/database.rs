//! The databases of the outbox's tests: a schema of its own for each test, on PostgreSQL or MariaDB.

use std::net::SocketAddr;

use cqrs_outbox::{Outbox, RelayDatabase};
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlPoolOptions};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, Error, MySql, PgConnection, Pool, Postgres};
use uuid::Uuid;

use crate::servers;

/// The options of a connection.
pub type Options<DB> = <<DB as sqlx::Database>::Connection as Connection>::Options;

/// A database that the tests of the outbox run on. A pool has up to 16 connections.
pub trait TestDatabase: RelayDatabase + Sync {
    /// Its server in `scripts/brokers`.
    const SERVER: &'static str;

    /// Drops a schema with all that is in it, if it is there.
    const DROP: &'static str;

    /// The number of the connection.
    const CONNECTION: &'static str;

    /// The number of statements that wait for a lock of the inbox.
    const WAITING: &'static str;

    /// The present time, as the tables have it.
    const NOW: &'static str;

    /// The bytes of a stored body, as a number.
    const BODY_SIZE: &'static str;

    /// A day, to be subtracted from a time of the tables.
    const DAY: &'static str;

    /// A UUID in SQL.
    fn uuid(id: Uuid) -> String;

    /// The numbers of the connections that hold the sessions of relays.
    const SESSIONS: &'static str;

    /// Ends the connection of this number.
    const KILL: &'static str;

    /// Keeps all others from the table `$1` until the connection is closed.
    const LOCK: &'static str;

    /// The number of statements with the text `$1` that wait for such a lock.
    const BLOCKED: &'static str;

    /// The URL of the server.
    fn url() -> String;

    /// The options of a connection that sees only the tables of `schema`.
    fn options(schema: &str) -> Options<Self>;

    /// The server's port.
    fn port() -> u16;

    /// The options, with another address: that of a proxy.
    fn through(options: Options<Self>, address: SocketAddr) -> Options<Self>;

    /// A pool that connects when it is used.
    fn pool(options: Options<Self>) -> Pool<Self>;

    /// Creates a schema.
    fn create(schema: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Runs statements.
    fn run(
        connection: &mut Self::Connection,
        sql: String,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// The first column of a query's rows.
    fn numbers(
        connection: &mut Self::Connection,
        sql: String,
    ) -> impl Future<Output = Result<Vec<i64>, Error>> + Send;
}

impl TestDatabase for Postgres {
    const SERVER: &'static str = "postgres";
    const DROP: &'static str = "DROP SCHEMA IF EXISTS $1 CASCADE";
    const CONNECTION: &'static str = "SELECT pg_backend_pid()::int8";
    const WAITING: &'static str = "SELECT count(*) FROM pg_stat_activity \
                                   WHERE wait_event_type = 'Lock' AND query LIKE '%cqrs_inbox%' \
                                   AND query NOT LIKE '%pg_stat_activity%'";
    const NOW: &'static str = "now()";
    const BODY_SIZE: &'static str = "octet_length(body)::int8";
    const DAY: &'static str = "interval '1 day'";
    const SESSIONS: &'static str = "SELECT pid::int8 FROM pg_locks WHERE locktype = 'advisory' \
                                    AND classid = 'cqrs_outbox_relay'::regclass::oid";
    const KILL: &'static str = "SELECT pg_terminate_backend($1)";
    const LOCK: &'static str = "BEGIN; LOCK TABLE $1 IN ACCESS EXCLUSIVE MODE";
    const BLOCKED: &'static str = "SELECT count(*) FROM pg_stat_activity \
                                   WHERE wait_event_type = 'Lock' AND query LIKE '%$1%'";

    fn url() -> String {
        servers::postgres()
    }

    fn uuid(id: Uuid) -> String {
        format!("'{id}'")
    }

    fn options(schema: &str) -> Options<Self> {
        servers::postgres_options(schema)
    }

    fn port() -> u16 {
        servers::postgres_options("").get_port()
    }

    fn through(options: Options<Self>, address: SocketAddr) -> Options<Self> {
        options.host(&address.ip().to_string()).port(address.port())
    }

    fn pool(options: Options<Self>) -> Pool<Self> {
        PgPoolOptions::new().max_connections(16).connect_lazy_with(options)
    }

    async fn create(schema: &str) -> Result<(), Error> {
        let mut connection = PgConnection::connect_with(&Self::options(schema)).await?;
        Self::run(&mut connection, format!("CREATE SCHEMA {schema}")).await
    }

    async fn run(connection: &mut PgConnection, sql: String) -> Result<(), Error> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
    }

    async fn numbers(connection: &mut PgConnection, sql: String) -> Result<Vec<i64>, Error> {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(connection).await
    }
}

impl TestDatabase for MySql {
    const SERVER: &'static str = "mariadb";
    const DROP: &'static str = "DROP DATABASE IF EXISTS $1";
    const CONNECTION: &'static str = "SELECT CAST(CONNECTION_ID() AS SIGNED)";
    const WAITING: &'static str = "SELECT count(*) FROM information_schema.processlist \
                                   WHERE db = DATABASE() AND info LIKE 'INSERT INTO cqrs_inbox%'";
    const NOW: &'static str = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))";
    const BODY_SIZE: &'static str = "CAST(LENGTH(body) AS SIGNED)";
    const DAY: &'static str = "86400000000";
    const SESSIONS: &'static str = "SELECT s.id FROM (SELECT CAST(IS_USED_LOCK(CONCAT('cqrs_relay_', \
                                    LOWER(HEX(id)))) AS SIGNED) AS id FROM cqrs_outbox_relay) s \
                                    WHERE s.id IS NOT NULL";
    const KILL: &'static str = "KILL $1";
    const LOCK: &'static str = "LOCK TABLES $1 WRITE";
    const BLOCKED: &'static str = "SELECT count(*) FROM information_schema.processlist \
                                   WHERE state LIKE 'Waiting for table metadata lock%' \
                                   AND info LIKE '%$1%'";

    fn url() -> String {
        servers::mariadb()
    }

    fn uuid(id: Uuid) -> String {
        format!("0x{}", id.simple())
    }

    fn options(schema: &str) -> Options<Self> {
        let options: MySqlConnectOptions = servers::mariadb().parse().expect("CQRS_TEST_MARIADB");
        options.database(schema)
    }

    fn port() -> u16 {
        Self::options("").get_port()
    }

    fn through(options: Options<Self>, address: SocketAddr) -> Options<Self> {
        options.host(&address.ip().to_string()).port(address.port())
    }

    fn pool(options: Options<Self>) -> Pool<Self> {
        MySqlPoolOptions::new().max_connections(16).connect_lazy_with(options)
    }

    async fn create(schema: &str) -> Result<(), Error> {
        let options = servers::mariadb().parse::<MySqlConnectOptions>()?;
        let mut connection = MySqlConnection::connect_with(&options).await?;
        Self::run(&mut connection, format!("CREATE DATABASE {schema}")).await
    }

    async fn run(connection: &mut MySqlConnection, sql: String) -> Result<(), Error> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
    }

    async fn numbers(connection: &mut MySqlConnection, sql: String) -> Result<Vec<i64>, Error> {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(connection).await
    }
}

/// A new schema and a pool whose connections see only that one.
#[derive(Debug)]
pub struct Schema<DB: TestDatabase> {
    /// The schema's name.
    pub name: String,
    /// A pool of up to 16 connections.
    pub pool: Pool<DB>,
    /// The outbox in this schema, migrated.
    pub outbox: Outbox<DB>,
}

impl<DB: TestDatabase> Schema<DB> {
    /// Creates the schema and the tables of the outbox.
    pub async fn new() -> Self {
        let name = format!("test_{}", Uuid::now_v7().simple());
        DB::create(&name).await.expect("a new schema");
        let pool = DB::pool(DB::options(&name));
        let outbox = Outbox::new(pool.clone());
        outbox.migrate().await.expect("migrations");
        Self { name, pool, outbox }
    }

    /// A pool whose connections go through a proxy at `address`.
    pub fn pool_through(&self, address: SocketAddr) -> Pool<DB> {
        DB::pool(DB::through(DB::options(&self.name), address))
    }

    /// Runs statements.
    pub async fn run(&self, sql: impl Into<String>) {
        let mut connection = self.pool.acquire().await.expect("a connection");
        DB::run(&mut connection, sql.into()).await.expect("a statement");
    }

    /// The first column of a query's rows.
    pub async fn numbers(&self, sql: impl Into<String>) -> Vec<i64> {
        self.try_numbers(sql).await.expect("a query")
    }

    /// As [`numbers`](Self::numbers), on a server that may be away.
    pub async fn try_numbers(&self, sql: impl Into<String>) -> Result<Vec<i64>, Error> {
        let mut connection = self.pool.acquire().await?;
        DB::numbers(&mut connection, sql.into()).await
    }

    /// Drops the schema. That of a failed test stays, to be looked at.
    pub async fn drop(self) {
        self.run(DB::DROP.replace("$1", &self.name)).await;
    }
}

/// Stamps the tests `$name`, functions of a database, for each of the databases.
#[macro_export]
macro_rules! on_each_database {
    ($($name:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<sqlx::Postgres>().await;
            })*
        }

        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<sqlx::MySql>().await;
            })*
        }
    };
}
