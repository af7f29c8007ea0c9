//! The statements of the relay of python-cqrs's outbox table.

use std::io;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Error, PgConnection, Postgres, Row as _};
use uuid::Uuid;

use super::MAX_ATTEMPTS;
use crate::error::OutboxError;
use crate::python::PythonOutbox;
use crate::relay::store::connections::{Connections, Lent};
use crate::table_name::TableName;

/// The first number of the lock; the second one is the table's object id.
const LOCK: i32 = 0x0063_7172;

/// One of ten rows of a batch may be one that failed before.
const FAILED_SHARE: usize = 10;

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
    pub(super) topic: String,
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

    /// Locks the table against other relays and reads rows in order of their ids: up to `limit` new ones, and in
    /// addition a tenth of that of those that failed before.
    ///
    /// # Cancel safety
    /// Dropped, the transaction is rolled back.
    pub(super) async fn read(&self, limit: usize, failed: Failed) -> Result<Read<'_>, OutboxError> {
        self.limited(self.begin(limit, failed)).await.map_err(|error| {
            OutboxError::database("reading the outbox table of python-cqrs", error)
        })
    }

    async fn begin(&self, limit: usize, failed: Failed) -> Result<Read<'_>, Error> {
        let mut lent = self.connections.lend().await?;
        sqlx::raw_sql("BEGIN").execute(lent.connection()).await?;
        if !self.lock(lent.connection()).await? {
            sqlx::raw_sql("ROLLBACK").execute(lent.connection()).await?;
            lent.give_back();
            return Ok(Read::Standby);
        }
        let status = "event_status = 'NEW'";
        let mut rows = self.rows(lent.connection(), status, limit, Vec::new()).await?;
        if let Failed::Except(ids) = failed {
            let limit = (limit / FAILED_SHARE).max(1);
            let status = "event_status = 'NOT_PRODUCED'";
            rows.extend(self.rows(lent.connection(), status, limit, ids).await?);
            rows.sort_unstable_by_key(|row| row.id);
        }
        if rows.is_empty() {
            sqlx::raw_sql("ROLLBACK").execute(lent.connection()).await?;
            lent.give_back();
            return Ok(Read::NoRows);
        }
        Ok(Read::Rows(Batch { lent, rows }))
    }

    /// Takes the lock until the end of the transaction, and limits how long its session may be silent.
    async fn lock(&self, connection: &mut PgConnection) -> Result<bool, Error> {
        let sql = "SELECT pg_try_advisory_xact_lock($1, $2::text::regclass::oid::int4), \
                   set_config('idle_in_transaction_session_timeout', $3, true)";
        let query = sqlx::query_as::<_, (bool, String)>(sql)
            .bind(LOCK)
            .bind(self.table.sql())
            .bind(self.lease.as_millis().to_string());
        Ok(query.fetch_one(connection).await?.0)
    }

    /// A row that Python's producer has changed and not committed is skipped.
    async fn rows(
        &self,
        connection: &mut PgConnection,
        status: &str,
        limit: usize,
        except: Vec<i64>,
    ) -> Result<Vec<StoredRow>, Error> {
        let sql = self.table.render(&format!(
            "SELECT id, event_id, event_name, topic, flush_counter, payload FROM {{t}} \
             WHERE {status} AND flush_counter < {MAX_ATTEMPTS} AND id <> ALL ($2) \
             ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED"
        ));
        let read = |row: PgRow| {
            Ok(StoredRow {
                id: row.try_get("id")?,
                event_id: row.try_get("event_id")?,
                name: row.try_get("event_name")?,
                topic: row.try_get("topic")?,
                attempts: row.try_get("flush_counter")?,
                payload: row.try_get("payload")?,
            })
        };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let query = sqlx::query(AssertSqlSafe(sql)).bind(limit).bind(except);
        query.try_map(read).fetch_all(connection).await
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

fn settling(error: Error) -> OutboxError {
    OutboxError::database("setting statuses in the outbox table of python-cqrs", error)
}
