//! The operators' statements on PostgreSQL.

use bytes::Bytes;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Error, Postgres, Row as _};

use super::filter::FailedFilter;
use super::{
    COUNTING, DeadCount, Operations, Owner, PURGING, READING, READING_RELAYS, REPLAYED, REPLAYING,
    error,
};
use crate::error::OutboxError;
use crate::outbox::Outbox;
use crate::relay::failed::{FailedRow, FailedTable};
use crate::relay::status::Counts;
use crate::row::{body_columns, columns_without_body, read_body};
use crate::tables::Dialect;

impl Operations for Postgres {
    async fn counts(outbox: &Outbox<Self>) -> Result<Counts, OutboxError> {
        // The oldest row of a lane is its first one, more or less: no need to read them all.
        let sql = outbox.tables().render(
            "SELECT (SELECT count(*) FROM {t}outbox), \
             (SELECT (extract(epoch FROM clock_timestamp() - min(r.created_at)) * 1000000)::int8 \
             FROM {t}outbox_lane l CROSS JOIN LATERAL (SELECT o.created_at FROM {t}outbox o \
             WHERE o.lane = l.lane ORDER BY o.id LIMIT 1) r), \
             (SELECT count(*) FROM {t}outbox_parked), (SELECT count(*) FROM {t}outbox_dead), \
             (SELECT sum(greatest(c.reltuples::int8, pg_stat_get_live_tuples(c.oid)))::int8 \
             FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
             WHERE i.inhparent = to_regclass('{t}outbox_done'))",
        );
        let (pending, oldest_micros, parked, dead, history) = sqlx::query_as(AssertSqlSafe(sql))
            .fetch_one(outbox.pool())
            .await
            .map_err(error(COUNTING))?;
        Ok(Counts { pending, oldest_micros, parked, dead, history })
    }

    async fn owners(outbox: &Outbox<Self>) -> Result<Vec<Owner>, OutboxError> {
        let sql = outbox.tables().render(
            "SELECT coalesce(r.id, l.owner), coalesce(l.lanes, 0), \
             (extract(epoch FROM clock_timestamp() - r.seen_at) * 1000000)::int8 \
             FROM {t}outbox_relay r FULL JOIN (SELECT owner, count(*) AS lanes FROM {t}outbox_lane \
             WHERE owner IS NOT NULL GROUP BY owner) l ON l.owner = r.id ORDER BY 1",
        );
        let query = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(outbox.pool());
        let owners: Vec<_> = query.await.map_err(error(READING_RELAYS))?;
        let owner = |(relay, lanes, seen_micros)| Owner { relay, lanes, seen_micros };
        Ok(owners.into_iter().map(owner).collect())
    }

    async fn failed_rows(
        outbox: &Outbox<Self>,
        table: FailedTable,
        filter: &FailedFilter,
        after: i64,
        limit: u32,
    ) -> Result<Vec<FailedRow>, OutboxError> {
        let sql = outbox.tables().render(&format!(
            "SELECT {}, coalesce(r.uncompressed_size, octet_length(r.body))::int8 AS size, r.attempts, r.last_error, {} AS created_at, \
             {} AS first_failed_at, {} AS at \
             FROM {{t}}{} r WHERE {} AND r.id > $8 ORDER BY r.id, r.event_id LIMIT $9",
            columns_without_body(Dialect::Postgres),
            micros("created_at"),
            micros("first_failed_at"),
            micros(table.time()),
            table.name(),
            conditions(table),
        ));
        let query = bind(sqlx::query(AssertSqlSafe(sql)), filter);
        let query = query.bind(after).bind(i64::from(limit)).try_map(|row| FailedRow::read(&row));
        query.fetch_all(outbox.pool()).await.map_err(error(READING))
    }

    async fn failed_body(
        outbox: &Outbox<Self>,
        table: FailedTable,
        row: &FailedRow,
    ) -> Result<Option<Bytes>, OutboxError> {
        let sql = outbox.tables().render(&format!(
            "SELECT {} FROM {{t}}{} r WHERE r.lane = $1 AND r.id = $2 AND r.event_id = $3",
            body_columns(Dialect::Postgres),
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
        let sql = outbox.tables().render(&format!(
            "SELECT count(*), max(r.id), (extract(epoch FROM now()) * 1000000)::int8 \
             FROM {{t}}outbox_dead r WHERE {}",
            conditions(FailedTable::Dead),
        ));
        let query = bind(sqlx::query(AssertSqlSafe(sql)), filter);
        let query = query.try_map(|row: PgRow| {
            Ok(DeadCount { rows: row.try_get(0)?, last_id: row.try_get(1)?, at: row.try_get(2)? })
        });
        query.fetch_one(outbox.pool()).await.map_err(error(COUNTING))
    }

    async fn replay_dead(
        outbox: &Outbox<Self>,
        filter: &FailedFilter,
        limit: u32,
    ) -> Result<u64, OutboxError> {
        let insert =
            format!("INSERT INTO {{t}}outbox ({REPLAYED}) SELECT {REPLAYED} FROM gone ORDER BY id");
        change(outbox, filter, limit, &insert).await.map_err(error(REPLAYING))
    }

    async fn purge_dead(
        outbox: &Outbox<Self>,
        filter: &FailedFilter,
        limit: u32,
    ) -> Result<u64, OutboxError> {
        change(outbox, filter, limit, "SELECT FROM gone").await.map_err(error(PURGING))
    }
}

/// A time in microseconds since 1970-01-01 UTC; null if it is endless.
fn micros(column: &str) -> String {
    format!(
        "CASE WHEN isfinite(r.{column}) THEN (extract(epoch FROM r.{column}) * 1000000)::int8 END"
    )
}

/// The conditions of a filter on a table with the alias `r`, with the parameters of [`bind`].
fn conditions(table: FailedTable) -> String {
    let since = table.since();
    let as_of = "timestamptz 'epoch' + $7 * interval '1 microsecond'";
    format!(
        "($1::int8[] IS NULL OR r.id = ANY ($1)) AND ($2::text IS NULL OR r.topic = $2) \
         AND ($3::text IS NULL OR r.name = $3) \
         AND ($4::text IS NULL OR position($4 IN r.last_error) > 0) \
         AND ($5::int8 IS NULL OR r.id <= $5) \
         AND ($6::int8 IS NULL OR r.{since} < coalesce({as_of}, now()) - $6 * interval '1 microsecond') \
         AND ($7::int8 IS NULL OR r.{since} <= {as_of})"
    )
}

fn bind<'q>(
    query: Query<'q, Postgres, PgArguments>,
    filter: &'q FailedFilter,
) -> Query<'q, Postgres, PgArguments> {
    query
        .bind(filter.ids.as_deref())
        .bind(filter.topic.as_deref())
        .bind(filter.name.as_deref())
        .bind(filter.error.as_deref())
        .bind(filter.up_to)
        .bind(filter.age_micros())
        .bind(filter.as_of_micros())
}

/// Deletes dead rows and runs `then` with them, as the table `gone`. Their number. The rows are locked in one
/// order, so that two changes of the same rows wait for each other without a deadlock. It has an explicit
/// transaction: the server finishes and commits a single statement of a client that is gone.
async fn change(
    outbox: &Outbox<Postgres>,
    filter: &FailedFilter,
    limit: u32,
    then: &str,
) -> Result<u64, Error> {
    let sql = outbox.tables().render(&format!(
        "WITH chosen AS MATERIALIZED (SELECT r.lane, r.id, r.event_id FROM {{t}}outbox_dead r WHERE {} \
         ORDER BY r.id LIMIT $8 FOR UPDATE), \
         gone AS (DELETE FROM {{t}}outbox_dead d USING chosen c WHERE d.lane = c.lane AND d.id = c.id \
         AND d.event_id = c.event_id RETURNING d.*) {then}",
        conditions(FailedTable::Dead),
    ));
    let mut tx = outbox.pool().begin().await?;
    let query = bind(sqlx::query(AssertSqlSafe(sql)), filter).bind(i64::from(limit));
    let changed = query.execute(&mut *tx).await?.rows_affected();
    tx.commit().await?;
    Ok(changed)
}
