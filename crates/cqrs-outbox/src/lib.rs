//! Transactional outbox and inbox of the cqrs framework, on sqlx.
//!
//! A handler's writes, the events it emits and the mark of the message it consumed are one transaction. A
//! relay publishes the stored events afterwards, at least once and in order per key.
// Without a database no code runs the statements.
#![cfg_attr(not(any(feature = "postgres", feature = "sqlite")), allow(dead_code))]

mod database;
mod error;
mod headers;
mod inbox;
mod lane;
mod migrate;
mod outbox;
mod relay;
mod row;
mod tables;
mod unit;
mod wakeup;

pub use database::OutboxDatabase;
pub use error::{OutboxError, OutboxErrorKind};
pub use inbox::Inbox;
pub use lane::lane_of;
pub use migrate::Migration;
pub use outbox::Outbox;
pub use relay::{
    FailedRow, Relay, RelayBuilder, RelayDatabase, RelayHandle, RelayReport, RelayStatus,
};
pub use row::{NewRow, Row};
pub use tables::{Dialect, Tables};
pub use unit::SqlUnitOfWork;
pub use wakeup::Wakeup;

/// The outbox on PostgreSQL.
#[cfg(feature = "postgres")]
pub type PostgresOutbox = Outbox<sqlx::Postgres>;
/// The outbox on SQLite.
#[cfg(feature = "sqlite")]
pub type SqliteOutbox = Outbox<sqlx::Sqlite>;

/// The unit of work of a [`PostgresOutbox`].
#[cfg(feature = "postgres")]
pub type PostgresUnitOfWork = SqlUnitOfWork<sqlx::Postgres>;
/// The unit of work of a [`SqliteOutbox`].
#[cfg(feature = "sqlite")]
pub type SqliteUnitOfWork = SqlUnitOfWork<sqlx::Sqlite>;
