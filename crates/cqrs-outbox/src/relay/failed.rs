//! A parked or dead row of an outbox, as operators see it, and its table.

use std::fmt;
use std::time::SystemTime;

use bytes::Bytes;
use cqrs_core::event::Timestamp;
use cqrs_core::message::Headers;
use sqlx::{ColumnIndex, Decode, Type};
use uuid::Uuid;

use super::outage::cut;
use crate::row::read_headers;

/// A row whose publish failed: parked, to be tried again, or dead. Its body is read apart, by
/// [`Outbox::dead_body`](crate::Outbox::dead_body) or [`parked_body`](crate::Outbox::parked_body).
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailedRow {
    /// The id: that of the outbox table, from which the row was moved. Within a key, in order of writing. After a
    /// failover that lost rows two of them may have one id, with other event ids.
    pub id: i64,
    /// The lane.
    pub lane: i16,
    /// The event's id.
    pub event_id: Uuid,
    /// The event's name.
    pub name: String,
    /// The topic.
    pub topic: String,
    /// The key.
    pub key: Option<Bytes>,
    /// The media type of the body.
    pub content_type: Option<String>,
    /// The headers.
    pub headers: Headers,
    /// The bytes of the body.
    pub body_size: u64,
    /// The event's time.
    pub occurred_at: SystemTime,
    /// `false` if the broker may drop the message when it has no receiver.
    pub mandatory: bool,
    /// The time of writing, by the database's clock.
    pub created_at: SystemTime,
    /// Failed attempts. 0 for a parked row that waits behind another of its key.
    pub attempts: u32,
    /// The time of the first failure, by the database's clock.
    pub first_failed_at: SystemTime,
    /// Parked: the time of the next attempt. Dead: the time when it was refused for good.
    pub at: SystemTime,
    /// The error of the last attempt, at most 1 KiB. No payload.
    pub last_error: String,
    /// Why a part of the row cannot be read, such as headers that are no JSON. That part is empty here, or 1970.
    pub unreadable: Option<String>,
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
    /// Reads the columns without a body, `size`, `attempts`, `last_error`, and `created_at`, `first_failed_at` and `at`
    /// in microseconds since 1970-01-01 UTC.
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
        let mut parts = Parts::default();
        let time = |micros| SystemTime::from(Timestamp::from_unix_micros(micros));
        Ok(Self {
            id: row.try_get("id")?,
            lane: row.try_get("lane")?,
            event_id: parts.read(row.try_get("event_id")),
            name: parts.read(row.try_get::<&str, _>("name")).to_owned(),
            topic: parts.read(row.try_get::<&str, _>("topic")).to_owned(),
            key: parts.read(row.try_get::<Option<Vec<u8>>, _>("key")).map(Bytes::from),
            content_type: parts
                .read(row.try_get::<Option<&str>, _>("content_type"))
                .map(str::to_owned),
            headers: parts.read(read_headers(row)),
            body_size: u64::try_from(parts.read(row.try_get::<i64, _>("size"))).unwrap_or(0),
            occurred_at: time(parts.read(row.try_get("occurred_at"))),
            mandatory: parts.read(row.try_get("mandatory")),
            created_at: time(parts.read(row.try_get("created_at"))),
            attempts: u32::try_from(parts.read(row.try_get::<i32, _>("attempts"))).unwrap_or(0),
            first_failed_at: time(parts.read(row.try_get("first_failed_at"))),
            at: time(parts.read(row.try_get("at"))),
            last_error: parts.read(row.try_get::<&str, _>("last_error")).to_owned(),
            unreadable: parts.error,
        })
    }
}

/// The parts of a row; the first one that cannot be read.
#[derive(Default)]
struct Parts {
    error: Option<String>,
}

impl Parts {
    /// The part, or an empty one.
    fn read<T: Default>(&mut self, part: Result<T, sqlx::Error>) -> T {
        part.unwrap_or_else(|error| {
            self.error.get_or_insert_with(|| cut(error.to_string()).to_string());
            T::default()
        })
    }
}

/// Without the key and the headers: payloads do not belong in logs.
impl fmt::Debug for FailedRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailedRow")
            .field("id", &self.id)
            .field("lane", &self.lane)
            .field("event_id", &self.event_id)
            .field("name", &self.name)
            .field("topic", &self.topic)
            .field("body_size", &self.body_size)
            .field("attempts", &self.attempts)
            .field("first_failed_at", &self.first_failed_at)
            .field("at", &self.at)
            .field("last_error", &self.last_error)
            .field("unreadable", &self.unreadable)
            .finish_non_exhaustive()
    }
}
