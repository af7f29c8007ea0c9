//! The statements of PostgreSQL.

use sqlx::{AssertSqlSafe, Error, PgConnection, PgPool, Postgres};
use uuid::Uuid;

use super::Backend;
use crate::migrate::Migration;
use crate::outbox::Outbox;
use crate::row::NewRow;
use crate::tables::{Columns, Dialect, Tables};

impl Backend for Postgres {
    const DIALECT: Dialect = Dialect::Postgres;
    const MIGRATIONS: &'static [Migration] = Migration::POSTGRES;
    const BEGIN: &'static str = "BEGIN";
    const INSERT_NEEDS_TRANSACTION: bool = true;

    async fn insert(
        connection: &mut PgConnection,
        tables: &Tables,
        rows: &[NewRow<'_>],
        locks: &[i32],
    ) -> Result<(), Error> {
        /// One column of all rows.
        fn column<'r, T>(rows: &'r [NewRow<'_>], value: impl Fn(&'r NewRow<'_>) -> T) -> Vec<T> {
            rows.iter().map(value).collect()
        }
        let is_compressed = NewRow::is_any_compressed(rows);
        let columns = Columns { is_compressed, has_locks: !locks.is_empty() };
        let sql = tables.insert_with(Dialect::Postgres, rows.len(), columns);
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(column(rows, |row| row.lane))
            .bind(column(rows, |row| row.event_id))
            .bind(column(rows, |row| row.name))
            .bind(column(rows, |row| row.topic))
            .bind(column(rows, |row| row.key))
            .bind(column(rows, |row| row.content_type))
            .bind(column(rows, |row| row.headers.as_deref()))
            .bind(column(rows, |row| row.body))
            .bind(column(rows, |row| row.occurred_at))
            .bind(column(rows, |row| row.mandatory));
        let query = match is_compressed {
            true => query.bind(column(rows, |row| row.uncompressed_size)),
            false => query,
        };
        let query = if locks.is_empty() { query } else { query.bind(locks) };
        query.execute(connection).await?;
        Ok(())
    }

    async fn mark(
        connection: &mut PgConnection,
        tables: &Tables,
        consumer: &str,
        message_id: Uuid,
    ) -> Result<bool, Error> {
        let sql = tables.render(
            "INSERT INTO {t}inbox (consumer, message_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(consumer).bind(message_id);
        Ok(query.execute(connection).await?.rows_affected() == 1)
    }

    async fn purge(
        pool: &PgPool,
        tables: &Tables,
        age_micros: i64,
        limit: i64,
    ) -> Result<u64, Error> {
        let sql = tables.render(
            "DELETE FROM {t}inbox WHERE ctid = ANY (ARRAY (SELECT ctid FROM {t}inbox \
             WHERE seen_at < now() - $1 * interval '1 microsecond' ORDER BY seen_at LIMIT $2 \
             FOR UPDATE SKIP LOCKED))",
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(age_micros).bind(limit);
        Ok(query.execute(pool).await?.rows_affected())
    }

    /// PostgreSQL answers `COMMIT` of a failed transaction with a rollback and no error.
    async fn check_open(connection: &mut PgConnection) -> Result<(), Error> {
        sqlx::query("SELECT 1").execute(connection).await?;
        Ok(())
    }

    /// It rolls back a failed transaction.
    fn has_ended(_error: &Error) -> bool {
        false
    }

    fn is_certain(error: &Error) -> bool {
        let Error::Database(error) = error else { return false };
        error.code().is_some_and(|code| {
            // Connection exceptions, statement_completion_unknown, operator intervention (a shutdown
            // while the commit waits for a replica), internal errors.
            let is_unknown = code.starts_with("08")
                || code.starts_with("57")
                || code.starts_with("XX")
                || code == "40003";
            !is_unknown
        })
    }

    async fn migrate(pool: &PgPool, tables: &Tables) -> Result<(), Error> {
        let mut tx = pool.begin().await?;
        let versions = tables.name("migrations");
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
            .bind(&versions)
            .execute(&mut *tx)
            .await?;
        // Not `to_regclass` alone: a session remembers names that it did not find, and looks again only when it locks a
        // table, which the wait above is not.
        let is_there: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = to_regclass($1))",
        )
        .bind(&versions)
        .fetch_one(&mut *tx)
        .await?;
        if !is_there {
            if let Some(schema) = tables.schema() {
                create_schema(&mut tx, schema).await?;
            }
            let sql = tables.render(
                "CREATE TABLE {t}migrations (version int PRIMARY KEY, name text NOT NULL, \
                 applied_at timestamptz NOT NULL DEFAULT now())",
            );
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await?;
        }
        let sql = tables.render("SELECT coalesce(max(version), 0) FROM {t}migrations");
        let applied: i32 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *tx).await?;
        for migration in Self::MIGRATIONS.iter().filter(|migration| migration.version > applied) {
            let sql = tables.render(migration.template);
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await?;
            let sql = tables.render("INSERT INTO {t}migrations (version, name) VALUES ($1, $2)");
            let query =
                sqlx::query(AssertSqlSafe(sql)).bind(migration.version).bind(migration.name);
            query.execute(&mut *tx).await?;
        }
        tx.commit().await
    }
}

/// What PostgreSQL alone has.
impl Outbox<Postgres> {
    /// Makes the writers of a key wait for each other, so that its rows are published in the order of their commits
    /// although these writers lock no row of their own. Off by default.
    ///
    /// Before a row gets its id its transaction takes an advisory lock of its topic and key, which it holds until it ends.
    /// A second writer of the key waits that long, in the insert of its event: write events last, and commit soon. A
    /// `lock_timeout` of the session bounds the wait. It costs no statement more, and the server one entry of its lock
    /// table for each key of a transaction (`max_locks_per_transaction`).
    ///
    /// Only writers that all have this setting wait for each other: each process, and no [`Tables::insert`] of another
    /// driver. The locks of one call are taken in one order, which leaves no deadlock. A transaction that writes events
    /// in several calls of [`put`](Self::put) or [`add`](Self::add) may end by a deadlock: the error is
    /// [`Conflict`](crate::OutboxErrorKind::Conflict), and retryable. A unit of work writes its events in one call.
    ///
    /// SQLite has one writer, and does not need it. MySQL has no lock that ends with the transaction: there, and where
    /// a wait in the insert is too late, lock a row of your own first (`SELECT .. FOR UPDATE`).
    #[must_use]
    pub fn lock_keys(self) -> Self {
        self.with_writing(|writing| writing.locks_keys = true)
    }
}

/// Not `IF NOT EXISTS`, which asks for the right to create one even if it exists.
async fn create_schema(connection: &mut PgConnection, schema: &str) -> Result<(), Error> {
    let is_there: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)")
            .bind(schema)
            .fetch_one(&mut *connection)
            .await?;
    if !is_there {
        let sql = format!("CREATE SCHEMA \"{schema}\"");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    }
    Ok(())
}
