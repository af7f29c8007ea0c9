//! A parked or dead row of an outbox, as the stores read it and operators see it.

use std::time::SystemTime;

use cqrs_core::event::Timestamp;

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
