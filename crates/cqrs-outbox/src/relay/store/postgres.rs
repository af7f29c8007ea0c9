//! The relay's statements on PostgreSQL.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Error, PgPool, Postgres, Row as _};
use uuid::Uuid;

use super::session::{LOCK_NUMBER, Session, channel};
use super::{Payload, ReadEntry, RelayDatabase, Store, StoreSettings, View, entry_of, order_of};
use crate::error::OutboxError;
use crate::outbox::Outbox;
use crate::relay::effects::{Delete, LaneEpoch, Move, RowId, Table, Target};
use crate::relay::failed::FailedRow;
use crate::relay::lane::ParkedEntry;
use crate::relay::lanes::{LaneRange, LaneRead, Load, ReadAnswer};
use crate::relay::status::Counts;
use crate::row::{Row, row_columns};
use crate::tables::{Dialect, Tables};

/// One for the reads, one for the deletes and moves, one for the session.
const CONNECTIONS: u32 = 3;

/// A lane that is no lane: its row in an answer carries the snapshot.
const SNAPSHOT: i16 = -1;

/// Columns of a row, without those of its state.
const COLUMNS: &str = "lane, id, event_id, name, topic, key, content_type, headers, body, occurred_at, \
                       mandatory, created_at";

#[derive(Debug)]
pub struct PostgresStore {
    pool: PgPool,
    relay: Uuid,
    session: Option<Session>,
    lease: Duration,
    sql: Sql,
}

#[derive(Debug)]
struct Sql {
    heartbeat: String,
    lanes: String,
    live: String,
    take: String,
    remove_relays: String,
    parked: String,
    release: String,
    leave: String,
    hot: String,
    ids: String,
    rows: String,
    delete: String,
    delete_parked: String,
    park: String,
    die: String,
    load: String,
    notify: String,
}

impl Sql {
    fn new(tables: &Tables, uses_session: bool) -> Self {
        let cols = row_columns(Dialect::Postgres);
        let lock = LOCK_NUMBER.replace("$ID", "r.id");
        let holds_lock = match uses_session {
            true => format!(
                " AND EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted \
                 AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                 AND l.classid = '{{t}}outbox_relay'::regclass::oid AND l.objid = ({lock})::oid \
                 AND l.objsubid = 2)"
            ),
            false => String::new(),
        };
        let render = |template: &str| tables.render(template);
        // The rows of lanes that the relay owns in the epochs it knows, in the snapshot of the statement.
        let owned =
            "LEFT JOIN {t}outbox_lane l ON l.lane = q.lane AND l.owner = $1 AND l.epoch = q.epoch";
        let asked = "CASE WHEN q.lane = -1 THEN pg_current_snapshot()::text END AS snapshot, \
                     q.lane AS asked, q.epoch AS asked_epoch, l.lane IS NOT NULL AS is_owned";
        // Locks the lanes against a change of their owner until the statement is through.
        let fence = "input AS (SELECT * FROM unnest($2::int2[], $3::int8[], $4::int8[], $5::int4[], \
                     $6::float8[], $7::text[], $8::bool[], $9::uuid[]) \
                     AS i (lane, epoch, id, attempts, delay, error, is_parked, event_id)), \
                     owned AS MATERIALIZED (SELECT lane, epoch FROM {t}outbox_lane \
                     WHERE owner = $1 AND lane = ANY ($2) ORDER BY lane FOR SHARE)";
        Self {
            heartbeat: render(
                "INSERT INTO {t}outbox_relay (id, seen_at) VALUES ($1, clock_timestamp()) \
                 ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at \
                 RETURNING pg_current_xact_id()::text::int8",
            ),
            lanes: render("SELECT lane, owner, epoch FROM {t}outbox_lane ORDER BY lane"),
            live: render(&format!(
                "SELECT r.id FROM {{t}}outbox_relay r WHERE r.seen_at > clock_timestamp() - $1 * \
                 interval '1 second'{holds_lock}"
            )),
            take: render(
                "WITH free AS MATERIALIZED (SELECT lane FROM {t}outbox_lane \
                 WHERE owner IS NULL OR owner = ANY ($2) ORDER BY lane LIMIT $3 \
                 FOR UPDATE SKIP LOCKED) \
                 UPDATE {t}outbox_lane o SET owner = $1, epoch = o.epoch + 1 FROM free \
                 WHERE o.lane = free.lane RETURNING o.lane, o.epoch",
            ),
            remove_relays: render("DELETE FROM {t}outbox_relay WHERE id = ANY ($1)"),
            parked: render(
                "SELECT lane, id, event_id, topic, key, attempts, \
                 greatest(extract(epoch FROM next_at - clock_timestamp()), 0)::float8 AS due_in \
                 FROM {t}outbox_parked WHERE lane = ANY ($1) ORDER BY lane, id",
            ),
            release: render(
                "UPDATE {t}outbox_lane o SET owner = NULL FROM unnest($2::int2[], $3::int8[]) \
                 AS q (lane, epoch) WHERE o.lane = q.lane AND o.epoch = q.epoch AND o.owner = $1",
            ),
            leave: render("DELETE FROM {t}outbox_relay WHERE id = $1"),
            hot: render(&format!(
                "SELECT {asked}, {cols} FROM unnest($2::int2[], $3::int8[], $4::int8[], $5::int8[]) \
                 AS q (lane, epoch, above, count) {owned} LEFT JOIN LATERAL (SELECT * \
                 FROM {{t}}outbox o WHERE o.lane = q.lane AND o.id > q.above ORDER BY o.id \
                 LIMIT q.count) r ON l.lane IS NOT NULL"
            )),
            ids: render(&format!(
                "SELECT {asked}, r.id, r.event_id FROM unnest($2::int2[], $3::int8[], $4::int8[], $5::int8[], \
                 $6::int8[]) AS q (lane, epoch, above, up_to, count) {owned} LEFT JOIN LATERAL \
                 (SELECT o.id, o.event_id FROM {{t}}outbox o WHERE o.lane = q.lane AND o.id > q.above \
                 AND o.id <= q.up_to ORDER BY o.id LIMIT q.count) r ON l.lane IS NOT NULL"
            )),
            rows: render(&format!(
                "SELECT {asked}, {cols} FROM unnest($2::int2[], $3::int8[], $4::int8[]) \
                 AS q (lane, epoch, row_id) {owned} LEFT JOIN {{t}}outbox r \
                 ON l.lane IS NOT NULL AND r.lane = q.lane AND r.id = q.row_id"
            )),
            delete: render(
                "WITH gone AS (DELETE FROM {t}outbox o \
                 USING unnest($1::int2[], $2::int8[], $3::uuid[]) AS q (lane, id, event_id) \
                 WHERE o.lane = q.lane AND o.id = q.id AND o.event_id = q.event_id) \
                 SELECT pg_current_xact_id()::text::int8",
            ),
            delete_parked: render(
                "DELETE FROM {t}outbox_parked o \
                 USING unnest($1::int2[], $2::int8[], $3::uuid[]) AS q (lane, id, event_id) \
                 WHERE o.lane = q.lane AND o.id = q.id AND o.event_id = q.event_id",
            ),
            park: render(&format!(
                "WITH {fence}, moved AS (DELETE FROM {{t}}outbox o USING input i JOIN owned \
                 USING (lane, epoch) WHERE o.lane = i.lane AND o.id = i.id AND o.event_id = i.event_id AND NOT i.is_parked \
                 RETURNING o.*, i.attempts, i.delay, i.error), \
                 added AS (INSERT INTO {{t}}outbox_parked ({COLUMNS}, attempts, next_at, \
                 first_failed_at, last_error) SELECT {COLUMNS}, attempts, \
                 now() + delay * interval '1 second', now(), error FROM moved), \
                 again AS (UPDATE {{t}}outbox_parked o SET attempts = i.attempts, \
                 next_at = now() + i.delay * interval '1 second', last_error = i.error \
                 FROM input i JOIN owned USING (lane, epoch) \
                 WHERE o.lane = i.lane AND o.id = i.id AND o.event_id = i.event_id AND i.is_parked) \
                 SELECT lane FROM owned"
            )),
            die: render(&format!(
                "WITH {fence}, moved AS (DELETE FROM {{t}}outbox o USING input i JOIN owned \
                 USING (lane, epoch) WHERE o.lane = i.lane AND o.id = i.id AND o.event_id = i.event_id AND NOT i.is_parked \
                 RETURNING o.*, i.attempts, now() AS first_failed_at, i.error), \
                 unparked AS (DELETE FROM {{t}}outbox_parked o USING input i JOIN owned \
                 USING (lane, epoch) WHERE o.lane = i.lane AND o.id = i.id AND o.event_id = i.event_id AND i.is_parked \
                 RETURNING o.*, i.attempts AS all_attempts, i.error), \
                 added AS (INSERT INTO {{t}}outbox_dead ({COLUMNS}, attempts, first_failed_at, \
                 last_error) SELECT {COLUMNS}, attempts, first_failed_at, error FROM moved \
                 UNION ALL SELECT {COLUMNS}, all_attempts, first_failed_at, error FROM unparked) \
                 SELECT lane FROM owned"
            )),
            load: render(&format!(
                "SELECT {cols} FROM {{t}}outbox_parked r WHERE r.lane = $1 AND r.id = ANY ($2)"
            )),
            notify: format!("SELECT pg_notify({}, '')", channel(&tables.name("outbox_relay"))),
        }
    }
}

impl RelayDatabase for Postgres {
    type Store = PostgresStore;

    async fn counts(outbox: &Outbox<Self>) -> Result<Counts, OutboxError> {
        // The oldest row of a lane is its first one, more or less: no need to read them all.
        let sql = outbox.tables().render(
            "SELECT (SELECT count(*) FROM {t}outbox), \
             (SELECT (extract(epoch FROM clock_timestamp() - min(r.created_at)) * 1000000)::int8 \
             FROM {t}outbox_lane l CROSS JOIN LATERAL (SELECT o.created_at FROM {t}outbox o \
             WHERE o.lane = l.lane ORDER BY o.id LIMIT 1) r), \
             (SELECT count(*) FROM {t}outbox_parked), (SELECT count(*) FROM {t}outbox_dead)",
        );
        let (pending, oldest_micros, parked, dead) = sqlx::query_as(AssertSqlSafe(sql))
            .fetch_one(outbox.pool())
            .await
            .map_err(error("counting the rows of the outbox"))?;
        Ok(Counts { pending, oldest_micros, parked, dead })
    }

    async fn dead_rows(
        outbox: &Outbox<Self>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<FailedRow>, OutboxError> {
        failed_rows(outbox, ("outbox_dead", "died_at"), after, limit).await
    }

    async fn parked_rows(
        outbox: &Outbox<Self>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<FailedRow>, OutboxError> {
        failed_rows(outbox, ("outbox_parked", "next_at"), after, limit).await
    }

    async fn replay_dead(outbox: &Outbox<Self>, ids: &[i64]) -> Result<u64, OutboxError> {
        let columns = COLUMNS.replace("id, event_id", "event_id");
        let sql = outbox.tables().render(&format!(
            "WITH gone AS (DELETE FROM {{t}}outbox_dead WHERE id = ANY ($1) RETURNING *) \
             INSERT INTO {{t}}outbox ({columns}) SELECT {columns} FROM gone ORDER BY id"
        ));
        let query = sqlx::query(AssertSqlSafe(sql)).bind(ids);
        let done = query.execute(outbox.pool()).await.map_err(error("replaying dead rows"))?;
        Ok(done.rows_affected())
    }

    async fn purge_dead(outbox: &Outbox<Self>, age: Duration) -> Result<u64, OutboxError> {
        let sql = outbox
            .tables()
            .render("DELETE FROM {t}outbox_dead WHERE died_at < now() - $1 * interval '1 second'");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(age.as_secs_f64());
        let done = query.execute(outbox.pool()).await.map_err(error("purging dead rows"))?;
        Ok(done.rows_affected())
    }

    #[expect(private_interfaces, reason = "seals the trait")]
    fn store(outbox: &Outbox<Self>, relay: Uuid, settings: StoreSettings) -> PostgresStore {
        let StoreSettings { wake, lease, uses_session } = settings;
        let mut options = (*outbox.pool().connect_options()).clone();
        if uses_session {
            // Plans with the index only, whatever the statistics of a table say that is empty one moment and
            // full the next. Not behind a pooler, whose other clients would get these settings.
            options = options.options([
                ("enable_seqscan", "off"),
                ("enable_bitmapscan", "off"),
                ("jit", "off"),
            ]);
        }
        // Its own connections, as the application's may all be busy; with the application's hooks, which may
        // set the role or the search path.
        let pool = outbox.pool().options().clone();
        let pool = pool.max_connections(CONNECTIONS).min_connections(0).connect_lazy_with(options);
        let tables = outbox.tables();
        let table = tables.name("outbox_relay");
        let session = uses_session.then(|| Session::new(pool.clone(), relay, table, wake));
        let sql = Sql::new(tables, uses_session);
        PostgresStore { pool, relay, session, lease, sql }
    }
}

/// The rows of a table of failed rows, and of its column with the time `at`.
async fn failed_rows(
    outbox: &Outbox<Postgres>,
    (table, at): (&str, &str),
    after: i64,
    limit: u32,
) -> Result<Vec<FailedRow>, OutboxError> {
    let sql = outbox.tables().render(&format!(
        "SELECT {}, r.attempts, r.last_error, \
         (extract(epoch FROM r.first_failed_at) * 1000000)::int8 AS first_failed_at, \
         (extract(epoch FROM r.{at}) * 1000000)::int8 AS at \
         FROM {{t}}{table} r WHERE r.id > $1 ORDER BY r.id LIMIT $2",
        row_columns(Dialect::Postgres)
    ));
    let read = |row: PgRow| {
        let (attempts, first) = (row.try_get("attempts")?, row.try_get("first_failed_at")?);
        let (at, last_error) = (row.try_get("at")?, row.try_get("last_error")?);
        Ok(FailedRow::new(Row::read(&row)?, attempts, first, at, last_error))
    };
    let query = sqlx::query(AssertSqlSafe(sql)).bind(after).bind(i64::from(limit));
    let rows = query.try_map(read).fetch_all(outbox.pool()).await;
    rows.map_err(error("reading failed rows of the outbox"))
}

/// One column of all elements.
fn column<'a, E, T>(elements: &'a [E], value: impl Fn(&'a E) -> T) -> Vec<T> {
    elements.iter().map(value).collect()
}

/// A number of rows, as PostgreSQL counts them.
fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

fn error(doing: &'static str) -> impl Fn(Error) -> OutboxError {
    move |error| OutboxError::database(doing, error)
}

/// The answer to a fenced read. `value`: the part of the row that is asked for, if there is one.
fn answer<T>(rows: Vec<PgRow>, value: impl Fn(RowId, &PgRow) -> T) -> Result<ReadAnswer<T>, Error> {
    let mut answer =
        ReadAnswer { rows: Vec::with_capacity(rows.len()), lost: Vec::new(), snapshot: None };
    for row in &rows {
        let lane: i16 = row.try_get("asked")?;
        if lane == SNAPSHOT {
            let text: &str = row.try_get("snapshot")?;
            let parsed = text.parse().map_err(|error| Error::Decode(Box::new(error)))?;
            answer.snapshot = Some(parsed);
        } else if !row.try_get::<bool, _>("is_owned")? {
            answer.lost.push(LaneEpoch { lane, epoch: row.try_get("asked_epoch")? });
        } else if let Some(id) = row.try_get::<Option<i64>, _>("id")? {
            answer.rows.push((lane, value(row_id(id, row)?, row)));
        }
    }
    Ok(answer)
}

fn row_id(id: i64, row: &PgRow) -> Result<RowId, Error> {
    Ok(RowId { id, event_id: row.try_get("event_id")? })
}

fn read_entry(id: RowId, row: &PgRow) -> ReadEntry {
    entry_of(id, Row::read(row))
}

impl PostgresStore {
    async fn move_rows(&self, sql: &str, moves: Vec<&Move>) -> Result<Vec<i16>, Error> {
        let delay = |of: &&Move| match of.to {
            Target::Parked(delay) => delay.as_secs_f64(),
            Target::Dead => 0.0,
        };
        let attempts = |of: &&Move| i32::try_from(of.attempts).unwrap_or(i32::MAX);
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .bind(self.relay)
            .bind(column(&moves, |of| of.lane.lane))
            .bind(column(&moves, |of| of.lane.epoch))
            .bind(column(&moves, |of| of.row.id))
            .bind(column(&moves, attempts))
            .bind(column(&moves, delay))
            .bind(column(&moves, |of| &*of.error))
            .bind(column(&moves, |of| of.from == Table::Parked))
            .bind(column(&moves, |of| of.row.event_id))
            .fetch_all(&self.pool)
            .await
    }
}

impl Store for PostgresStore {
    async fn heartbeat(&self) -> Result<View, OutboxError> {
        let error = error("the heartbeat of the relay");
        if let Some(session) = &self.session {
            session.ensure().await.map_err(&error)?;
        }
        let heartbeat = sqlx::query_scalar::<_, i64>(AssertSqlSafe(self.sql.heartbeat.clone()));
        let xid = heartbeat.bind(self.relay).fetch_one(&self.pool).await.map_err(&error)?;
        let lanes: Vec<(i16, Option<Uuid>, i64)> =
            sqlx::query_as(AssertSqlSafe(self.sql.lanes.clone()))
                .fetch_all(&self.pool)
                .await
                .map_err(&error)?;
        let live: Vec<Uuid> = sqlx::query_scalar(AssertSqlSafe(self.sql.live.clone()))
            .bind(self.lease.as_secs_f64())
            .fetch_all(&self.pool)
            .await
            .map_err(&error)?;
        if let Some(session) = &self.session
            && !live.contains(&self.relay)
        {
            session.end().await;
        }
        let lanes = lanes.into_iter();
        let lanes = lanes.map(|(lane, owner, epoch)| (LaneEpoch { lane, epoch }, owner)).collect();
        Ok(View { live, lanes, xid: u64::try_from(xid).ok() })
    }

    async fn take(&self, dead: &[Uuid], most: usize) -> Result<Vec<LaneEpoch>, OutboxError> {
        let error = error("taking lanes of the outbox");
        let taken: Vec<(i16, i64)> = sqlx::query_as(AssertSqlSafe(self.sql.take.clone()))
            .bind(self.relay)
            .bind(dead)
            .bind(count(most))
            .fetch_all(&self.pool)
            .await
            .map_err(&error)?;
        if !dead.is_empty() {
            let remove_relays =
                sqlx::query(AssertSqlSafe(self.sql.remove_relays.clone())).bind(dead);
            remove_relays.execute(&self.pool).await.map_err(&error)?;
        }
        Ok(taken.into_iter().map(|(lane, epoch)| LaneEpoch { lane, epoch }).collect())
    }

    async fn parked(&self, lanes: &[LaneEpoch]) -> Result<Vec<ParkedEntry>, OutboxError> {
        type Parked = (i16, i64, Uuid, String, Option<Vec<u8>>, i32, f64);
        let rows: Vec<Parked> = sqlx::query_as(AssertSqlSafe(self.sql.parked.clone()))
            .bind(column(lanes, |at| at.lane))
            .fetch_all(&self.pool)
            .await
            .map_err(error("reading the parked rows of the outbox"))?;
        let entries = rows.into_iter().map(|(lane, id, event_id, topic, key, attempts, due_in)| {
            let row = RowId { id, event_id };
            let order = order_of(row, topic.into(), key.map(Bytes::from));
            let attempts = u32::try_from(attempts).unwrap_or(0);
            let due_in = Duration::try_from_secs_f64(due_in).unwrap_or_default();
            ParkedEntry { lane, row, order, attempts, due_in }
        });
        Ok(entries.collect())
    }

    async fn release(&self, lanes: &[LaneEpoch]) -> Result<(), OutboxError> {
        sqlx::query(AssertSqlSafe(self.sql.release.clone()))
            .bind(self.relay)
            .bind(column(lanes, |at| at.lane))
            .bind(column(lanes, |at| at.epoch))
            .execute(&self.pool)
            .await
            .map_err(error("releasing lanes of the outbox"))?;
        Ok(())
    }

    async fn leave(&self) -> Result<(), OutboxError> {
        if let Some(session) = &self.session {
            session.end().await;
        }
        let leave = sqlx::query(AssertSqlSafe(self.sql.leave.clone())).bind(self.relay);
        let left = leave.execute(&self.pool).await;
        self.pool.close().await;
        left.map_err(error("the end of the relay"))?;
        Ok(())
    }

    async fn hot(&self, reads: &[LaneRead]) -> Result<ReadAnswer<ReadEntry>, OutboxError> {
        let none = LaneEpoch { lane: SNAPSHOT, epoch: 0 };
        let reads = [reads, &[LaneRead { lane: none, above: 0, limit: 0 }]].concat();
        let rows = sqlx::query(AssertSqlSafe(self.sql.hot.clone()))
            .bind(self.relay)
            .bind(column(&reads, |read| read.lane.lane))
            .bind(column(&reads, |read| read.lane.epoch))
            .bind(column(&reads, |read| read.above))
            .bind(column(&reads, |read| count(read.limit)))
            .fetch_all(&self.pool)
            .await;
        rows.and_then(|rows| answer(rows, read_entry)).map_err(error("reading the outbox"))
    }

    async fn ids(&self, ranges: &[LaneRange]) -> Result<ReadAnswer<RowId>, OutboxError> {
        let none = LaneEpoch { lane: SNAPSHOT, epoch: 0 };
        let ranges = [ranges, &[LaneRange { lane: none, above: 0, up_to: 0, limit: 0 }]].concat();
        let rows = sqlx::query(AssertSqlSafe(self.sql.ids.clone()))
            .bind(self.relay)
            .bind(column(&ranges, |range| range.lane.lane))
            .bind(column(&ranges, |range| range.lane.epoch))
            .bind(column(&ranges, |range| range.above))
            .bind(column(&ranges, |range| range.up_to))
            .bind(column(&ranges, |range| count(range.limit)))
            .fetch_all(&self.pool)
            .await;
        rows.and_then(|rows| answer(rows, |row, _| row))
            .map_err(error("reading late rows of the outbox"))
    }

    async fn rows(
        &self,
        rows: &[(LaneEpoch, RowId)],
    ) -> Result<ReadAnswer<ReadEntry>, OutboxError> {
        let rows = sqlx::query(AssertSqlSafe(self.sql.rows.clone()))
            .bind(self.relay)
            .bind(column(rows, |(at, _)| at.lane))
            .bind(column(rows, |(at, _)| at.epoch))
            .bind(column(rows, |(_, row)| row.id))
            .fetch_all(&self.pool)
            .await;
        rows.and_then(|rows| answer(rows, read_entry))
            .map_err(error("reading late rows of the outbox"))
    }

    async fn delete(&self, rows: &[Delete]) -> Result<Option<u64>, OutboxError> {
        let error = error("deleting confirmed rows of the outbox");
        let (parked, pending): (Vec<Delete>, Vec<Delete>) =
            rows.iter().partition(|of| of.table == Table::Parked);
        if !parked.is_empty() {
            sqlx::query(AssertSqlSafe(self.sql.delete_parked.clone()))
                .bind(column(&parked, |of| of.lane.lane))
                .bind(column(&parked, |of| of.row.id))
                .bind(column(&parked, |of| of.row.event_id))
                .execute(&self.pool)
                .await
                .map_err(&error)?;
        }
        if pending.is_empty() {
            return Ok(None);
        }
        let xid = sqlx::query_scalar::<_, i64>(AssertSqlSafe(self.sql.delete.clone()))
            .bind(column(&pending, |of| of.lane.lane))
            .bind(column(&pending, |of| of.row.id))
            .bind(column(&pending, |of| of.row.event_id))
            .fetch_one(&self.pool)
            .await
            .map_err(&error)?;
        Ok(u64::try_from(xid).ok())
    }

    async fn change(&self, moves: &[Move]) -> Result<Vec<i16>, OutboxError> {
        let error = error("parking rows of the outbox");
        let (dead, parked): (Vec<_>, Vec<_>) = moves.iter().partition(|of| of.to == Target::Dead);
        let mut owned = Vec::new();
        if !parked.is_empty() {
            owned.extend(self.move_rows(&self.sql.park, parked).await.map_err(&error)?);
        }
        if !dead.is_empty() {
            owned.extend(self.move_rows(&self.sql.die, dead).await.map_err(&error)?);
        }
        Ok(owned)
    }

    async fn load(&self, load: &Load) -> Result<HashMap<RowId, Payload>, OutboxError> {
        let error = error("reading the parked rows of the outbox");
        let rows = sqlx::query(AssertSqlSafe(self.sql.load.clone()))
            .bind(load.lane.lane)
            .bind(column(&load.rows, |row| row.id))
            .fetch_all(&self.pool)
            .await
            .map_err(&error)?;
        let entry = |row: &PgRow| {
            let id = row_id(row.try_get("id")?, row)?;
            Ok((id, read_entry(id, row).payload))
        };
        rows.iter().map(entry).collect::<Result<_, _>>().map_err(error)
    }

    async fn notify(&self) -> Result<(), OutboxError> {
        let query = sqlx::query(AssertSqlSafe(self.sql.notify.clone()));
        query.execute(&self.pool).await.map_err(error("waking other relays"))?;
        Ok(())
    }
}
