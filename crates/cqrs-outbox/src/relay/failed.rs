//! A parked or dead row of an outbox, as the stores read it and operators see it.

use std::time::SystemTime;

use cqrs_core::event::Timestamp;
use sqlx::{ColumnIndex, Decode, Type};
use uuid::Uuid;

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

/// A table of rows whose publish failed.
#[derive(Debug, Clone, Copy)]
pub enum FailedTable {
    Parked,
    Dead,
}

impl FailedTable {
    /// Without its prefix.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Parked => "outbox_parked",
            Self::Dead => "outbox_dead",
        }
    }

    /// The column of [`FailedRow::at`].
    pub(super) fn time(self) -> &'static str {
        match self {
            Self::Parked => "next_at",
            Self::Dead => "died_at",
        }
    }

    /// The column of the time from which [`FailedFilter::older_than`](super::FailedFilter::older_than) counts.
    pub(super) fn since(self) -> &'static str {
        match self {
            Self::Parked => "first_failed_at",
            Self::Dead => "died_at",
        }
    }
}

impl FailedRow {
    /// Reads the columns of a row, `attempts`, `last_error`, and `first_failed_at` and `at` in microseconds since
    /// 1970-01-01 UTC.
    pub(super) fn read<'r, R: sqlx::Row>(row: &'r R) -> Result<Self, sqlx::Error>
    where
        &'static str: ColumnIndex<R>,
        i16: Decode<'r, R::Database> + Type<R::Database>,
        i32: Decode<'r, R::Database> + Type<R::Database>,
        i64: Decode<'r, R::Database> + Type<R::Database>,
        bool: Decode<'r, R::Database> + Type<R::Database>,
        Uuid: Decode<'r, R::Database> + Type<R::Database>,
        &'r str: Decode<'r, R::Database> + Type<R::Database>,
        Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
    {
        let time = |micros| SystemTime::from(Timestamp::from_unix_micros(micros));
        Ok(Self {
            row: Row::read(row)?,
            attempts: u32::try_from(row.try_get::<i32, _>("attempts")?).unwrap_or(0),
            first_failed_at: time(row.try_get("first_failed_at")?),
            at: time(row.try_get("at")?),
            last_error: row.try_get::<&str, _>("last_error")?.to_owned(),
        })
    }
}
