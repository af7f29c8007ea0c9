//! Lists, replays and purges the rows that a relay could not publish; for operators and their tools.

use std::time::Duration;

use super::failed::{FailedRow, FailedTable};
use super::store::RelayDatabase;
use crate::error::OutboxError;
use crate::outbox::Outbox;

/// The rows that a relay could not publish. On the pool of the outbox.
impl<DB: RelayDatabase> Outbox<DB> {
    /// At most `limit` dead rows with ids above `after`, in order of their ids.
    ///
    /// # Errors
    /// If the database is away.
    pub async fn dead_rows(&self, after: i64, limit: u32) -> Result<Vec<FailedRow>, OutboxError> {
        DB::failed_rows(self, FailedTable::Dead, after, limit).await
    }

    /// At most `limit` parked rows with ids above `after`, in order of their ids.
    ///
    /// # Errors
    /// If the database is away.
    pub async fn parked_rows(&self, after: i64, limit: u32) -> Result<Vec<FailedRow>, OutboxError> {
        DB::failed_rows(self, FailedTable::Parked, after, limit).await
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
