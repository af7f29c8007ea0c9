//! PostgreSQL for the tests of the outbox: a schema of its own for each test.

use std::net::SocketAddr;

use cqrs_outbox::{PostgresOutbox, Tables};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::servers;

/// The options of a connection to the server, with `schema` as the only one in the search path.
pub fn options(schema: &str) -> PgConnectOptions {
    let url = servers::postgres();
    let options: PgConnectOptions = url.parse().expect("CQRS_TEST_POSTGRES");
    options.options([("search_path", schema)])
}

/// A new schema and a pool whose connections see only that one.
#[derive(Debug)]
pub struct Schema {
    /// The schema's name.
    pub name: String,
    /// A pool of up to 16 connections.
    pub pool: PgPool,
    /// The outbox in this schema, migrated.
    pub outbox: PostgresOutbox,
}

impl Schema {
    /// Creates the schema and the tables of the outbox.
    pub async fn new() -> Self {
        let name = format!("test_{}", Uuid::now_v7().simple());
        let pool = pool(options(&name)).await;
        execute(&pool, format!("CREATE SCHEMA {name}")).await;
        let outbox = PostgresOutbox::new(pool.clone());
        outbox.migrate().await.expect("migrations");
        Self { name, pool, outbox }
    }

    /// A pool whose connections go through a proxy at `address`.
    pub async fn pool_through(&self, address: SocketAddr) -> PgPool {
        let host = address.ip().to_string();
        pool(options(&self.name).host(&host).port(address.port())).await
    }

    /// The outbox with its tables named by schema, for connections without a search path.
    pub fn tables(&self) -> Tables {
        Tables::default().with_schema(&self.name).expect("a valid name")
    }

    /// The first column of a query's rows.
    pub async fn column<T>(&self, sql: &'static str) -> Vec<T>
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        sqlx::query_scalar(sql).fetch_all(&self.pool).await.expect("a query")
    }

    /// Drops the schema. That of a failed test stays, to be looked at.
    pub async fn drop(self) {
        execute(&self.pool, format!("DROP SCHEMA {} CASCADE", self.name)).await;
    }
}

/// Runs a statement.
pub async fn execute(pool: &PgPool, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.expect("a statement");
}

async fn pool(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new().max_connections(16).connect_with(options).await.expect("PostgreSQL")
}
