//! The operators' statements on SQLite.

use bytes::Bytes;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Error, Row as _, Sqlite};

use super::filter::FailedFilter;
use super::{
    COUNTING, DeadCount, Operations, Owner, PURGING, READING, READING_RELAYS, REPLAYED, REPLAYING,
    error, owners_of, owners_sql,
};
use crate::error::OutboxError;
use crate::outbox::Outbox;
use crate::relay::failed::{FailedRow, FailedTable};
use crate::relay::status::Counts;
use crate::row::{body_columns, columns_without_body, read_body};
use crate::tables::Dialect;

/// The present time, in microseconds.
const NOW: &str = "CAST(unixepoch('subsec') * 1000000 AS INTEGER)";

impl Operations for Sqlite {
    async fn counts(outbox: &Outbox<Self>) -> Result<Counts, OutboxError> {
        let sql = outbox.tables().render(&format!(
            "SELECT (SELECT count(*) FROM {{t}}outbox), \
             (SELECT {NOW} - created_at FROM {{t}}outbox ORDER BY id LIMIT 1), \
             (SELECT count(*) FROM {{t}}outbox_parked), (SELECT count(*) FROM {{t}}outbox_dead)"
        ));
        let (pending, oldest_micros, parked, dead) = sqlx::query_as(AssertSqlSafe(sql))
            .fetch_one(outbox.pool())
            .await
            .map_err(error(COUNTING))?;
        Ok(Counts { pending, oldest_micros, parked, dead, history: None })
    }

    async fn owners(outbox: &Outbox<Self>) -> Result<Vec<Owner>, OutboxError> {
        let sql = outbox.tables().render(&owners_sql(NOW));
        let query = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(outbox.pool());
        Ok(owners_of(query.await.map_err(error(READING_RELAYS))?))
    }

    async fn failed_rows(
        outbox: &Outbox<Self>,
        table: FailedTable,
        filter: &FailedFilter,
        after: i64,
        limit: u32,
    ) -> Result<Vec<FailedRow>, OutboxError> {
        let (name, at) = (table.name(), table.time());
        let sql = outbox.tables().render(&format!(
            "SELECT {}, coalesce(r.uncompressed_size, length(r.body)) AS size, r.attempts, r.last_error, r.created_at, \
             r.first_failed_at, r.{at} AS at FROM {{t}}{name} r WHERE {} AND r.id > ?8 \
             ORDER BY r.id, r.event_id LIMIT ?9",
            columns_without_body(Dialect::Sqlite),
            conditions(table),
        ));
        let query = bind(sqlx::query(AssertSqlSafe(sql)), filter);
        let query = query.bind(after).bind(limit).try_map(|row| FailedRow::read(&row));
        query.fetch_all(outbox.pool()).await.map_err(error(READING))
    }

    async fn failed_body(
        outbox: &Outbox<Self>,
        table: FailedTable,
        row: &FailedRow,
    ) -> Result<Option<Bytes>, OutboxError> {
        let sql = outbox.tables().render(&format!(
            "SELECT {} FROM {{t}}{} r WHERE r.id = ? AND r.event_id = ?",
            body_columns(Dialect::Sqlite),
            table.name()
        ));
        let query = sqlx::query(AssertSqlSafe(sql)).bind(row.id).bind(row.event_id);
        let body = query.try_map(|row| read_body(&row)).fetch_optional(outbox.pool()).await;
        Ok(body.map_err(error(READING))?.map(Bytes::from))
    }

    async fn count_dead(
        outbox: &Outbox<Self>,
        filter: &FailedFilter,
    ) -> Result<DeadCount, OutboxError> {
        let sql = outbox.tables().render(&format!(
            "SELECT count(*), max(r.id), {NOW} FROM {{t}}outbox_dead r WHERE {}",
            conditions(FailedTable::Dead),
        ));
        let query = bind(sqlx::query(AssertSqlSafe(sql)), filter);
        let query = query.try_map(|row: SqliteRow| {
            Ok(DeadCount { rows: row.try_get(0)?, last_id: row.try_get(1)?, at: row.try_get(2)? })
        });
        query.fetch_one(outbox.pool()).await.map_err(error(COUNTING))
    }

    async fn replay_dead(
        outbox: &Outbox<Self>,
        filter: &FailedFilter,
        limit: u32,
    ) -> Result<u64, OutboxError> {
        let insert = format!(
            "INSERT INTO {{t}}outbox ({REPLAYED}) SELECT {REPLAYED} FROM {{t}}outbox_dead \
             WHERE rowid IN ({}) ORDER BY id",
            chosen()
        );
        change(outbox, filter, limit, &[insert, delete()]).await.map_err(error(REPLAYING))
    }

    async fn purge_dead(
        outbox: &Outbox<Self>,
        filter: &FailedFilter,
        limit: u32,
    ) -> Result<u64, OutboxError> {
        change(outbox, filter, limit, &[delete()]).await.map_err(error(PURGING))
    }
}

/// The conditions of a filter on a table with the alias `r`, with the parameters of [`bind`].
fn conditions(table: FailedTable) -> String {
    let since = table.since();
    format!(
        "(?1 IS NULL OR r.id IN (SELECT value FROM json_each(?1))) AND (?2 IS NULL OR r.topic = ?2) \
         AND (?3 IS NULL OR r.name = ?3) AND (?4 IS NULL OR instr(r.last_error, ?4) > 0) \
         AND (?5 IS NULL OR r.id <= ?5) AND (?6 IS NULL OR r.{since} < coalesce(?7, {NOW}) - ?6) \
         AND (?7 IS NULL OR r.{since} <= ?7)"
    )
}

fn bind<'q>(
    query: Query<'q, Sqlite, SqliteArguments>,
    filter: &'q FailedFilter,
) -> Query<'q, Sqlite, SqliteArguments> {
    query
        .bind(filter.ids.as_ref().map(Json))
        .bind(filter.topic.as_deref())
        .bind(filter.name.as_deref())
        .bind(filter.error.as_deref())
        .bind(filter.up_to)
        .bind(filter.age_micros())
        .bind(filter.as_of_micros())
}

/// The row numbers of the dead rows that a change is about.
fn chosen() -> String {
    format!(
        "SELECT r.rowid FROM {{t}}outbox_dead r WHERE {} ORDER BY r.id, r.event_id LIMIT ?8",
        conditions(FailedTable::Dead)
    )
}

fn delete() -> String {
    format!("DELETE FROM {{t}}outbox_dead WHERE rowid IN ({})", chosen())
}

/// Runs statements about the [`chosen`] rows in one transaction, whose write lock keeps others from changing
/// these in between. The number of rows of the last statement.
async fn change(
    outbox: &Outbox<Sqlite>,
    filter: &FailedFilter,
    limit: u32,
    statements: &[String],
) -> Result<u64, Error> {
    let mut changed = 0;
    let mut tx = outbox.pool().begin_with("BEGIN IMMEDIATE").await?;
    for sql in statements {
        let query = sqlx::query(AssertSqlSafe(outbox.tables().render(sql)));
        let done = bind(query, filter).bind(limit).execute(&mut *tx).await?;
        changed = done.rows_affected();
    }
    tx.commit().await?;
    Ok(changed)
}
