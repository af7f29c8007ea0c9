//! PostgreSQL for the tests of the outbox: what only this database has.

use cqrs_outbox::Tables;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, PgPool, Postgres};

use crate::{database, servers};

/// The options of a connection to the server, with `schema` as the only one in the search path.
pub fn options(schema: &str) -> PgConnectOptions {
    let url = servers::postgres();
    let options: PgConnectOptions = url.parse().expect("CQRS_TEST_POSTGRES");
    options.options([("search_path", schema)])
}

/// A schema of PostgreSQL.
pub type Schema = database::Schema<Postgres>;

impl Schema {
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
}

/// Runs a statement.
pub async fn execute(pool: &PgPool, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.expect("a statement");
}
