//! The relay's statements on MySQL and MariaDB.
//!
//! They read without locks. All but the heartbeat run in transactions of their own, in READ COMMITTED: it shows no row that
//! may still be rolled back, whatever the default of the server, and locks no gaps where writers insert. A proxy that
//! splits reads from writes sends transactions to the server that is written.

mod session;
mod sql;
mod start;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sqlx::mysql::{MySqlArguments, MySqlRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection as _, Error, MySql, MySqlConnection, Row as _};
use uuid::Uuid;

use self::session::Session;
use self::sql::{Asked, Moved, Sql, micros};
use super::connections::{Connections, Lent};
use super::{FORGOTTEN_AFTER, Payload, ReadEntry, Store, View, entry_of, order_of};
use crate::database::mysql::BEGIN_READ_COMMITTED;
use crate::database::mysql_list::{json, list};
use crate::error::OutboxError;
use crate::relay::effects::{
    Delete, LaneEpoch, LaneRange, LaneRead, Late, LateRow, Load, Move, ReadAnswer, RowId, Table,
    Target,
};
use crate::relay::lane::ParkedEntry;
use crate::row::{MessageReader, unread_size};

#[derive(Debug)]
pub struct MysqlStore {
    connections: Connections<MySql>,
    /// Of the heartbeat alone.
    heartbeats: Connections<MySql>,
    relay: Uuid,
    session: Option<Session>,
    lease: Duration,
    /// The statement that makes the settings of a new connection.
    settings: String,
    sql: Sql,
}

fn error(doing: &'static str) -> impl Fn(Error) -> OutboxError {
    move |error| OutboxError::database(doing, error)
}

fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// The answer to a read of the lanes `asked`: its first rows are the lanes that the relay owned in the snapshot of
/// the statement.
fn answer<T>(
    rows: &[MySqlRow],
    asked: impl Iterator<Item = LaneEpoch>,
    mut value: impl FnMut(RowId, &MySqlRow) -> Result<T, Error>,
) -> Result<ReadAnswer<T>, Error> {
    let (mut owned, mut found) = (Vec::new(), Vec::with_capacity(rows.len()));
    for row in rows {
        if row.try_get::<bool, _>("is_lane")? {
            owned.push(LaneEpoch { lane: row.try_get("lane")?, epoch: row.try_get("id")? });
        } else {
            found.push((row.try_get::<i16, _>("lane")?, row_id(row)?, row));
        }
    }
    let (kept, lost): (Vec<_>, Vec<_>) = asked.partition(|at| owned.contains(at));
    found.retain(|(lane, ..)| kept.iter().any(|at| at.lane == *lane));
    found.sort_unstable_by_key(|(lane, id, _)| (*lane, *id));
    let rows = found.into_iter().map(|(lane, id, row)| Ok((lane, value(id, row)?)));
    Ok(ReadAnswer { rows: rows.collect::<Result<_, Error>>()?, lost, late: Late::None })
}

fn row_id(row: &MySqlRow) -> Result<RowId, Error> {
    Ok(RowId { id: row.try_get("id")?, event_id: row.try_get("event_id")? })
}

/// The bytes of a body.
fn size(row: &MySqlRow) -> Result<usize, Error> {
    Ok(usize::try_from(row.try_get::<i64, _>("size")?).unwrap_or(0))
}

fn read_entry(messages: &mut MessageReader, id: RowId, row: &MySqlRow) -> ReadEntry {
    entry_of(id, messages.read(row), || unread_size(row))
}

/// The rows of a hot read, of those that a read without bound in bytes found.
fn within_bytes(reads: &[LaneRead], found: &[(i16, LateRow)]) -> Vec<(LaneEpoch, RowId)> {
    let mut kept = Vec::with_capacity(found.len());
    for read in reads {
        let mut bytes = 0;
        let of_lane = found.iter().filter(|(lane, _)| *lane == read.lane.lane);
        for (_, found) in of_lane {
            if bytes >= read.bytes {
                break;
            }
            bytes += found.size;
            kept.push((read.lane, found.row));
        }
    }
    kept
}

/// A statement whose text stays prepared, to be bound and run.
fn query(sql: &str) -> Query<'_, MySql, MySqlArguments> {
    sqlx::query(AssertSqlSafe(sql.to_owned()))
}

/// A statement whose text depends on its values.
fn query_once<'q>(sql: String) -> Query<'q, MySql, MySqlArguments> {
    sqlx::query(AssertSqlSafe(sql)).persistent(false)
}

impl MysqlStore {
    async fn lend<'c>(
        &self,
        connections: &'c Connections<MySql>,
    ) -> Result<Lent<'c, MySql>, Error> {
        let mut lent = connections.lend().await?;
        if lent.is_new() {
            let settings = sqlx::raw_sql(AssertSqlSafe(self.settings.clone()));
            settings.execute(lent.connection()).await?;
        }
        Ok(lent)
    }

    /// Runs `statements` in a transaction. After an error or a drop the connection is closed, which rolls back.
    async fn transaction_on<T>(
        &self,
        connections: &Connections<MySql>,
        statements: impl AsyncFnOnce(&mut MySqlConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut lent = self.lend(connections).await?;
        let mut tx = lent.connection().begin_with(BEGIN_READ_COMMITTED).await?;
        // Boxed: the compiler bounds the depth of the futures that a relay is part of.
        let done = Box::pin(statements(&mut tx)).await?;
        tx.commit().await?;
        lent.give_back();
        Ok(done)
    }

    async fn in_transaction<T>(
        &self,
        statements: impl AsyncFnOnce(&mut MySqlConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.transaction_on(&self.connections, statements).await
    }

    /// The rows of a statement; none of one that writes.
    async fn fetch(&self, query: Query<'_, MySql, MySqlArguments>) -> Result<Vec<MySqlRow>, Error> {
        self.in_transaction(async |tx| query.fetch_all(tx).await).await
    }

    async fn try_heartbeat(&self) -> Result<View, Error> {
        if let Some(session) = &self.session {
            session.ensure().await?;
        }
        // Alone, so that reads that fail do not cost the lanes.
        let mut lent = self.lend(&self.heartbeats).await?;
        query(&self.sql.heartbeat).bind(self.relay).execute(lent.connection()).await?;
        lent.give_back();
        let lane = |row: &MySqlRow| {
            let at = LaneEpoch { lane: row.try_get("lane")?, epoch: row.try_get("epoch")? };
            Ok((at, row.try_get("owner")?))
        };
        let seen = self.transaction_on(&self.heartbeats, async |tx| {
            let lanes = query(&self.sql.lanes).fetch_all(&mut *tx).await?;
            let live = query(&self.sql.live).bind(micros(self.lease)).fetch_all(&mut *tx).await?;
            Ok((lanes, live))
        });
        let (lanes, live) = seen.await?;
        let lanes = lanes.iter().map(lane).collect::<Result<_, Error>>()?;
        let live: Vec<Uuid> = live.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        if let Some(session) = &self.session
            && !live.contains(&self.relay)
        {
            session.end().await;
        }
        Ok(View { live, lanes, xid: None })
    }

    async fn try_take(&self, dead: &[Uuid], most: usize) -> Result<Vec<LaneEpoch>, Error> {
        let owners: Vec<_> = dead.iter().map(|relay| relay.simple().to_string()).collect();
        let free = query(&self.sql.free).bind(owners.join(",")).bind(count(most));
        let taken = self.in_transaction(async |tx| {
            let lane = |row: &MySqlRow| {
                Ok(LaneEpoch {
                    lane: row.try_get("lane")?,
                    epoch: row.try_get::<i64, _>("epoch")? + 1,
                })
            };
            let free = free.fetch_all(&mut *tx).await?;
            let taken = free.iter().map(lane).collect::<Result<Vec<_>, Error>>()?;
            if !taken.is_empty() {
                query_once(self.sql.take(&taken)).bind(self.relay).execute(&mut *tx).await?;
            }
            for relay in dead {
                query(&self.sql.remove_relay).bind(*relay).execute(&mut *tx).await?;
            }
            Ok(taken)
        });
        let taken = taken.await?;
        let forgotten = micros(self.lease.saturating_mul(FORGOTTEN_AFTER));
        self.fetch(query(&self.sql.forget_relays).bind(forgotten)).await?;
        Ok(taken)
    }

    async fn try_parked(&self, lanes: &[LaneEpoch]) -> Result<Vec<ParkedEntry>, Error> {
        if lanes.is_empty() {
            return Ok(Vec::new());
        }
        let entry = |of: &MySqlRow| {
            let row = row_id(of)?;
            let key: Option<Vec<u8>> = of.try_get("key")?;
            let order = order_of(row, of.try_get::<&str, _>("topic")?.into(), key.map(Bytes::from));
            let attempts = u32::try_from(of.try_get::<i32, _>("attempts")?).unwrap_or(0);
            let due_in = u64::try_from(of.try_get::<i64, _>("due_in")?).unwrap_or(0);
            let (lane, size) = (of.try_get("lane")?, size(of)?);
            Ok(ParkedEntry {
                lane,
                row,
                order,
                size,
                attempts,
                due_in: Duration::from_micros(due_in),
            })
        };
        self.fetch(query_once(self.sql.parked(lanes))).await?.iter().map(entry).collect()
    }

    /// First the ids, then those rows that the bound in bytes leaves.
    async fn try_hot(&self, reads: &[LaneRead]) -> Result<ReadAnswer<ReadEntry>, Error> {
        let began = Instant::now();
        let range = |read: &LaneRead| {
            let LaneRead { lane, above, limit, bytes: _ } = *read;
            LaneRange { lane, above, up_to: i64::MAX, limit }
        };
        let ranges: Vec<_> = reads.iter().map(range).collect();
        let hot = self.in_transaction(async |tx| {
            let ids = self.read_ids(tx, &ranges).await?;
            let rows = within_bytes(reads, &ids.rows);
            let mut answer = match rows.is_empty() {
                true => ReadAnswer { rows: Vec::new(), lost: Vec::new(), late: Late::None },
                false => self.read_rows(tx, &rows).await?,
            };
            answer.lost.extend(ids.lost);
            Ok(answer)
        });
        let mut answer = hot.await?;
        answer.late = Late::Between(began, Instant::now());
        Ok(answer)
    }

    async fn read_ids(
        &self,
        tx: &mut MySqlConnection,
        ranges: &[LaneRange],
    ) -> Result<ReadAnswer<LateRow>, Error> {
        let asked = Asked::new(ranges);
        let sql = self.sql.ids(asked.parts);
        let mut query = query(&sql).bind(self.relay);
        for range in asked.iter() {
            let (lane, above, up_to, limit) = match range {
                Some(of) => (of.lane.lane, of.above, of.up_to, count(of.limit)),
                None => (-1, 0, 0, 0),
            };
            query = query.bind(lane).bind(above).bind(up_to).bind(limit);
        }
        let rows = query.fetch_all(tx).await?;
        let lanes = ranges.iter().map(|range| range.lane);
        answer(&rows, lanes, |row, of| Ok(LateRow { row, size: size(of)? }))
    }

    async fn read_rows(
        &self,
        tx: &mut MySqlConnection,
        rows: &[(LaneEpoch, RowId)],
    ) -> Result<ReadAnswer<ReadEntry>, Error> {
        let list = list(rows.iter().map(|(at, row)| (at.lane, row.id, row.event_id)));
        let query = query(&self.sql.rows).bind(self.relay).bind(list);
        let found = query.fetch_all(tx).await?;
        let mut asked: Vec<_> = rows.iter().map(|(at, _)| *at).collect();
        asked.dedup();
        let mut messages = MessageReader::new();
        answer(&found, asked.into_iter(), |id, row| Ok(read_entry(&mut messages, id, row)))
    }

    async fn try_delete(&self, rows: &[Delete]) -> Result<(), Error> {
        let deleted = self.in_transaction(async |tx| {
            for table in [Table::Pending, Table::Parked] {
                let rows: Vec<_> = rows.iter().filter(|of| of.table == table).collect();
                if !rows.is_empty() {
                    let list =
                        list(rows.iter().map(|of| (of.lane.lane, of.row.id, of.row.event_id)));
                    query(self.sql.delete(table)).bind(list).execute(&mut *tx).await?;
                }
            }
            Ok(())
        });
        deleted.await
    }

    async fn try_change(&self, moves: &[Move]) -> Result<Vec<i16>, Error> {
        let lanes: Vec<_> = moves.iter().map(|of| of.lane).collect();
        let changed = self.in_transaction(async |tx| {
            // Locks the lanes against a change of their owner until the commit.
            let fence = query_once(self.sql.fence(&lanes)).bind(self.relay);
            let lane = |row: &MySqlRow| {
                Ok(LaneEpoch { lane: row.try_get("lane")?, epoch: row.try_get("epoch")? })
            };
            let owned = fence.fetch_all(&mut *tx).await?;
            let owned = owned.iter().map(lane).collect::<Result<Vec<_>, Error>>()?;
            for (from, is_dead) in [
                (Table::Pending, false),
                (Table::Parked, false),
                (Table::Pending, true),
                (Table::Parked, true),
            ] {
                let same = |of: &&Move| of.from == from && (of.to == Target::Dead) == is_dead;
                let moves = moves.iter().filter(same).filter(|of| owned.contains(&of.lane));
                let moved: Vec<_> = moves.map(Moved::from).collect();
                if !moved.is_empty() {
                    let list = json(&moved);
                    for sql in self.sql.moves(from, is_dead) {
                        query(&sql).bind(&list).execute(&mut *tx).await?;
                    }
                }
            }
            Ok(owned.into_iter().map(|at| at.lane).collect())
        });
        changed.await
    }

    async fn try_load(&self, load: &Load) -> Result<HashMap<RowId, Payload>, Error> {
        let list = list(load.rows.iter().map(|row| (load.lane.lane, row.id, row.event_id)));
        let rows = self.fetch(query(&self.sql.load).bind(list)).await?;
        let mut messages = MessageReader::new();
        let entry = |row: &MySqlRow| {
            let id = row_id(row)?;
            Ok((id, read_entry(&mut messages, id, row).payload))
        };
        rows.iter().map(entry).collect()
    }
}

impl Store for MysqlStore {
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
        if lanes.is_empty() {
            return Ok(());
        }
        let release = query_once(self.sql.release(lanes)).bind(self.relay);
        self.fetch(release).await.map_err(error("releasing lanes of the outbox"))?;
        Ok(())
    }

    async fn leave(&self) -> Result<(), OutboxError> {
        if let Some(session) = &self.session {
            session.end().await;
        }
        let left = self.in_transaction(async |tx| {
            for sql in [&self.sql.free_all, &self.sql.remove_relay] {
                query(sql).bind(self.relay).execute(&mut *tx).await?;
            }
            Ok(())
        });
        let left = left.await;
        self.connections.close().await;
        self.heartbeats.close().await;
        left.map_err(error("the end of the relay"))
    }

    async fn hot(&self, reads: &[LaneRead]) -> Result<ReadAnswer<ReadEntry>, OutboxError> {
        self.try_hot(reads).await.map_err(error("reading the outbox"))
    }

    async fn ids(&self, ranges: &[LaneRange]) -> Result<ReadAnswer<LateRow>, OutboxError> {
        let ids = self.in_transaction(async |tx| self.read_ids(tx, ranges).await).await;
        ids.map_err(error("reading late rows of the outbox"))
    }

    async fn rows(
        &self,
        rows: &[(LaneEpoch, RowId)],
    ) -> Result<ReadAnswer<ReadEntry>, OutboxError> {
        let rows = self.in_transaction(async |tx| self.read_rows(tx, rows).await).await;
        rows.map_err(error("reading late rows of the outbox"))
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
        self.try_load(load).await.map_err(error("reading the parked rows of the outbox"))
    }

    fn forget_connections(&self) {
        self.connections.forget();
        self.heartbeats.forget();
    }

    /// Other processes see the rows at their next poll.
    async fn notify(&self) -> Result<(), OutboxError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_that_reaches_the_bound_in_bytes_is_the_last() {
        let at = |lane| LaneEpoch { lane, epoch: 1 };
        let read = |lane| LaneRead { lane: at(lane), above: 0, limit: 10, bytes: 100 };
        let row = |id| RowId { id, event_id: Uuid::nil() };
        let found = |lane, id, size| (lane, LateRow { row: row(id), size });
        let all = [
            found(1, 1, 60),
            found(1, 2, 60),
            found(1, 3, 0),
            found(2, 4, 500),
            found(2, 5, 0),
            found(3, 6, 99),
            found(3, 7, 0),
        ];
        let kept: Vec<_> = within_bytes(&[read(1), read(2), read(3)], &all);
        let expected = [(1, 1), (1, 2), (2, 4), (3, 6), (3, 7)];
        assert_eq!(kept, expected.map(|(lane, id)| (at(lane), row(id))));
    }
}
