//! The parked and the dead rows of an outbox, for operators and their tools.

use std::time::{Duration, SystemTime};

use cqrs_core::event::Timestamp;

use super::store::RelayDatabase;
use crate::error::OutboxError;
use crate::outbox::Outbox;
use crate::row::Row;

/// A row whose publish failed: parked, to be tried again, or dead.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailedRow {
    /// The row. Its id is that of the outbox table, from which it was moved.
    pub row: Row,
    /// Failed attempts. 0 for a parked row that waits behind another of its key.
    pub attempts: u32,
    /// The time of the first failure, by the database's clock.
    pub first_failed_at: SystemTime,
    /// Parked: the time of the next attempt. Dead: the time when it was refused for good.
    pub at: SystemTime,
    /// The error of the last attempt, at most 1 KiB. No payload.
    pub last_error: String,
}

impl FailedRow {
    /// Times are microseconds since 1970-01-01 UTC.
    pub(super) fn new(
        row: Row,
        attempts: i32,
        first_failed_at: i64,
        at: i64,
        last_error: String,
    ) -> Self {
        let time = |micros| SystemTime::from(Timestamp::from_unix_micros(micros));
        let attempts = u32::try_from(attempts).unwrap_or(0);
        Self { row, attempts, first_failed_at: time(first_failed_at), at: time(at), last_error }
    }
}

/// The rows that a relay could not publish. On the pool of the outbox.
impl<DB: RelayDatabase> Outbox<DB> {
    /// At most `limit` dead rows with ids above `after`, in order of their ids.
    ///
    /// # Errors
    /// If the database is away.
    pub async fn dead_rows(&self, after: i64, limit: u32) -> Result<Vec<FailedRow>, OutboxError> {
        DB::dead_rows(self, after, limit).await
    }

    /// At most `limit` parked rows with ids above `after`, in order of their ids.
    ///
    /// # Errors
    /// If the database is away.
    pub async fn parked_rows(&self, after: i64, limit: u32) -> Result<Vec<FailedRow>, OutboxError> {
        DB::parked_rows(self, after, limit).await
    }

    /// Puts dead rows back into the outbox, behind all that is there, and returns their number: those of
    /// these ids that were dead. Their event ids stay the same.
    ///
    /// # Errors
    /// If the database is away; nothing is changed then.
    pub async fn replay_dead(&self, ids: &[i64]) -> Result<u64, OutboxError> {
        let replayed = DB::replay_dead(self, ids).await?;
        self.wakeup().wake();
        Ok(replayed)
    }

    /// Deletes the dead rows that died longer ago than `age`, and returns their number.
    ///
    /// # Errors
    /// If the database is away; nothing is changed then.
    pub async fn purge_dead(&self, age: Duration) -> Result<u64, OutboxError> {
        DB::purge_dead(self, age).await
    }
}
