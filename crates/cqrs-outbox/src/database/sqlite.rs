//! The statements of SQLite.

use sqlx::{AssertSqlSafe, Error, Sqlite, SqliteConnection, SqlitePool};
use uuid::Uuid;

use super::Backend;
use crate::migrate::Migration;
use crate::row::NewRow;
use crate::tables::{Columns, Dialect, Tables};

/// SQLite allows 32,766 parameters in a statement; a row has up to eleven.
const MAX_ROWS: usize = 2_900;

impl Backend for Sqlite {
    const DIALECT: Dialect = Dialect::Sqlite;
    const MIGRATIONS: &'static [Migration] = Migration::SQLITE;
    /// Takes the write lock at the start: a transaction that reads first cannot wait for it later.
    const BEGIN: &'static str = "BEGIN IMMEDIATE";
    const INSERT_NEEDS_TRANSACTION: bool = true;

    async fn insert(
        connection: &mut SqliteConnection,
        tables: &Tables,
        rows: &[NewRow<'_>],
        _locks: &[i32],
    ) -> Result<(), Error> {
        let columns = Columns { is_compressed: NewRow::is_any_compressed(rows), has_locks: false };
        for rows in rows.chunks(MAX_ROWS) {
            let sql = tables.insert_with(Dialect::Sqlite, rows.len(), columns);
            let sql = AssertSqlSafe(sql);
            // The text depends on the number of rows: only the most frequent ones stay prepared.
            let mut query = sqlx::query(sql).persistent(rows.len() <= 4);
            for row in rows {
                query = query
                    .bind(row.lane)
                    .bind(row.event_id)
                    .bind(row.name)
                    .bind(row.topic)
                    .bind(row.key)
                    .bind(row.content_type)
                    .bind(row.headers.as_deref())
                    .bind(row.body)
                    .bind(row.occurred_at)
                    .bind(row.mandatory);
                if columns.is_compressed {
                    query = query.bind(row.uncompressed_size);
                }
            }
            query.execute(&mut *connection).await?;
        }
        Ok(())
    }

    async fn mark(
        connection: &mut SqliteConnection,
        tables: &Tables,
        consumer: &str,
        message_id: Uuid,
    ) -> Result<bool, Error> {
        let sql = tables.render(
            "INSERT INTO {t}inbox (consumer, message_id) VALUES (?, ?) ON CONFLICT DO NOTHING",
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(consumer).bind(message_id);
        Ok(query.execute(connection).await?.rows_affected() == 1)
    }

    async fn purge(
        pool: &SqlitePool,
        tables: &Tables,
        age_micros: i64,
        limit: i64,
    ) -> Result<u64, Error> {
        let sql = tables.render(
            "DELETE FROM {t}inbox WHERE (consumer, message_id) IN (SELECT consumer, message_id \
             FROM {t}inbox WHERE seen_at < CAST(unixepoch('subsec') * 1000000 AS INTEGER) - ? \
             ORDER BY seen_at LIMIT ?)",
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(age_micros).bind(limit);
        Ok(query.execute(pool).await?.rows_affected())
    }

    /// SQLite's `COMMIT` fails itself if there is no transaction any more.
    async fn check_open(_connection: &mut SqliteConnection) -> Result<(), Error> {
        Ok(())
    }

    fn has_ended(_error: &Error) -> bool {
        false
    }

    /// A commit that fails leaves the transaction open; dropping it rolls back.
    fn is_certain(error: &Error) -> bool {
        matches!(error, Error::Database(_))
    }

    async fn migrate(pool: &SqlitePool, tables: &Tables) -> Result<(), Error> {
        let mut tx = pool.begin_with(Self::BEGIN).await?;
        let sql = tables.render(
            "CREATE TABLE IF NOT EXISTS {t}migrations (version INTEGER PRIMARY KEY, name TEXT NOT NULL, \
             applied_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER))) STRICT",
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await?;
        let sql = tables.render("SELECT coalesce(max(version), 0) FROM {t}migrations");
        let applied: i32 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *tx).await?;
        for migration in Self::MIGRATIONS.iter().filter(|migration| migration.version > applied) {
            let sql = tables.render(migration.template);
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await?;
            let sql = tables.render("INSERT INTO {t}migrations (version, name) VALUES (?, ?)");
            let query =
                sqlx::query(AssertSqlSafe(sql)).bind(migration.version).bind(migration.name);
            query.execute(&mut *tx).await?;
        }
        tx.commit().await
    }
}
