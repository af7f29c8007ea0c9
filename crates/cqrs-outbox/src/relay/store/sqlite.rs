//! The relay's statements on SQLite: one lane, and ids in the order of the commits.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use sqlx::sqlite::SqliteRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Error, Row as _, Sqlite, SqlitePool, Transaction};
use uuid::Uuid;
use uuid::fmt::Simple;

use super::{
    FORGOTTEN_AFTER, Payload, ReadEntry, RelayDatabase, Store, StoreSettings, View, entry_of,
    order_of,
};
use crate::error::OutboxError;
use crate::outbox::Outbox;
use crate::relay::effects::{
    Delete, LaneEpoch, LaneRange, LaneRead, Late, LateRow, Load, Move, ReadAnswer, RowId, Table,
    Target,
};
use crate::relay::lane::ParkedEntry;
use crate::row::{MessageReader, message_columns, unread_size};
use crate::tables::{Dialect, Tables};

const COLUMNS: &str = "lane, id, event_id, name, topic, key, content_type, headers, body, occurred_at, \
                       mandatory, created_at, uncompressed_size";

/// The present time, in microseconds.
const NOW: &str = "CAST(unixepoch('subsec') * 1000000 AS INTEGER)";

/// The bytes of a body, decompressed.
const SIZE: &str = "coalesce(uncompressed_size, length(body))";

/// The lane, if this relay owns it in the epoch that it knows.
const OWNED: &str = "LEFT JOIN {t}outbox_lane l ON l.lane = ? AND l.owner = ? AND l.epoch = ?";

#[derive(Debug)]
pub struct SqliteStore {
    pool: SqlitePool,
    relay: Uuid,
    lease: Duration,
    tables: Tables,
}

impl RelayDatabase for Sqlite {
    type Store = SqliteStore;

    #[expect(private_interfaces, reason = "seals the trait")]
    fn store(outbox: &Outbox<Self>, relay: Uuid, settings: StoreSettings) -> SqliteStore {
        let (pool, tables) = (outbox.pool().clone(), outbox.tables().clone());
        SqliteStore { pool, relay, lease: settings.lease, tables }
    }
}

fn error(doing: &'static str) -> impl Fn(Error) -> OutboxError {
    move |error| OutboxError::database(doing, error)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// Adds one lane's rows of a fenced read to an answer.
fn add<T>(
    answer: &mut ReadAnswer<T>,
    at: LaneEpoch,
    rows: Vec<SqliteRow>,
    mut value: impl FnMut(RowId, &SqliteRow) -> Result<T, Error>,
) -> Result<(), Error> {
    for row in &rows {
        if !row.try_get::<bool, _>("is_owned")? {
            answer.lost.push(at);
        } else if let Some(id) = row.try_get::<Option<i64>, _>("id")? {
            answer.rows.push((at.lane, value(row_id(id, row), row)?));
        }
    }
    Ok(())
}

/// An event id that is no UUID, which the table refuses, stops no other row.
fn row_id(id: i64, row: &SqliteRow) -> RowId {
    RowId { id, event_id: row.try_get("event_id").unwrap_or_default() }
}

/// The ids and event ids of rows, as JSON.
fn list<'a>(rows: impl Iterator<Item = &'a RowId>) -> Json<Vec<(i64, Simple)>> {
    Json(rows.map(|row| (row.id, row.event_id.simple())).collect())
}

/// The row numbers of the rows of `table` that are in a [`list`].
fn listed(table: &str) -> String {
    format!(
        "SELECT r.rowid FROM json_each(?) q CROSS JOIN {{t}}{table} r \
         ON r.id = q.value ->> 0 AND r.event_id = unhex(q.value ->> 1)"
    )
}

fn late_row(id: RowId, row: &SqliteRow) -> Result<LateRow, Error> {
    let size = usize::try_from(row.try_get::<i64, _>("size")?).unwrap_or(0);
    Ok(LateRow { row: id, size })
}

fn read_entry(messages: &mut MessageReader, id: RowId, row: &SqliteRow) -> ReadEntry {
    entry_of(id, messages.read(row), || unread_size(row))
}

impl SqliteStore {
    fn sql(&self, template: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(self.tables.render(template))
    }

    /// A transaction that takes the write lock at once.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, Error> {
        self.pool.begin_with("BEGIN IMMEDIATE").await
    }

    async fn try_heartbeat(&self) -> Result<View, Error> {
        let mut tx = self.begin().await?;
        let sql = self.sql(&format!(
            "INSERT INTO {{t}}outbox_relay (id, seen_at) VALUES (?, {NOW}) \
             ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at"
        ));
        sqlx::query(sql).bind(self.relay).execute(&mut *tx).await?;
        let sql = self.sql("SELECT lane, owner, epoch FROM {t}outbox_lane ORDER BY lane");
        let lanes: Vec<(i16, Option<Uuid>, i64)> = sqlx::query_as(sql).fetch_all(&mut *tx).await?;
        let sql = self.sql(&format!("SELECT id FROM {{t}}outbox_relay WHERE seen_at > {NOW} - ?"));
        let live = sqlx::query_scalar(sql).bind(micros(self.lease)).fetch_all(&mut *tx).await?;
        tx.commit().await?;
        let lanes = lanes.into_iter();
        let lanes = lanes.map(|(lane, owner, epoch)| (LaneEpoch { lane, epoch }, owner)).collect();
        Ok(View { live, lanes, xid: None })
    }

    async fn try_take(&self, dead: &[Uuid], most: usize) -> Result<Vec<LaneEpoch>, Error> {
        let mut tx = self.begin().await?;
        let sql = self.sql("SELECT lane, owner FROM {t}outbox_lane ORDER BY lane");
        let lanes: Vec<(i16, Option<Uuid>)> = sqlx::query_as(sql).fetch_all(&mut *tx).await?;
        let free =
            lanes.iter().filter(|(_, owner)| owner.is_none_or(|owner| dead.contains(&owner)));
        let mut taken = Vec::new();
        for (lane, _) in free.take(most) {
            let sql = self.sql(
                "UPDATE {t}outbox_lane SET owner = ?, epoch = epoch + 1 WHERE lane = ? RETURNING epoch",
            );
            let query = sqlx::query_scalar(sql).bind(self.relay).bind(*lane);
            taken.push(LaneEpoch { lane: *lane, epoch: query.fetch_one(&mut *tx).await? });
        }
        for relay in dead {
            let sql = self.sql("DELETE FROM {t}outbox_relay WHERE id = ?");
            sqlx::query(sql).bind(*relay).execute(&mut *tx).await?;
        }
        let sql = self.sql(&format!("DELETE FROM {{t}}outbox_relay WHERE {NOW} - seen_at > ?"));
        let forgotten = micros(self.lease.saturating_mul(FORGOTTEN_AFTER));
        sqlx::query(sql).bind(forgotten).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(taken)
    }

    async fn try_hot(&self, reads: &[LaneRead]) -> Result<ReadAnswer<ReadEntry>, Error> {
        let mut messages = MessageReader::new();
        let mut answer = ReadAnswer { rows: Vec::new(), lost: Vec::new(), late: Late::None };
        for read in reads {
            let sql = self.sql(&format!(
                "SELECT l.lane IS NOT NULL AS is_owned, {} FROM (SELECT 1) {OWNED} LEFT JOIN \
                 (SELECT o.* FROM (SELECT id, sum({SIZE}) OVER (ORDER BY id ROWS UNBOUNDED \
                 PRECEDING) - {SIZE} AS bytes_before FROM {{t}}outbox WHERE lane = ? \
                 AND id > ? ORDER BY id LIMIT ?) s CROSS JOIN {{t}}outbox o ON o.id = s.id \
                 WHERE s.bytes_before < ?) r ON l.lane IS NOT NULL ORDER BY r.id",
                message_columns(Dialect::Sqlite)
            ));
            let query = sqlx::query(sql).bind(read.lane.lane).bind(self.relay);
            let query = query.bind(read.lane.epoch).bind(read.lane.lane).bind(read.above);
            let query = query.bind(count(read.limit)).bind(count(read.bytes));
            let rows = query.fetch_all(&self.pool).await?;
            add(&mut answer, read.lane, rows, |id, row| Ok(read_entry(&mut messages, id, row)))?;
        }
        Ok(answer)
    }

    async fn try_ids(&self, ranges: &[LaneRange]) -> Result<ReadAnswer<LateRow>, Error> {
        let mut answer = ReadAnswer { rows: Vec::new(), lost: Vec::new(), late: Late::None };
        for range in ranges {
            let sql = self.sql(&format!(
                "SELECT l.lane IS NOT NULL AS is_owned, r.id, r.event_id, r.size FROM (SELECT 1) {OWNED} LEFT JOIN \
                 (SELECT id, event_id, {SIZE} AS size FROM {{t}}outbox WHERE lane = ? AND id > ? AND id <= ? \
                 ORDER BY id LIMIT ?) r \
                 ON l.lane IS NOT NULL ORDER BY r.id"
            ));
            let query = sqlx::query(sql).bind(range.lane.lane).bind(self.relay);
            let query = query.bind(range.lane.epoch).bind(range.lane.lane).bind(range.above);
            let query = query.bind(range.up_to).bind(count(range.limit));
            add(&mut answer, range.lane, query.fetch_all(&self.pool).await?, late_row)?;
        }
        Ok(answer)
    }

    async fn try_rows(&self, rows: &[(LaneEpoch, RowId)]) -> Result<ReadAnswer<ReadEntry>, Error> {
        let mut messages = MessageReader::new();
        let mut answer = ReadAnswer { rows: Vec::new(), lost: Vec::new(), late: Late::None };
        for (at, row) in rows {
            let sql = self.sql(&format!(
                "SELECT l.lane IS NOT NULL AS is_owned, {} FROM (SELECT 1) {OWNED} \
                 LEFT JOIN {{t}}outbox r ON l.lane IS NOT NULL AND r.id = ?",
                message_columns(Dialect::Sqlite)
            ));
            let query = sqlx::query(sql).bind(at.lane).bind(self.relay);
            let found = query.bind(at.epoch).bind(row.id).fetch_all(&self.pool).await?;
            add(&mut answer, *at, found, |id, row| Ok(read_entry(&mut messages, id, row)))?;
        }
        Ok(answer)
    }

    async fn try_delete(&self, rows: &[Delete]) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        for (table, name) in [(Table::Pending, "outbox"), (Table::Parked, "outbox_parked")] {
            let rows = list(rows.iter().filter(|of| of.table == table).map(|of| &of.row));
            if !rows.is_empty() {
                let sql =
                    self.sql(&format!("DELETE FROM {{t}}{name} WHERE rowid IN ({})", listed(name)));
                sqlx::query(sql).bind(rows).execute(&mut *tx).await?;
            }
        }
        tx.commit().await
    }

    async fn try_change(&self, moves: &[Move]) -> Result<Vec<i16>, Error> {
        let mut tx = self.begin().await?;
        let sql = self.sql("SELECT lane, epoch FROM {t}outbox_lane WHERE owner = ?");
        let owned: Vec<(i16, i64)> =
            sqlx::query_as(sql).bind(self.relay).fetch_all(&mut *tx).await?;
        let is_owned = |at: LaneEpoch| owned.contains(&(at.lane, at.epoch));
        for of in moves.iter().filter(|of| is_owned(of.lane)) {
            self.move_row(&mut tx, of).await?;
        }
        tx.commit().await?;
        Ok(owned.into_iter().map(|(lane, _)| lane).collect())
    }

    async fn move_row(
        &self,
        tx: &mut Transaction<'static, Sqlite>,
        of: &Move,
    ) -> Result<(), Error> {
        let (from, first_failed_at) = match of.from {
            Table::Pending => ("outbox", NOW),
            Table::Parked => ("outbox_parked", "first_failed_at"),
        };
        let delay = match of.to {
            Target::Parked(delay) => micros(delay),
            Target::Dead => 0,
        };
        let sql = match (of.from, of.to) {
            (Table::Parked, Target::Parked(_)) => {
                let sql = format!(
                    "UPDATE {{t}}outbox_parked SET attempts = ?, last_error = ?, next_at = {NOW} + ? \
                     WHERE id = ? AND event_id = ?"
                );
                let query = sqlx::query(self.sql(&sql)).bind(of.attempts).bind(&*of.error);
                let query = query.bind(delay).bind(of.row.id).bind(of.row.event_id);
                query.execute(&mut **tx).await?;
                return Ok(());
            }
            (_, Target::Parked(_)) => format!(
                "INSERT INTO {{t}}outbox_parked ({COLUMNS}, attempts, last_error, first_failed_at, next_at) \
                 SELECT {COLUMNS}, ?, ?, {first_failed_at}, {NOW} + ? FROM {{t}}{from} \
                 WHERE id = ? AND event_id = ?"
            ),
            (_, Target::Dead) => format!(
                "INSERT INTO {{t}}outbox_dead ({COLUMNS}, attempts, last_error, first_failed_at, died_at) \
                 SELECT {COLUMNS}, ?, ?, {first_failed_at}, {NOW} + ? FROM {{t}}{from} \
                 WHERE id = ? AND event_id = ?"
            ),
        };
        let query = sqlx::query(self.sql(&sql)).bind(of.attempts).bind(&*of.error);
        let query = query.bind(delay).bind(of.row.id).bind(of.row.event_id);
        query.execute(&mut **tx).await?;
        let sql = self.sql(&format!("DELETE FROM {{t}}{from} WHERE id = ? AND event_id = ?"));
        sqlx::query(sql).bind(of.row.id).bind(of.row.event_id).execute(&mut **tx).await?;
        Ok(())
    }
}

impl Store for SqliteStore {
    async fn heartbeat(&self) -> Result<View, OutboxError> {
        self.try_heartbeat().await.map_err(error("the heartbeat of the relay"))
    }

    async fn take(&self, dead: &[Uuid], most: usize) -> Result<Vec<LaneEpoch>, OutboxError> {
        self.try_take(dead, most).await.map_err(error("taking the lane of the outbox"))
    }

    async fn parked(&self, lanes: &[LaneEpoch]) -> Result<Vec<ParkedEntry>, OutboxError> {
        type Parked = (i16, i64, Uuid, String, Option<Vec<u8>>, i64, u32, i64);
        let sql = self.sql(&format!(
            "SELECT lane, id, event_id, topic, key, {SIZE}, attempts, next_at - {NOW} \
             FROM {{t}}outbox_parked ORDER BY id"
        ));
        let rows: Vec<Parked> = sqlx::query_as(sql)
            .fetch_all(&self.pool)
            .await
            .map_err(error("reading the parked rows of the outbox"))?;
        let entries =
            rows.into_iter().map(|(lane, id, event_id, topic, key, size, attempts, due_in)| {
                let row = RowId { id, event_id };
                let order = order_of(row, topic.into(), key.map(Bytes::from));
                let due_in = Duration::from_micros(u64::try_from(due_in).unwrap_or(0));
                let size = usize::try_from(size).unwrap_or(0);
                ParkedEntry { lane, row, order, size, attempts, due_in }
            });
        Ok(entries.filter(|entry| lanes.iter().any(|at| at.lane == entry.lane)).collect())
    }

    async fn release(&self, lanes: &[LaneEpoch]) -> Result<(), OutboxError> {
        for at in lanes {
            let sql = self.sql(
                "UPDATE {t}outbox_lane SET owner = NULL WHERE lane = ? AND epoch = ? AND owner = ?",
            );
            let query = sqlx::query(sql).bind(at.lane).bind(at.epoch).bind(self.relay);
            query.execute(&self.pool).await.map_err(error("releasing the lane of the outbox"))?;
        }
        Ok(())
    }

    async fn leave(&self) -> Result<(), OutboxError> {
        for sql in [
            "UPDATE {t}outbox_lane SET owner = NULL WHERE owner = ?",
            "DELETE FROM {t}outbox_relay WHERE id = ?",
        ] {
            let leave = sqlx::query(self.sql(sql)).bind(self.relay).execute(&self.pool);
            leave.await.map_err(error("the end of the relay"))?;
        }
        Ok(())
    }

    async fn hot(&self, reads: &[LaneRead]) -> Result<ReadAnswer<ReadEntry>, OutboxError> {
        self.try_hot(reads).await.map_err(error("reading the outbox"))
    }

    async fn ids(&self, ranges: &[LaneRange]) -> Result<ReadAnswer<LateRow>, OutboxError> {
        self.try_ids(ranges).await.map_err(error("reading the outbox"))
    }

    async fn rows(
        &self,
        rows: &[(LaneEpoch, RowId)],
    ) -> Result<ReadAnswer<ReadEntry>, OutboxError> {
        self.try_rows(rows).await.map_err(error("reading the outbox"))
    }

    async fn delete(&self, rows: &[Delete]) -> Result<Option<u64>, OutboxError> {
        let deleted = self.try_delete(rows).await;
        deleted.map_err(error("deleting confirmed rows of the outbox"))?;
        Ok(None)
    }

    async fn change(&self, moves: &[Move]) -> Result<Vec<i16>, OutboxError> {
        self.try_change(moves).await.map_err(error("parking rows of the outbox"))
    }

    async fn load(&self, load: &Load) -> Result<HashMap<RowId, Payload>, OutboxError> {
        let error = error("reading the parked rows of the outbox");
        let sql = self.sql(&format!(
            "SELECT {} FROM {{t}}outbox_parked r WHERE r.rowid IN ({})",
            message_columns(Dialect::Sqlite),
            listed("outbox_parked")
        ));
        let query = sqlx::query(sql).bind(list(load.rows.iter()));
        let rows = query.fetch_all(&self.pool).await.map_err(&error)?;
        let mut messages = MessageReader::new();
        let entry = |row: &SqliteRow| {
            let id = row_id(row.try_get("id")?, row);
            Ok((id, read_entry(&mut messages, id, row).payload))
        };
        rows.iter().map(entry).collect::<Result<_, _>>().map_err(error)
    }

    /// The connections are those of the application.
    fn forget_connections(&self) {}

    /// Other processes see the rows at their next poll.
    async fn notify(&self) -> Result<(), OutboxError> {
        Ok(())
    }
}
