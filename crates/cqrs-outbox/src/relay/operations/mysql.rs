//! The operators' statements on MySQL and MariaDB.

use bytes::Bytes;
use sqlx::{AssertSqlSafe, Error, MySql, QueryBuilder};
use uuid::Uuid;

use super::filter::FailedFilter;
use super::{
    COUNTING, DeadCount, Operations, Owner, PURGING, READING, READING_RELAYS, REPLAYED, REPLAYING,
    error, owners_of, owners_sql,
};
use crate::database::mysql::{BEGIN_READ_COMMITTED, NOW};
use crate::database::mysql_list::{LIST, LISTED, list, numbers};
use crate::error::OutboxError;
use crate::outbox::Outbox;
use crate::relay::failed::{FailedRow, FailedTable};
use crate::relay::status::Counts;
use crate::row::{body_columns, columns_without_body, read_body};
use crate::tables::Dialect;

/// The most rows of one transaction. Their list is one parameter, and `max_allowed_packet` bounds it.
const MOST: u32 = 10_000;

impl Operations for MySql {
    async fn counts(outbox: &Outbox<Self>) -> Result<Counts, OutboxError> {
        // The oldest row of a lane is its first one, more or less: no need to read them all.
        let sql = outbox.tables().render(&format!(
            "SELECT (SELECT count(*) FROM {{t}}outbox), \
             (SELECT {NOW} - min(r.created_at) FROM {{t}}outbox_lane l JOIN {{t}}outbox r \
             ON r.lane = l.lane AND r.id = (SELECT min(o.id) FROM {{t}}outbox o WHERE o.lane = l.lane)), \
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
        let columns = format!(
            "{}, COALESCE(r.uncompressed_size, LENGTH(r.body)) AS size, r.attempts, r.last_error, r.created_at, r.first_failed_at, r.{} AS at",
            columns_without_body(Dialect::Mysql),
            table.time(),
        );
        let mut query = select(outbox, &columns, table, filter);
        query.push(" AND r.id > ").push_bind(after);
        query.push(" ORDER BY r.id, r.event_id LIMIT ").push_bind(limit);
        let query = query.build().persistent(false).try_map(|row| FailedRow::read(&row));
        query.fetch_all(outbox.pool()).await.map_err(error(READING))
    }

    async fn failed_body(
        outbox: &Outbox<Self>,
        table: FailedTable,
        row: &FailedRow,
    ) -> Result<Option<Bytes>, OutboxError> {
        let sql = outbox.tables().render(&format!(
            "SELECT {} FROM {{t}}{} r WHERE r.lane = ? AND r.id = ? AND r.event_id = ?",
            body_columns(Dialect::Mysql),
            table.name()
        ));
        let query = sqlx::query(AssertSqlSafe(sql)).bind(row.lane).bind(row.id).bind(row.event_id);
        let body = query.try_map(|row| read_body(&row)).fetch_optional(outbox.pool()).await;
        Ok(body.map_err(error(READING))?.map(Bytes::from))
    }

    async fn count_dead(
        outbox: &Outbox<Self>,
        filter: &FailedFilter,
    ) -> Result<DeadCount, OutboxError> {
        let columns = format!("count(*), max(r.id), {NOW}");
        let mut query = select(outbox, &columns, FailedTable::Dead, filter);
        let query = query.build_query_as().persistent(false);
        let counted = query.fetch_one(outbox.pool()).await;
        let (rows, last_id, at) = counted.map_err(error(COUNTING))?;
        Ok(DeadCount { rows, last_id, at })
    }

    async fn replay_dead(
        outbox: &Outbox<Self>,
        filter: &FailedFilter,
        limit: u32,
    ) -> Result<u64, OutboxError> {
        let columns = REPLAYED.replace("key", "`key`");
        let kept = columns.replace(", ", ", r.");
        let insert = format!(
            "INSERT INTO {{t}}outbox ({columns}) SELECT r.{kept} \
             FROM {LIST} STRAIGHT_JOIN {{t}}outbox_dead {LISTED} ORDER BY r.id"
        );
        change(outbox, filter, limit, Some(insert)).await.map_err(error(REPLAYING))
    }

    async fn purge_dead(
        outbox: &Outbox<Self>,
        filter: &FailedFilter,
        limit: u32,
    ) -> Result<u64, OutboxError> {
        change(outbox, filter, limit, None).await.map_err(error(PURGING))
    }
}

/// Selects `columns` of the rows `r` that meet a filter.
fn select(
    outbox: &Outbox<MySql>,
    columns: &str,
    table: FailedTable,
    filter: &FailedFilter,
) -> QueryBuilder<MySql> {
    let (name, since) = (table.name(), table.since());
    let sql = format!("SELECT {columns} FROM {{t}}{name} r WHERE TRUE");
    let mut query = QueryBuilder::new(outbox.tables().render(&sql));
    match filter.ids.as_deref() {
        None => {}
        // Not an empty list, which is no SQL.
        Some([]) => {
            query.push(" AND FALSE");
        }
        Some(ids) => {
            query.push(format!(" AND r.id IN ({})", numbers(ids.iter())));
        }
    }
    if let Some(topic) = &filter.topic {
        query.push(" AND r.topic = ").push_bind(topic.clone());
    }
    if let Some(name) = &filter.name {
        query.push(" AND r.name = ").push_bind(name.clone());
    }
    if let Some(text) = &filter.error {
        query.push(" AND LOCATE(").push_bind(text.clone()).push(", r.last_error) > 0");
    }
    if let Some(id) = filter.up_to {
        query.push(" AND r.id <= ").push_bind(id);
    }
    let as_of = filter.as_of_micros();
    if let Some(age) = filter.age_micros() {
        let now = as_of.map_or_else(|| NOW.to_owned(), |time| time.to_string());
        query.push(format!(" AND r.{since} < {now} - ")).push_bind(age);
    }
    if let Some(time) = as_of {
        query.push(format!(" AND r.{since} <= ")).push_bind(time);
    }
    query
}

/// Runs `then` about dead rows, and deletes them. Their number.
///
/// They are found without locks: a statement that scans the table would lock all that it meets. Then they are locked by
/// their keys, so that others do not change them in between.
async fn change(
    outbox: &Outbox<MySql>,
    filter: &FailedFilter,
    limit: u32,
    then: Option<String>,
) -> Result<u64, Error> {
    let render = |sql: &str| AssertSqlSafe(outbox.tables().render(sql));
    let lock = format!(
        "SELECT r.lane, r.id, r.event_id FROM {LIST} STRAIGHT_JOIN {{t}}outbox_dead {LISTED} FOR UPDATE"
    );
    let delete = format!("DELETE r FROM {LIST} STRAIGHT_JOIN {{t}}outbox_dead {LISTED}");
    let mut tx = outbox.pool().begin_with(BEGIN_READ_COMMITTED).await?;
    let rows = loop {
        let mut found = select(outbox, "r.lane, r.id, r.event_id", FailedTable::Dead, filter);
        found.push(" ORDER BY r.id LIMIT ").push_bind(limit.min(MOST));
        let found: Vec<(i16, i64, Uuid)> =
            found.build_query_as().persistent(false).fetch_all(&mut *tx).await?;
        if found.is_empty() {
            return Ok(0);
        }
        let query = sqlx::query_as(render(&lock)).bind(list(found.into_iter()));
        let locked: Vec<(i16, i64, Uuid)> = query.fetch_all(&mut *tx).await?;
        // Otherwise others have changed them all, and there may be more.
        if !locked.is_empty() {
            break list(locked.into_iter());
        }
    };
    let mut changed = 0;
    for sql in then.into_iter().chain([delete]) {
        let query = sqlx::query(render(&sql)).bind(&rows);
        changed = query.execute(&mut *tx).await?.rows_affected();
    }
    tx.commit().await?;
    Ok(changed)
}
