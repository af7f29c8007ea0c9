//! Counts, lists, replays and purges the rows that a relay could not publish; for operators and their tools.

mod filter;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::SystemTime;

use bytes::Bytes;
use cqrs_core::event::Timestamp;
use uuid::Uuid;

pub use self::filter::FailedFilter;
use super::failed::{FailedRow, FailedTable};
use super::status::{Counts, OutboxStatus, RelayInfo, duration, number};
use crate::database::OutboxDatabase;
use crate::error::OutboxError;
use crate::outbox::Outbox;

/// The number of the rows that meet a filter, the highest of their ids, and the time of the count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailedCount {
    /// The number of rows.
    pub rows: u64,
    /// The highest id, if there is a row.
    pub last_id: Option<i64>,
    /// The time of the count by the database's clock, for [`FailedFilter::as_of`].
    pub at: SystemTime,
}

/// The state of an outbox and of its relays. On the pool of the outbox.
impl<DB: Operations> Outbox<DB> {
    /// Counts the rows, and tells which relays there are. It reads the tables, so that it needs no relay in this
    /// process. Each count is a scan of its table.
    ///
    /// # Errors
    /// If the database is away, or the tables are missing.
    pub async fn status(&self) -> Result<OutboxStatus, OutboxError> {
        let counts = DB::counts(self).await?;
        let mut owned_lanes = 0;
        let mut relays = Vec::new();
        for owner in DB::owners(self).await? {
            owned_lanes += number(owner.lanes);
            // Without a time: the relay has ended, or another one has found that it is dead.
            if let Some(micros) = owner.seen_micros {
                relays.push(RelayInfo {
                    id: owner.relay,
                    seen_ago: duration(micros),
                    lanes: number(owner.lanes),
                });
            }
        }
        Ok(OutboxStatus {
            pending: number(counts.pending),
            oldest: counts.oldest_micros.map(duration),
            parked: number(counts.parked),
            dead: number(counts.dead),
            history: counts.history.map(number),
            lanes: u64::from(DB::DIALECT.lanes()),
            owned_lanes,
            relays,
        })
    }
}

/// The rows that a relay could not publish. On the pool of the outbox.
impl<DB: Operations> Outbox<DB> {
    /// At most `limit` dead rows that meet `filter`, with ids above `after`, in order of their ids; and those that
    /// have the same id as the last one. So the id of the last row is the `after` of the next page.
    ///
    /// # Errors
    /// If the database is away, or the tables are missing. A row that cannot be read is no error: see
    /// [`FailedRow::unreadable`].
    pub async fn dead_rows(
        &self,
        filter: &FailedFilter,
        after: i64,
        limit: u32,
    ) -> Result<Vec<FailedRow>, OutboxError> {
        self.failed_rows(FailedTable::Dead, filter, after, limit).await
    }

    /// As [`dead_rows`](Self::dead_rows), of the parked rows.
    ///
    /// # Errors
    /// As [`dead_rows`](Self::dead_rows).
    pub async fn parked_rows(
        &self,
        filter: &FailedFilter,
        after: i64,
        limit: u32,
    ) -> Result<Vec<FailedRow>, OutboxError> {
        self.failed_rows(FailedTable::Parked, filter, after, limit).await
    }

    async fn failed_rows(
        &self,
        table: FailedTable,
        filter: &FailedFilter,
        after: i64,
        limit: u32,
    ) -> Result<Vec<FailedRow>, OutboxError> {
        let mut rows = DB::failed_rows(self, table, filter, after, limit).await?;
        let last = rows.last().map(|row| row.id);
        if let Some(last) = last.filter(|_| rows.len() >= limit as usize) {
            let of_last = filter.clone().up_to(last);
            let of_last = DB::failed_rows(self, table, &of_last, last.saturating_sub(1), u32::MAX);
            rows.retain(|row| row.id != last);
            rows.extend(of_last.await?);
        }
        Ok(rows)
    }

    /// The body of a dead row. `None` if the row is not there any more.
    ///
    /// # Errors
    /// If the database is away, or the tables are missing.
    pub async fn dead_body(&self, row: &FailedRow) -> Result<Option<Bytes>, OutboxError> {
        DB::failed_body(self, FailedTable::Dead, row).await
    }

    /// As [`dead_body`](Self::dead_body), of a parked row.
    ///
    /// # Errors
    /// As [`dead_body`](Self::dead_body).
    pub async fn parked_body(&self, row: &FailedRow) -> Result<Option<Bytes>, OutboxError> {
        DB::failed_body(self, FailedTable::Parked, row).await
    }

    /// Counts the dead rows that meet `filter`.
    ///
    /// # Errors
    /// If the database is away, or the tables are missing.
    pub async fn count_dead(&self, filter: &FailedFilter) -> Result<FailedCount, OutboxError> {
        let DeadCount { rows, last_id, at } = DB::count_dead(self, filter).await?;
        let at = SystemTime::from(Timestamp::from_unix_micros(at));
        Ok(FailedCount { rows: number(rows), last_id, at })
    }

    /// Puts at most `limit` dead rows that meet `filter` back into the outbox, those with the lowest ids,
    /// behind all that is there, and returns their number. One transaction, on MySQL of at most 10,000 rows. Their event
    /// ids stay the same.
    ///
    /// To replay all, call it until it returns 0, with [`FailedFilter::up_to`] the
    /// [last id](FailedCount::last_id) at the start: a row that dies again has a higher id, and would be
    /// replayed forever. [`FailedFilter::as_of`] the [time of the count](FailedCount::at) leaves out the rows that
    /// die later.
    ///
    /// # Errors
    /// If the database is away, or another transaction is in the way; nothing is changed then.
    ///
    /// # Cancel safety
    /// Dropped, the rows are replayed or not, all of them or none.
    pub async fn replay_dead(&self, filter: &FailedFilter, limit: u32) -> Result<u64, OutboxError> {
        let replayed = DB::replay_dead(self, filter, limit).await?;
        self.wakeup().wake();
        Ok(replayed)
    }

    /// Deletes at most `limit` dead rows that meet `filter`, those with the lowest ids, and returns their
    /// number. One transaction, on MySQL of at most 10,000 rows. Call it until it returns 0 to delete all.
    ///
    /// # Errors
    /// As [`replay_dead`](Self::replay_dead).
    ///
    /// # Cancel safety
    /// As [`replay_dead`](Self::replay_dead).
    pub async fn purge_dead(&self, filter: &FailedFilter, limit: u32) -> Result<u64, OutboxError> {
        DB::purge_dead(self, filter, limit).await
    }
}

/// A relay that is known or owns lanes.
#[derive(Debug)]
pub struct Owner {
    relay: Uuid,
    lanes: i64,
    /// The age of its heartbeat, if it is known.
    seen_micros: Option<i64>,
}

/// The number of the dead rows that meet a filter, their highest id, and the database's time in microseconds.
#[derive(Debug)]
pub struct DeadCount {
    rows: i64,
    last_id: Option<i64>,
    at: i64,
}

/// The statements of operators. Sealed: it is implemented here alone.
pub trait Operations: OutboxDatabase {
    fn counts(outbox: &Outbox<Self>) -> impl Future<Output = Result<Counts, OutboxError>> + Send;

    fn owners(
        outbox: &Outbox<Self>,
    ) -> impl Future<Output = Result<Vec<Owner>, OutboxError>> + Send;

    fn failed_rows(
        outbox: &Outbox<Self>,
        table: FailedTable,
        filter: &FailedFilter,
        after: i64,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<FailedRow>, OutboxError>> + Send;

    fn failed_body(
        outbox: &Outbox<Self>,
        table: FailedTable,
        row: &FailedRow,
    ) -> impl Future<Output = Result<Option<Bytes>, OutboxError>> + Send;

    fn count_dead(
        outbox: &Outbox<Self>,
        filter: &FailedFilter,
    ) -> impl Future<Output = Result<DeadCount, OutboxError>> + Send;

    fn replay_dead(
        outbox: &Outbox<Self>,
        filter: &FailedFilter,
        limit: u32,
    ) -> impl Future<Output = Result<u64, OutboxError>> + Send;

    fn purge_dead(
        outbox: &Outbox<Self>,
        filter: &FailedFilter,
        limit: u32,
    ) -> impl Future<Output = Result<u64, OutboxError>> + Send;
}

fn error(doing: &'static str) -> impl Fn(sqlx::Error) -> OutboxError {
    move |error| OutboxError::database(doing, error)
}

/// The statement that [`owners_of`] reads, with the SQL of the present time in microseconds. One statement, so that it
/// is one snapshot.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
fn owners_sql(now: &str) -> String {
    format!(
        "SELECT id, 0, {now} - seen_at FROM {{t}}outbox_relay UNION ALL \
         SELECT owner, count(*), NULL FROM {{t}}outbox_lane WHERE owner IS NOT NULL GROUP BY owner"
    )
}

/// The owners of rows (relay, lanes, age of the heartbeat): several rows of a relay are one owner.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
fn owners_of(rows: Vec<(Uuid, i64, Option<i64>)>) -> Vec<Owner> {
    let mut owners = std::collections::BTreeMap::new();
    for (relay, lanes, seen_micros) in rows {
        let owner = owners.entry(relay).or_insert(Owner { relay, lanes: 0, seen_micros: None });
        owner.lanes += lanes;
        owner.seen_micros = owner.seen_micros.or(seen_micros);
    }
    owners.into_values().collect()
}

const COUNTING: &str = "counting the rows of the outbox";
const READING: &str = "reading failed rows of the outbox";
const READING_RELAYS: &str = "reading the relays of the outbox";
const REPLAYING: &str = "replaying dead rows";
const PURGING: &str = "purging dead rows";

/// The columns that a replayed row keeps: all but its id.
const REPLAYED: &str = "lane, event_id, name, topic, key, content_type, headers, body, occurred_at, \
                        mandatory, created_at, uncompressed_size";
