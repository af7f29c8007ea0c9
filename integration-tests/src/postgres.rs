//! PostgreSQL for the tests of the outbox: what only this database has.

use cqrs_outbox::Tables;
use sqlx::{AssertSqlSafe, PgPool, Postgres};

use crate::database;
pub use crate::servers::postgres_options as options;

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
