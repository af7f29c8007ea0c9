//! The unit of work of a scope: begun on first use, committed or rolled back once.

use std::any::{Any, type_name};
use std::error::Error;

use crate::broker::BoxFuture;
use crate::dispatch::caught;

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// A transaction of any kind: the writes of one `send` become visible together or not at all.
///
/// After a successful `send` it is committed exactly once, after a failed one rolled back exactly once.
/// Both run in a task that a dropped `send` does not cancel. Without a tokio runtime (the `send` was
/// dropped outside of one) it is dropped, so dropping must roll back, too.
pub trait UnitOfWork: Send + Sized + 'static {
    /// Makes all writes visible.
    ///
    /// # Errors
    /// `send` returns the error and publishes nothing. `?` makes any error one with an
    /// [unknown](CommitError::unknown) outcome, as after a connection lost during a `COMMIT`; use
    /// [`CommitError::failed`] if nothing was made visible for certain.
    fn commit(self) -> impl Future<Output = Result<(), CommitError>> + Send;

    /// Undoes all writes.
    ///
    /// # Errors
    /// They are logged: the caller gets the error that caused the rollback.
    fn rollback(self) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// Begins a unit of work for a scope, on first use.
#[diagnostic::on_unimplemented(
    message = "`{Self}` begins no unit of work: write `impl UnitOfWorkFactory for {Self}`",
    label = "not a factory of units of work"
)]
pub trait UnitOfWorkFactory: Send + Sync + 'static {
    /// The type that handlers request from the scope.
    type Unit: UnitOfWork;

    /// Begins a unit of work.
    ///
    /// # Errors
    /// They are returned to the handler that requested the unit of work.
    ///
    /// # Cancel safety
    /// A dropped future must leave nothing begun.
    fn begin(&self) -> impl Future<Output = Result<Self::Unit, BoxError>> + Send;
}

/// The error of a scope that has no unit of work, or could not finish it.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum UnitOfWorkError {
    /// The mediator was built without one.
    #[error("no unit of work: give the mediator's builder one with `unit_of_work(factory)`")]
    NotConfigured,
    /// The mediator's unit of work is of another type.
    #[error("the scope's unit of work is a {configured}, not a {asked}")]
    WrongType {
        /// The type the handler asked for.
        asked: &'static str,
        /// The type the mediator's factory makes.
        configured: &'static str,
    },
    /// Event handlers that run in parallel share no transaction.
    #[error("event handlers that run in parallel have no unit of work: set the concurrency to 1")]
    Parallel,
    /// Beginning it failed.
    #[error("the unit of work could not be begun")]
    Begin(#[source] BoxError),
    /// Committing it failed: nothing was made visible, and nothing was published.
    #[error("the unit of work could not be committed")]
    Commit(#[source] BoxError),
    /// Committing it failed, and its writes may be visible. Nothing was published.
    #[error("the unit of work may or may not be committed; look before sending the request again")]
    CommitUnknown(#[source] BoxError),
    /// The notifications could not be stored in it: it is rolled back.
    #[error("the events could not be stored in the outbox; the unit of work is rolled back")]
    Outbox(#[source] BoxError),
    /// Its transaction had ended before: a part of its writes may be visible. Nothing was stored or published, and a
    /// retry cannot make up for it.
    #[error("a part of the unit of work may be committed, without its events")]
    Ended(#[source] TransactionEnded),
    /// The consumed message could not be marked in it: it is rolled back.
    #[error("the inbox could not mark the message; the unit of work is rolled back")]
    Inbox(#[source] BoxError),
}

crate::error_debug!(UnitOfWorkError);

impl UnitOfWorkError {
    /// [`Ended`](Self::Ended) if that is the reason, else `other`.
    pub(super) fn ended_or(source: BoxError, other: fn(BoxError) -> Self) -> Self {
        match source.downcast() {
            Ok(ended) => Self::Ended(*ended),
            Err(source) => other(source),
        }
    }
}

/// The reason why a unit of work can neither be committed nor rolled back: the database ended its transaction before. What
/// was written before the end may be committed, and what was written after it is.
///
/// MySQL commits at a DDL statement. As the error of [`UnitOfWork::commit`] or
/// [`OutboxUnit::put`](super::OutboxUnit::put) it makes the failure [`UnitOfWorkError::Ended`]. A consumed message is
/// dead-lettered then: its mark in the inbox may be committed, so that a retry would be taken for a duplicate.
#[derive(Debug, thiserror::Error)]
#[error("the transaction ended before its commit")]
pub struct TransactionEnded(#[source] BoxError);

impl TransactionEnded {
    /// `source`: the error of the database.
    pub fn new(source: impl Into<BoxError>) -> Self {
        Self(source.into())
    }
}

/// The error of a commit, with a certain or an unknown outcome.
///
/// `?` converts any error into one with an unknown outcome. Like `anyhow::Error` it does not implement
/// `std::error::Error`.
#[derive(Debug)]
pub struct CommitError {
    is_certain: bool,
    source: BoxError,
}

impl CommitError {
    /// Nothing was made visible.
    pub fn failed(source: impl Into<BoxError>) -> Self {
        Self { is_certain: true, source: source.into() }
    }

    /// The writes may be visible.
    pub fn unknown(source: impl Into<BoxError>) -> Self {
        Self { is_certain: false, source: source.into() }
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for CommitError {
    fn from(error: E) -> Self {
        Self::unknown(error)
    }
}

/// The dyn-safe twin of [`UnitOfWork`].
pub(crate) trait ErasedUnit: Send {
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn type_name(&self) -> &'static str;
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<(), UnitOfWorkError>>;
    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<(), BoxError>>;
}

impl<U: UnitOfWork> ErasedUnit for U {
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn type_name(&self) -> &'static str {
        type_name::<U>()
    }

    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<(), UnitOfWorkError>> {
        Box::pin(async {
            UnitOfWork::commit(*self).await.map_err(|CommitError { is_certain, source }| {
                let other = match is_certain {
                    true => UnitOfWorkError::Commit,
                    false => UnitOfWorkError::CommitUnknown,
                };
                UnitOfWorkError::ended_or(source, other)
            })
        })
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<(), BoxError>> {
        Box::pin(UnitOfWork::rollback(*self))
    }
}

/// Rolls back and logs errors: the caller has the error that caused the rollback.
pub(crate) async fn roll_back(unit: Box<dyn ErasedUnit>) {
    match caught(|| unit.rollback()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(error = &*error as &dyn Error, "rollback failed"),
        Err(panic) => tracing::error!(panic, "rollback panicked"),
    }
}
