//! The history of published rows on PostgreSQL: its setting, and its partitions, which the relay makes ahead and drops.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::pool::PoolOptions;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, Error, PgConnection, PgPool, Postgres};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::builder::RelayBuilder;
use super::outage::text_of;
use crate::error::OutboxError;
use crate::tables::Tables;

/// The partitions of so many days after the present one are made ahead.
const DAYS_AHEAD: i32 = 3;

/// The time between two looks at the partitions.
const EVERY: Duration = Duration::from_secs(600);

/// The shortest time between two looks, and the longest that a look takes.
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(60);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Bounds the wait for the lock of a table: others wait behind it.
const LIMIT_LOCKS: &str = "SET LOCAL lock_timeout = '2s'";

/// The partitions that a relay has made, by their names: those of others are left alone.
const PARTITIONS: &str = "(SELECT c.oid, right(c.relname, 8) AS day FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent \
     JOIN pg_class c ON c.oid = i.inhrelid WHERE p.oid = '{t}outbox_done'::regclass \
     AND c.relname ~ ('^' || p.relname || '_[0-9]{8}$')) d";

impl RelayBuilder<Postgres> {
    /// Keeps published rows in the table `outbox_done` for `retention` and up to a day more. At least a day; off by
    /// default.
    ///
    /// The statement that deletes a confirmed row inserts it there, with the time of the delete. The table has a
    /// partition for each day (UTC), and no index. The relay makes the partitions of the next 3 days ahead, and drops
    /// those that are older than `retention`: it needs the role that owns the table. One that does not may keep a
    /// history while the partitions are made otherwise, as `outbox_done_20300131`.
    ///
    /// Each relay of the outbox needs the setting: one without it deletes its rows as ever. The shortest retention of
    /// them counts. A row that is published twice is in the history once. Where the partition of the present day
    /// is missing and cannot be made, the relay stops until it is there.
    ///
    /// # Errors
    /// If the retention is below a day, the table is missing, or the partitions cannot be made: the role may not, or
    /// the database is away.
    pub async fn keep_history(mut self, retention: Duration) -> Result<Self, OutboxError> {
        if retention < DAY {
            return Err(OutboxError::config(
                "the history of the outbox is kept for less than a day, the time of a partition",
            ));
        }
        let outbox = &self.outbox;
        let made = async {
            let mut connection = outbox.pool().acquire().await?;
            make_partitions(&mut connection, outbox.tables()).await
        };
        made.await.map_err(|error| {
            let doing =
                "making partitions of the outbox's history, which needs the owner of its table";
            OutboxError::database(doing, error)
        })?;
        self.settings.history = Some(retention);
        Ok(self)
    }
}

/// Makes and drops the partitions while the relay runs.
#[derive(Debug)]
pub(super) struct History {
    /// Of one connection, which is closed after each look.
    pool: PgPool,
    tables: Tables,
    retention: Duration,
    wake: Arc<Notify>,
    running: Mutex<Option<JoinHandle<()>>>,
}

impl History {
    pub(super) fn new(
        pool: PoolOptions<Postgres>,
        options: PgConnectOptions,
        tables: Tables,
        retention: Duration,
    ) -> Self {
        let pool = pool.connect_lazy_with(options);
        Self { pool, tables, retention, wake: Arc::default(), running: Mutex::default() }
    }

    /// Starts to look at the partitions, unless it runs.
    pub(super) fn ensure(&self) {
        let (pool, tables, wake) = (self.pool.clone(), self.tables.clone(), Arc::clone(&self.wake));
        let retention = self.retention;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get_or_insert_with(|| tokio::spawn(keep(pool, tables, retention, wake)));
    }

    /// Looks soon: a delete failed, and its partition may be missing.
    pub(super) fn look(&self) {
        self.wake.notify_one();
    }

    pub(super) fn end(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = running.take() {
            running.abort();
        }
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.end();
    }
}

async fn keep(pool: PgPool, tables: Tables, retention: Duration, wake: Arc<Notify>) {
    let mut has_failed = false;
    loop {
        let look = async {
            let mut connection = pool.acquire().await?.detach();
            make_partitions(&mut connection, &tables).await?;
            drop_partitions(&mut connection, &tables, retention).await?;
            connection.close().await
        };
        let error = match tokio::time::timeout(LONGEST, look).await {
            Ok(looked) => looked.err().map(|error| text_of(&error)),
            Err(late) => Some(text_of(&late)),
        };
        match &error {
            Some(error) if !has_failed => {
                tracing::warn!(%error, "the partitions of the outbox's history are not kept up");
            }
            None if has_failed => {
                tracing::info!("the partitions of the outbox's history are kept up again");
            }
            _ => {}
        }
        has_failed = error.is_some();
        tokio::time::sleep(PAUSE).await;
        let _wakened_or_due = tokio::time::timeout(EVERY, wake.notified()).await;
    }
}

/// Days without a partition: as in its name, its first moment and that of the next day.
async fn missing(
    connection: &mut PgConnection,
    tables: &Tables,
) -> Result<Vec<(String, String, String)>, Error> {
    let sql = tables.render(&format!(
        "SELECT to_char(n, 'YYYYMMDD'), to_char(n, 'YYYY-MM-DD'), to_char(n + interval '1 day', 'YYYY-MM-DD') \
         FROM generate_series(date_trunc('day', now() AT TIME ZONE 'UTC'), \
         now() AT TIME ZONE 'UTC' + $1 * interval '1 day', interval '1 day') AS n \
         WHERE to_char(n, 'YYYYMMDD') NOT IN (SELECT d.day FROM {PARTITIONS}) ORDER BY n"
    ));
    sqlx::query_as(AssertSqlSafe(sql)).bind(DAYS_AHEAD).fetch_all(connection).await
}

/// Makes the missing partitions. Several relays may do it at once. Reads alone if none is missing.
async fn make_partitions(connection: &mut PgConnection, tables: &Tables) -> Result<(), Error> {
    if missing(connection, tables).await?.is_empty() {
        return Ok(());
    }
    let mut tx = connection.begin().await?;
    sqlx::raw_sql(LIMIT_LOCKS).execute(&mut *tx).await?;
    let sql =
        tables.render("SELECT pg_advisory_xact_lock('{t}outbox_done'::regclass::oid::int4, 0)");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await?;
    for (day, from, to) in missing(&mut tx, tables).await? {
        // Attached, as `PARTITION OF` would wait for all that reads the history, and writes would wait behind it.
        let sql = tables.render(&format!(
            "CREATE TABLE {{t}}outbox_done_{day} (LIKE {{t}}outbox_done INCLUDING ALL); \
             ALTER TABLE {{t}}outbox_done ATTACH PARTITION {{t}}outbox_done_{day} \
             FOR VALUES FROM ('{from} 00:00:00+00') TO ('{to} 00:00:00+00')"
        ));
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await?;
    }
    tx.commit().await
}

/// Drops the partitions of days that ended longer ago than the retention.
async fn drop_partitions(
    connection: &mut PgConnection,
    tables: &Tables,
    retention: Duration,
) -> Result<(), Error> {
    // The database subtracts it from its time.
    let seconds = retention.min(DAY.saturating_mul(365_000)).as_secs_f64();
    let sql = tables.render(&format!(
        "SELECT d.oid::regclass::text FROM {PARTITIONS} WHERE d.day < \
         to_char(now() AT TIME ZONE 'UTC' - $1 * interval '1 second', 'YYYYMMDD') ORDER BY d.day"
    ));
    let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(seconds);
    let names: Vec<String> = query.fetch_all(&mut *connection).await?;
    for name in names {
        let mut tx = connection.begin().await?;
        sqlx::raw_sql(LIMIT_LOCKS).execute(&mut *tx).await?;
        let sql = AssertSqlSafe(format!("DROP TABLE IF EXISTS {name}"));
        sqlx::raw_sql(sql).execute(&mut *tx).await?;
        tx.commit().await?;
    }
    Ok(())
}
