//! The kinds of errors of the outbox and the inbox.

/// The kind of an [`OutboxError`](crate::OutboxError).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutboxErrorKind {
    /// The database is away: no connection, or it was lost.
    Unavailable,
    /// Another transaction was in the way: a deadlock, a serialization failure, a lock or statement timeout, a
    /// busy SQLite file. The transaction is rolled back, or must be: on MySQL the server has done it after a
    /// deadlock, and what is written after it is in no transaction.
    Conflict,
    /// The server had ended the transaction before. On MySQL a statement that commits implicitly does that (DDL:
    /// `CREATE TABLE`, `TRUNCATE`, ..), and a deadlock that a handler ignored. What was written may be committed, and no
    /// event is stored.
    TransactionEnded,
    /// A table is missing: [`Outbox::migrate`](crate::Outbox::migrate) was not called, or another schema or name
    /// is set.
    NotMigrated,
    /// Any other error of the database.
    Database,
    /// An event could not be serialized.
    Serialize,
    /// A setting is wrong.
    Config,
}
