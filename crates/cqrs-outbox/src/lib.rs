//! Transactional outbox and inbox of the cqrs framework, on sqlx.
//!
//! A handler's writes, the events it emits and the mark of the message it consumed are one transaction. A
//! relay publishes the stored events afterwards, at least once and in order per key. Applications use the crate as
//! `cqrs::outbox`, with the features `outbox-postgres`, `outbox-mysql` and `outbox-sqlite` of `cqrs`.
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # mod with_sqlite {
//! use cqrs_core::{Mediator, MessageBroker, Subscription};
//! use cqrs_outbox::{Relay, SqliteOutbox}; // or PostgresOutbox, MysqlOutbox
//!
//! async fn wire(
//!     pool: sqlx::SqlitePool,
//!     broker: impl MessageBroker,
//! ) -> Result<(), Box<dyn std::error::Error>> {
//!     let outbox = SqliteOutbox::new(pool);
//!     outbox.migrate().await?; // creates the tables
//!     let mediator = Mediator::builder()
//!         // .handle::<..>(..): handlers ask the scope for the `SqliteUnitOfWork`
//!         .outbox(outbox.clone()) // instead of a broker
//!         .build()?;
//!     let relay = Relay::builder(&outbox, broker).build()?;
//!     let relay = tokio::spawn(relay.run()); // publishes the rows, also as a process of its own
//!
//!     // A consumer that handles each event once.
//!     let orders = Subscription::to("orders").group("billing").inbox(outbox.inbox());
//! #   drop((mediator, relay, orders));
//!     Ok(())
//! }
//! # }
//! ```
//!
//! | to | take |
//! |---|---|
//! | store events in the transaction of a handler | [`PostgresOutbox`], [`MysqlOutbox`], [`SqliteOutbox`]; [`PostgresUnitOfWork`], [`MysqlUnitOfWork`], [`SqliteUnitOfWork`] |
//! | store them in a transaction of yours | [`Outbox::add`] |
//! | publish them | [`Relay`], [`RelayHandle`], [`RelayStatus`], [`RelayReport`] |
//! | look after what failed | [`Outbox::dead_rows`], [`Outbox::replay_dead`], [`Outbox::purge_dead`], [`FailedRow`] |
//! | handle each event once | [`Outbox::inbox`], [`Inbox`] |
//! | compress large bodies in the tables | [`Outbox::compress_above`] |
//! | name the tables, run the migrations | [`Tables`], [`Outbox::migrate`], [`Migration`] |
//! | use another driver | [`NewRow`], [`Dialect`], [`lane_of`] |
#![cfg_attr(docsrs, feature(doc_cfg))]
// Without a database no code runs the statements.
#![cfg_attr(
    not(any(feature = "mysql", feature = "postgres", feature = "sqlite")),
    allow(dead_code)
)]

mod compression;
mod database;
#[cfg(feature = "postgres")]
mod debezium;
mod error;
mod error_kind;
mod headers;
mod inbox;
mod lane;
mod migrate;
#[cfg(feature = "mysql")]
mod mysql_errors;
mod outbox;
#[cfg(feature = "postgres")]
mod python;
mod relay;
mod row;
#[cfg(feature = "postgres")]
mod table_name;
#[cfg(feature = "postgres")]
mod table_outbox;
mod tables;
mod unit;
mod wakeup;

pub use database::OutboxDatabase;
#[cfg(feature = "postgres")]
pub use debezium::DebeziumOutbox;
pub use error::{OutboxError, OutboxErrorKind};
pub use inbox::Inbox;
pub use lane::lane_of;
pub use migrate::Migration;
pub use outbox::Outbox;
#[cfg(feature = "postgres")]
pub use python::{PythonInbox, PythonOutbox};
pub use relay::{
    FailedCount, FailedFilter, FailedRow, OutboxStatus, Relay, RelayBuilder, RelayDatabase,
    RelayHandle, RelayInfo, RelayReport, RelayStatus,
};
#[cfg(feature = "postgres")]
pub use relay::{PythonRelay, PythonRelayBuilder, PythonRelayHandle};
pub use row::NewRow;
#[cfg(feature = "postgres")]
pub use table_outbox::TableOutbox;
pub use tables::{Dialect, Tables};
pub use unit::SqlUnitOfWork;
pub use wakeup::Wakeup;

/// The outbox on MySQL and MariaDB.
#[cfg(feature = "mysql")]
pub type MysqlOutbox = Outbox<sqlx::MySql>;
/// The outbox on PostgreSQL.
#[cfg(feature = "postgres")]
pub type PostgresOutbox = Outbox<sqlx::Postgres>;
/// The outbox on SQLite.
#[cfg(feature = "sqlite")]
pub type SqliteOutbox = Outbox<sqlx::Sqlite>;

/// The unit of work of a [`MysqlOutbox`].
#[cfg(feature = "mysql")]
pub type MysqlUnitOfWork = SqlUnitOfWork<sqlx::MySql>;
/// The unit of work of a [`PostgresOutbox`].
#[cfg(feature = "postgres")]
pub type PostgresUnitOfWork = SqlUnitOfWork<sqlx::Postgres>;
/// The unit of work of a [`SqliteOutbox`].
#[cfg(feature = "sqlite")]
pub type SqliteUnitOfWork = SqlUnitOfWork<sqlx::Sqlite>;
