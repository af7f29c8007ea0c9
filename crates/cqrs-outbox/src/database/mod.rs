//! What differs between the databases: one implementation of [`Backend`] each.

#[cfg(feature = "mysql")]
pub(crate) mod mysql;
#[cfg(feature = "mysql")]
pub(crate) mod mysql_list;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use sqlx::{Database, Error, Pool};
use uuid::Uuid;

use crate::migrate::Migration;
use crate::row::NewRow;
use crate::tables::{Dialect, Tables};

/// A database that the outbox supports: `sqlx::Postgres`, `sqlx::MySql` and `sqlx::Sqlite`, by the features of
/// this crate.
pub trait OutboxDatabase: Backend {}

impl<B: Backend> OutboxDatabase for B {}

/// The statements of a database. Sealed: it is implemented here alone.
pub trait Backend: Database {
    const DIALECT: Dialect;

    /// The migrations, in order of their versions.
    const MIGRATIONS: &'static [Migration];

    /// The statement that begins a transaction that writes.
    const BEGIN: &'static str;

    /// Set if an insert fails once the transaction can no longer be committed.
    const INSERT_NEEDS_TRANSACTION: bool;

    /// Inserts `rows`, in their order. Not empty. On PostgreSQL it takes the locks `locks` before, in their order; the
    /// others have none.
    fn insert(
        connection: &mut Self::Connection,
        tables: &Tables,
        rows: &[NewRow<'_>],
        locks: &[i32],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Inserts the mark of a message into the inbox. `false`: it is there already. Waits for a concurrent
    /// transaction that inserted the same one.
    fn mark(
        connection: &mut Self::Connection,
        tables: &Tables,
        consumer: &str,
        message_id: Uuid,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Deletes at most `limit` marks older than `age_micros`, and returns their number.
    fn purge(
        pool: &Pool<Self>,
        tables: &Tables,
        age_micros: i64,
        limit: i64,
    ) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Fails if the transaction, begun by [`BEGIN`](Self::BEGIN), can no longer be committed.
    fn check_open(
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// `true` if an error of [`check_open`](Self::check_open) tells that the server has ended the transaction.
    fn has_ended(error: &Error) -> bool;

    /// `true` if an error of a commit means that nothing was made visible.
    fn is_certain(error: &Error) -> bool;

    /// Runs the missing migrations under a lock, in one transaction where the database can.
    fn migrate(
        pool: &Pool<Self>,
        tables: &Tables,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}
