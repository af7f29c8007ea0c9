//! The statements of the relay of python-cqrs's outbox table.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Error, PgConnection, Postgres, Row as _};
use uuid::Uuid;

use super::MAX_ATTEMPTS;
use crate::error::OutboxError;
use crate::python::PythonOutbox;
use crate::relay::status::Counts;
use crate::relay::store::connections::{Connections, Lent};
use crate::table_name::TableName;

/// The first number of the lock; the second one is the table's object id.
const LOCK: i32 = 0x0063_7172;

/// One of ten rows of a batch may be one that failed before.
const FAILED_SHARE: usize = 10;

/// A batch ends after the row that reaches so many bytes of payloads. Rows that failed before have as many again.
const BATCH_BYTES: i64 = 16 << 20;

#[derive(Debug)]
pub(super) struct Store {
    connections: Connections<Postgres>,
    table: TableName,
    lease: Duration,
}

/// A row that waits for its publish.
#[derive(Debug)]
pub(super) struct StoredRow {
    pub(super) id: i64,
    pub(super) event_id: Uuid,
    pub(super) name: String,
    pub(super) topic: Arc<str>,
    /// Failed attempts.
    pub(super) attempts: i16,
    pub(super) payload: Vec<u8>,
}

/// The failed rows that may be read.
#[derive(Debug)]
pub(super) enum Failed {
    /// All but these ids.
    Except(Vec<i64>),
    None,
}

/// What became of published rows.
#[derive(Debug, Default)]
pub(super) struct Settlement {
    pub(super) confirmed: Vec<i64>,
    /// With the counters that were read.
    pub(super) failed: Vec<(i64, i16)>,
}

impl Settlement {
    pub(super) fn len(&self) -> usize {
        self.confirmed.len() + self.failed.len()
    }
}

/// An open transaction, and the rows that it has locked. Dropped, its connection is closed, and the server rolls
/// it back.
#[derive(Debug)]
pub(super) struct Batch<'s> {
    lent: Lent<'s, Postgres>,
    pub(super) rows: Vec<StoredRow>,
    /// Set if more rows may be read at once.
    pub(super) is_full: bool,
}

/// The answer to a read.
#[derive(Debug)]
pub(super) enum Read<'s> {
    Rows(Batch<'s>),
    NoRows,
    /// Another relay has the lock.
    Standby,
}

impl Store {
    pub(super) fn new(outbox: &PythonOutbox, lease: Duration) -> Self {
        // Its own connection, as the application's may all be busy; with the application's hooks.
        let options = (*outbox.pool().connect_options()).clone();
        let pool = outbox.pool().options().clone().max_connections(1).min_connections(0);
        let connections = Connections::new(pool.connect_lazy_with(options), 1);
        Self { connections, table: outbox.table().clone(), lease }
    }

    /// Locks the table against other relays and reads rows in order of their ids, without those of the `waiting`
    /// topics: up to `limit` new ones, and in addition a tenth of that of those that failed before.
    ///
    /// # Cancel safety
    /// Dropped, the transaction is rolled back.
    pub(super) async fn read(
        &self,
        limit: usize,
        failed: Failed,
        waiting: &[String],
    ) -> Result<Read<'_>, OutboxError> {
        self.limited(self.begin(limit, failed, waiting)).await.map_err(|error| {
            let doing = match is_timeout(&error) {
                true => "reading the outbox table of python-cqrs, which needs an index on (event_status, id)",
                false => "reading the outbox table of python-cqrs",
            };
            OutboxError::database(doing, error)
        })
    }

    async fn begin(
        &self,
        limit: usize,
        failed: Failed,
        waiting: &[String],
    ) -> Result<Read<'_>, Error> {
        let mut lent = self.connections.lend().await?;
        sqlx::raw_sql("BEGIN").execute(lent.connection()).await?;
        self.limit_transaction(lent.connection()).await?;
        if !self.lock(lent.connection()).await? {
            sqlx::raw_sql("ROLLBACK").execute(lent.connection()).await?;
            lent.give_back();
            return Ok(Read::Standby);
        }
        let status = "event_status = 'NEW'";
        let mut rows = self.rows(lent.connection(), status, limit, &[], waiting).await?;
        let bytes: usize = rows.iter().map(|row| row.payload.len()).sum();
        let is_full = rows.len() >= limit || bytes as u128 >= BATCH_BYTES.unsigned_abs().into();
        if let Failed::Except(ids) = failed {
            let limit = (limit / FAILED_SHARE).max(1);
            let status = "event_status = 'NOT_PRODUCED'";
            rows.extend(self.rows(lent.connection(), status, limit, &ids, waiting).await?);
            rows.sort_unstable_by_key(|row| row.id);
        }
        if rows.is_empty() {
            sqlx::raw_sql("ROLLBACK").execute(lent.connection()).await?;
            lent.give_back();
            return Ok(Read::NoRows);
        }
        Ok(Read::Rows(Batch { lent, rows, is_full }))
    }

    /// Limits each statement of the transaction, and how long its session may be silent. The server ends what this
    /// process has given up.
    async fn limit_transaction(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let sql = "SELECT set_config('statement_timeout', $1, true), \
                   set_config('idle_in_transaction_session_timeout', $1, true)";
        let limit = self.lease.as_millis().min(i32::MAX as u128).to_string();
        sqlx::query(sql).bind(limit).execute(connection).await?;
        Ok(())
    }

    /// Takes the lock until the end of the transaction.
    async fn lock(&self, connection: &mut PgConnection) -> Result<bool, Error> {
        let sql = "SELECT pg_try_advisory_xact_lock($1, $2::text::regclass::oid::int4)";
        sqlx::query_scalar(sql).bind(LOCK).bind(self.table.sql()).fetch_one(connection).await
    }

    /// A row that Python's producer has changed and not committed is skipped. The sizes are known without reading the
    /// payloads.
    async fn rows(
        &self,
        connection: &mut PgConnection,
        status: &str,
        limit: usize,
        except: &[i64],
        waiting: &[String],
    ) -> Result<Vec<StoredRow>, Error> {
        let sql = self.table.render(&format!(
            "WITH locked AS MATERIALIZED (SELECT id, flush_counter, octet_length(payload) AS size \
             FROM {{t}} WHERE {status} AND flush_counter < {MAX_ATTEMPTS} AND id <> ALL ($2) \
             AND topic <> ALL ($3) ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED), \
             sized AS (SELECT id, flush_counter, \
             sum(size) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - size AS bytes_before FROM locked) \
             SELECT s.id, o.event_id, o.event_name, o.topic, s.flush_counter, o.payload \
             FROM sized s CROSS JOIN LATERAL (SELECT event_id, event_name, topic, payload FROM {{t}} \
             WHERE id = s.id LIMIT 1) o WHERE s.bytes_before < $4 ORDER BY s.id"
        ));
        let read = |row: PgRow| {
            Ok(StoredRow {
                id: row.try_get("id")?,
                event_id: row.try_get("event_id")?,
                name: row.try_get("event_name")?,
                topic: row.try_get::<String, _>("topic")?.into(),
                attempts: row.try_get("flush_counter")?,
                payload: row.try_get("payload")?,
            })
        };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let query = sqlx::query(AssertSqlSafe(sql)).bind(limit).bind(except).bind(waiting);
        query.bind(BATCH_BYTES).try_map(read).fetch_all(connection).await
    }

    /// Tells the database that the relay is alive.
    pub(super) async fn keep_alive(&self, batch: &mut Batch<'_>) -> Result<(), OutboxError> {
        self.limited(async {
            sqlx::query("SELECT 1").execute(batch.lent.connection()).await?;
            Ok(())
        })
        .await
        .map_err(|error| OutboxError::database("keeping the rows of python-cqrs locked", error))
    }

    /// Sets the statuses of a batch and commits.
    pub(super) async fn settle(
        &self,
        batch: Batch<'_>,
        settlement: &Settlement,
    ) -> Result<(), OutboxError> {
        self.limited(self.write(batch.lent, settlement)).await.map_err(settling)
    }

    /// Sets the statuses of a batch whose transaction is gone. Called again, it does no harm.
    pub(super) async fn settle_again(&self, settlement: &Settlement) -> Result<(), OutboxError> {
        let statements = async {
            let mut lent = self.connections.lend().await?;
            sqlx::raw_sql("BEGIN").execute(lent.connection()).await?;
            self.limit_transaction(lent.connection()).await?;
            self.write(lent, settlement).await
        };
        self.limited(statements).await.map_err(settling)
    }

    async fn write(
        &self,
        mut lent: Lent<'_, Postgres>,
        settlement: &Settlement,
    ) -> Result<(), Error> {
        let Settlement { confirmed, failed } = settlement;
        if !confirmed.is_empty() {
            let sql =
                self.table.render("UPDATE {t} SET event_status = 'PRODUCED' WHERE id = ANY ($1)");
            sqlx::query(AssertSqlSafe(sql)).bind(confirmed).execute(lent.connection()).await?;
        }
        if !failed.is_empty() {
            let (ids, counters): (Vec<_>, Vec<_>) = failed.iter().copied().unzip();
            let sql = self.table.render(
                "UPDATE {t} AS o SET event_status = 'NOT_PRODUCED', flush_counter = o.flush_counter + 1 \
                 FROM unnest($1::int8[], $2::int2[]) AS f (id, counter) \
                 WHERE o.id = f.id AND o.flush_counter = f.counter AND o.event_status <> 'PRODUCED'",
            );
            let query = sqlx::query(AssertSqlSafe(sql)).bind(ids).bind(counters);
            query.execute(lent.connection()).await?;
        }
        sqlx::raw_sql("COMMIT").execute(lent.connection()).await?;
        lent.give_back();
        Ok(())
    }

    /// Closes the connection.
    pub(super) async fn close(&self) {
        self.connections.close().await;
    }

    /// An error if the database does not answer within the lease.
    async fn limited<T>(
        &self,
        statements: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let done = tokio::time::timeout(self.lease, statements).await;
        done.unwrap_or_else(|_late| {
            Err(Error::Io(io::Error::new(io::ErrorKind::TimedOut, "no answer within the lease")))
        })
    }
}

/// Counts the rows that are not `PRODUCED`. Their times are in UTC, without an offset.
pub(super) async fn counts(outbox: &PythonOutbox) -> Result<Counts, OutboxError> {
    // Not `<> 'PRODUCED'`, which cannot use an index on the status.
    let sql = outbox.table().render(&format!(
        "SELECT count(*) FILTER (WHERE is_new), \
         (extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - min(created_at) FILTER (WHERE is_new)) \
         * 1000000)::int8, count(*) FILTER (WHERE NOT is_new AND NOT is_dead), \
         count(*) FILTER (WHERE is_dead) FROM (SELECT created_at, flush_counter >= {MAX_ATTEMPTS} AS is_dead, \
         event_status = 'NEW' AND flush_counter < {MAX_ATTEMPTS} AS is_new \
         FROM {{t}} WHERE event_status IN ('NEW', 'NOT_PRODUCED')) r"
    ));
    let counted = sqlx::query_as(AssertSqlSafe(sql)).fetch_one(outbox.pool()).await;
    let (pending, oldest_micros, parked, dead) = counted.map_err(|error| {
        OutboxError::database("counting the rows of python-cqrs's outbox", error)
    })?;
    Ok(Counts { pending, oldest_micros, parked, dead, history: None })
}

fn settling(error: Error) -> OutboxError {
    OutboxError::database("setting statuses in the outbox table of python-cqrs", error)
}

/// `true` if the server (`query_canceled`) or this process ended a statement that took too long.
fn is_timeout(error: &Error) -> bool {
    match error {
        Error::Io(error) => error.kind() == io::ErrorKind::TimedOut,
        Error::Database(error) => error.code().is_some_and(|code| code == "57014"),
        _ => false,
    }
}
