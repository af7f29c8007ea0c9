//! The relay's statements on PostgreSQL.

mod sql;
mod start;

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Error, Postgres, Row as _};
use uuid::Uuid;

use self::sql::Sql;
use super::connections::Connections;
use super::session::Session;
use super::{FORGOTTEN_AFTER, Payload, ReadEntry, Store, View, entry_of, order_of};
use crate::error::OutboxError;
use crate::relay::effects::{
    Delete, LaneEpoch, LaneRange, LaneRead, Late, LateRow, Load, Move, ReadAnswer, RowId, Table,
    Target,
};
use crate::relay::history::History;
use crate::relay::lane::ParkedEntry;
use crate::row::{MessageReader, unread_size};

/// A lane that is no lane: its row in an answer carries the snapshot.
const SNAPSHOT: i16 = -1;

#[derive(Debug)]
pub struct PostgresStore {
    connections: Connections<Postgres>,
    /// Of the heartbeat alone.
    heartbeats: Connections<Postgres>,
    relay: Uuid,
    session: Option<Session>,
    lease: Duration,
    /// The statements that begin the transaction of each statement, where connections have no settings.
    begin: Option<String>,
    sql: Sql,
    /// Set if published rows are kept.
    history: Option<History>,
}

/// One column of all elements.
fn column<'a, E, T>(elements: &'a [E], value: impl Fn(&'a E) -> T) -> Vec<T> {
    elements.iter().map(value).collect()
}

/// A number of rows or bytes, as PostgreSQL counts them.
fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

fn error(doing: &'static str) -> impl Fn(Error) -> OutboxError {
    move |error| OutboxError::database(doing, error)
}

/// The answer to a fenced read. `value`: the part of the row that is asked for, if there is one.
fn answer<T>(
    rows: Vec<PgRow>,
    mut value: impl FnMut(RowId, &PgRow) -> Result<T, Error>,
) -> Result<ReadAnswer<T>, Error> {
    let mut answer =
        ReadAnswer { rows: Vec::with_capacity(rows.len()), lost: Vec::new(), late: Late::None };
    for row in &rows {
        let lane: i16 = row.try_get("asked")?;
        if lane == SNAPSHOT {
            let text: &str = row.try_get("snapshot")?;
            let parsed = text.parse().map_err(|error| Error::Decode(Box::new(error)))?;
            answer.late = Late::Since(parsed);
        } else if !row.try_get::<bool, _>("is_owned")? {
            answer.lost.push(LaneEpoch { lane, epoch: row.try_get("asked_epoch")? });
        } else if let Some(id) = row.try_get::<Option<i64>, _>("id")? {
            answer.rows.push((lane, value(row_id(id, row)?, row)?));
        }
    }
    Ok(answer)
}

fn row_id(id: i64, row: &PgRow) -> Result<RowId, Error> {
    Ok(RowId { id, event_id: row.try_get("event_id")? })
}

/// The bytes of a body.
fn size(row: &PgRow) -> Result<usize, Error> {
    Ok(usize::try_from(row.try_get::<i32, _>("size")?).unwrap_or(0))
}

fn read_entry(messages: &mut MessageReader, id: RowId, row: &PgRow) -> ReadEntry {
    entry_of(id, messages.read(row), || unread_size(row))
}

/// A statement, to be bound and run.
fn query(sql: &str) -> Query<'_, Postgres, PgArguments> {
    sqlx::query(AssertSqlSafe(sql.to_owned()))
}

/// The number of the transaction, which its statement returned.
fn xid(rows: &[PgRow]) -> Result<Option<u64>, Error> {
    let row = rows.first().ok_or(Error::RowNotFound)?;
    Ok(u64::try_from(row.try_get::<i64, _>(0)?).ok())
}

impl PostgresStore {
    /// The rows of a statement.
    async fn fetch(&self, query: Query<'_, Postgres, PgArguments>) -> Result<Vec<PgRow>, Error> {
        self.fetch_on(&self.connections, query).await
    }

    async fn fetch_on(
        &self,
        connections: &Connections<Postgres>,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, Error> {
        let mut lent = connections.lend().await?;
        if let Some(begin) = &self.begin {
            let begin = sqlx::raw_sql(AssertSqlSafe(begin.clone()));
            begin.execute(lent.connection()).await?;
        }
        let rows = query.fetch_all(lent.connection()).await?;
        if self.begin.is_some() {
            sqlx::raw_sql("COMMIT").execute(lent.connection()).await?;
        }
        lent.give_back();
        Ok(rows)
    }

    async fn execute(&self, query: Query<'_, Postgres, PgArguments>) -> Result<(), Error> {
        self.fetch(query).await.map(drop)
    }

    /// The number of the transaction of a statement that returns it.
    async fn xid_of(&self, query: Query<'_, Postgres, PgArguments>) -> Result<Option<u64>, Error> {
        xid(&self.fetch(query).await?)
    }

    async fn move_rows(&self, sql: &str, moves: Vec<&Move>) -> Result<Vec<i16>, Error> {
        let delay = |of: &&Move| match of.to {
            Target::Parked(delay) => delay.as_secs_f64(),
            Target::Dead => 0.0,
        };
        let attempts = |of: &&Move| i32::try_from(of.attempts).unwrap_or(i32::MAX);
        let query = query(sql)
            .bind(self.relay)
            .bind(column(&moves, |of| of.lane.lane))
            .bind(column(&moves, |of| of.lane.epoch))
            .bind(column(&moves, |of| of.row.id))
            .bind(column(&moves, attempts))
            .bind(column(&moves, delay))
            .bind(column(&moves, |of| &*of.error))
            .bind(column(&moves, |of| of.from == Table::Parked))
            .bind(column(&moves, |of| of.row.event_id));
        self.fetch(query).await?.iter().map(|row| row.try_get(0)).collect()
    }

    async fn try_heartbeat(&self) -> Result<View, Error> {
        if let Some(history) = &self.history {
            history.ensure();
        }
        if let Some(session) = &self.session {
            session.ensure().await?;
        }
        let of = &self.heartbeats;
        let heartbeat = query(&self.sql.heartbeat).bind(self.relay);
        let xid = xid(&self.fetch_on(of, heartbeat).await?)?;
        let lanes = self.fetch_on(of, query(&self.sql.lanes)).await?;
        let lane = |row: &PgRow| {
            let at = LaneEpoch { lane: row.try_get("lane")?, epoch: row.try_get("epoch")? };
            Ok((at, row.try_get("owner")?))
        };
        let lanes = lanes.iter().map(lane).collect::<Result<_, Error>>()?;
        let live = query(&self.sql.live).bind(self.lease.as_secs_f64());
        let live = self.fetch_on(of, live).await?;
        let live: Vec<Uuid> = live.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        if let Some(session) = &self.session
            && !live.contains(&self.relay)
        {
            session.end().await;
        }
        Ok(View { live, lanes, xid })
    }

    async fn try_take(&self, dead: &[Uuid], most: usize) -> Result<Vec<LaneEpoch>, Error> {
        let take = query(&self.sql.take).bind(self.relay).bind(dead).bind(count(most));
        let taken = self.fetch(take).await?;
        let forgotten = self.lease.as_secs_f64() * f64::from(FORGOTTEN_AFTER);
        self.execute(query(&self.sql.remove_relays).bind(dead).bind(forgotten)).await?;
        let lane = |row: &PgRow| {
            Ok(LaneEpoch { lane: row.try_get("lane")?, epoch: row.try_get("epoch")? })
        };
        taken.iter().map(lane).collect()
    }

    async fn try_parked(&self, lanes: &[LaneEpoch]) -> Result<Vec<ParkedEntry>, Error> {
        let rows = self.fetch(query(&self.sql.parked).bind(column(lanes, |at| at.lane))).await?;
        let entry = |of: &PgRow| {
            let row = row_id(of.try_get("id")?, of)?;
            let key: Option<Vec<u8>> = of.try_get("key")?;
            let order = order_of(row, of.try_get::<&str, _>("topic")?.into(), key.map(Bytes::from));
            let attempts = u32::try_from(of.try_get::<i32, _>("attempts")?).unwrap_or(0);
            let due_in = Duration::try_from_secs_f64(of.try_get("due_in")?).unwrap_or_default();
            let (lane, size) = (of.try_get("lane")?, size(of)?);
            Ok(ParkedEntry { lane, row, order, size, attempts, due_in })
        };
        rows.iter().map(entry).collect()
    }

    async fn try_hot(&self, reads: &[LaneRead]) -> Result<ReadAnswer<ReadEntry>, Error> {
        let none = LaneEpoch { lane: SNAPSHOT, epoch: 0 };
        let reads = [reads, &[LaneRead { lane: none, above: 0, limit: 0, bytes: 0 }]].concat();
        let query = query(&self.sql.hot)
            .bind(self.relay)
            .bind(column(&reads, |read| read.lane.lane))
            .bind(column(&reads, |read| read.lane.epoch))
            .bind(column(&reads, |read| read.above))
            .bind(column(&reads, |read| count(read.limit)))
            .bind(column(&reads, |read| count(read.bytes)));
        let (rows, mut messages) = (self.fetch(query).await?, MessageReader::new());
        answer(rows, |id, row| Ok(read_entry(&mut messages, id, row)))
    }

    async fn try_ids(&self, ranges: &[LaneRange]) -> Result<ReadAnswer<LateRow>, Error> {
        let none = LaneEpoch { lane: SNAPSHOT, epoch: 0 };
        let ranges = [ranges, &[LaneRange { lane: none, above: 0, up_to: 0, limit: 0 }]].concat();
        let query = query(&self.sql.ids)
            .bind(self.relay)
            .bind(column(&ranges, |range| range.lane.lane))
            .bind(column(&ranges, |range| range.lane.epoch))
            .bind(column(&ranges, |range| range.above))
            .bind(column(&ranges, |range| range.up_to))
            .bind(column(&ranges, |range| count(range.limit)));
        answer(self.fetch(query).await?, |id, row| Ok(LateRow { row: id, size: size(row)? }))
    }

    async fn try_rows(&self, rows: &[(LaneEpoch, RowId)]) -> Result<ReadAnswer<ReadEntry>, Error> {
        let query = query(&self.sql.rows)
            .bind(self.relay)
            .bind(column(rows, |(at, _)| at.lane))
            .bind(column(rows, |(at, _)| at.epoch))
            .bind(column(rows, |(_, row)| row.id));
        let (rows, mut messages) = (self.fetch(query).await?, MessageReader::new());
        answer(rows, |id, row| Ok(read_entry(&mut messages, id, row)))
    }

    async fn try_delete(&self, rows: &[Delete]) -> Result<Option<u64>, Error> {
        let (parked, pending): (Vec<Delete>, Vec<Delete>) =
            rows.iter().partition(|of| of.table == Table::Parked);
        let bound = |sql, rows: &[Delete]| {
            query(sql)
                .bind(column(rows, |of| of.lane.lane))
                .bind(column(rows, |of| of.row.id))
                .bind(column(rows, |of| of.row.event_id))
        };
        if !parked.is_empty() {
            self.execute(bound(&self.sql.delete_parked, &parked)).await?;
        }
        if pending.is_empty() {
            return Ok(None);
        }
        self.xid_of(bound(&self.sql.delete, &pending)).await
    }

    async fn try_change(&self, moves: &[Move]) -> Result<Vec<i16>, Error> {
        let (dead, parked): (Vec<_>, Vec<_>) = moves.iter().partition(|of| of.to == Target::Dead);
        let mut owned = Vec::new();
        if !parked.is_empty() {
            owned.extend(self.move_rows(&self.sql.park, parked).await?);
        }
        if !dead.is_empty() {
            owned.extend(self.move_rows(&self.sql.die, dead).await?);
        }
        Ok(owned)
    }

    async fn try_load(&self, load: &Load) -> Result<HashMap<RowId, Payload>, Error> {
        let query = query(&self.sql.load).bind(load.lane.lane);
        let rows = self.fetch(query.bind(column(&load.rows, |row| row.id))).await?;
        let mut messages = MessageReader::new();
        let entry = |row: &PgRow| {
            let id = row_id(row.try_get("id")?, row)?;
            Ok((id, read_entry(&mut messages, id, row).payload))
        };
        rows.iter().map(entry).collect()
    }

    async fn try_release(&self, lanes: &[LaneEpoch]) -> Result<(), Error> {
        let query = query(&self.sql.release).bind(self.relay);
        let query = query.bind(column(lanes, |at| at.lane)).bind(column(lanes, |at| at.epoch));
        self.execute(query).await
    }
}

impl Store for PostgresStore {
    async fn heartbeat(&self) -> Result<View, OutboxError> {
        self.try_heartbeat().await.map_err(error("the heartbeat of the relay"))
    }

    async fn take(&self, dead: &[Uuid], most: usize) -> Result<Vec<LaneEpoch>, OutboxError> {
        self.try_take(dead, most).await.map_err(error("taking lanes of the outbox"))
    }

    async fn parked(&self, lanes: &[LaneEpoch]) -> Result<Vec<ParkedEntry>, OutboxError> {
        let parked = self.try_parked(lanes).await;
        parked.map_err(error("reading the parked rows of the outbox"))
    }

    async fn release(&self, lanes: &[LaneEpoch]) -> Result<(), OutboxError> {
        self.try_release(lanes).await.map_err(error("releasing lanes of the outbox"))
    }

    async fn leave(&self) -> Result<(), OutboxError> {
        if let Some(history) = &self.history {
            history.end();
        }
        if let Some(session) = &self.session {
            session.end().await;
        }
        let left = self.execute(query(&self.sql.leave).bind(self.relay)).await;
        self.connections.close().await;
        self.heartbeats.close().await;
        left.map_err(error("the end of the relay"))
    }

    async fn hot(&self, reads: &[LaneRead]) -> Result<ReadAnswer<ReadEntry>, OutboxError> {
        self.try_hot(reads).await.map_err(error("reading the outbox"))
    }

    async fn ids(&self, ranges: &[LaneRange]) -> Result<ReadAnswer<LateRow>, OutboxError> {
        self.try_ids(ranges).await.map_err(error("reading late rows of the outbox"))
    }

    async fn rows(
        &self,
        rows: &[(LaneEpoch, RowId)],
    ) -> Result<ReadAnswer<ReadEntry>, OutboxError> {
        self.try_rows(rows).await.map_err(error("reading late rows of the outbox"))
    }

    async fn delete(&self, rows: &[Delete]) -> Result<Option<u64>, OutboxError> {
        let deleted = self.try_delete(rows).await;
        if let (Err(_), Some(history)) = (&deleted, &self.history) {
            history.look();
        }
        deleted.map_err(error("deleting confirmed rows of the outbox"))
    }

    async fn change(&self, moves: &[Move]) -> Result<Vec<i16>, OutboxError> {
        self.try_change(moves).await.map_err(error("parking rows of the outbox"))
    }

    async fn load(&self, load: &Load) -> Result<HashMap<RowId, Payload>, OutboxError> {
        self.try_load(load).await.map_err(error("reading the parked rows of the outbox"))
    }

    fn forget_connections(&self) {
        self.connections.forget();
        self.heartbeats.forget();
    }

    async fn notify(&self) -> Result<(), OutboxError> {
        self.execute(query(&self.sql.notify)).await.map_err(error("waking other relays"))
    }
}
