//! The unit of work on an sqlx transaction, which stores events in the outbox.

use std::error::Error;
use std::fmt;

use cqrs_core::broker::BoxFuture;
use cqrs_core::scope::{CommitError, OutboxUnit, TransactionEnded, UnitOfWorkFactory};
use cqrs_core::{Message, UnitOfWork};
use sqlx::{Database, Pool, Transaction};

use crate::database::OutboxDatabase;
use crate::error::OutboxError;
use crate::outbox::Outbox;

type BoxError = Box<dyn Error + Send + Sync>;

/// The table in which a unit of work stores events.
pub(crate) trait EventWriter<DB: Database>: Send + Sync + 'static {
    /// Stores `messages`, in their order.
    fn put<'a>(
        &'a self,
        connection: &'a mut DB::Connection,
        messages: &'a [Message],
    ) -> BoxFuture<'a, Result<(), OutboxError>>;

    /// Called after the commit of stored events.
    fn committed(&self);
}

/// A transaction of an outbox's pool. Handlers get it from their scope.
///
/// ```no_run
/// # use cqrs_core::Scope;
/// # use cqrs_outbox::SqliteUnitOfWork;
/// # async fn f(scope: &mut Scope) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let unit = scope.unit_of_work::<SqliteUnitOfWork>().await?;
/// sqlx::query("UPDATE orders SET paid = true WHERE id = ?").bind(7).execute(unit.connection()).await?;
/// # Ok(())
/// # }
/// ```
pub struct SqlUnitOfWork<DB: OutboxDatabase> {
    transaction: Transaction<'static, DB>,
    writer: Box<dyn EventWriter<DB>>,
    has_stored: bool,
}

impl<DB: OutboxDatabase> SqlUnitOfWork<DB> {
    pub(crate) async fn begin(
        pool: &Pool<DB>,
        writer: impl EventWriter<DB>,
    ) -> Result<Self, OutboxError> {
        let begun = pool.begin_with(DB::BEGIN).await;
        let transaction =
            begun.map_err(|error| OutboxError::database("beginning a transaction", error))?;
        Ok(Self { transaction, writer: Box::new(writer), has_stored: false })
    }

    /// The connection of the transaction, on which queries run.
    pub fn connection(&mut self) -> &mut DB::Connection {
        &mut self.transaction
    }

    /// Fails if the transaction can no longer be committed.
    async fn check_open(&mut self, doing: &'static str) -> Result<(), BoxError> {
        match DB::check_open(&mut self.transaction).await {
            Ok(()) => Ok(()),
            Err(error) if DB::has_ended(&error) => {
                Err(TransactionEnded::new(OutboxError::ended(doing, error)).into())
            }
            Err(error) => Err(OutboxError::database(doing, error).into()),
        }
    }
}

impl<DB: OutboxDatabase> UnitOfWorkFactory for Outbox<DB> {
    type Unit = SqlUnitOfWork<DB>;

    async fn begin(&self) -> Result<Self::Unit, BoxError> {
        Ok(SqlUnitOfWork::begin(self.pool(), self.clone()).await?)
    }
}

impl<DB: OutboxDatabase> EventWriter<DB> for Outbox<DB> {
    fn put<'a>(
        &'a self,
        connection: &'a mut DB::Connection,
        messages: &'a [Message],
    ) -> BoxFuture<'a, Result<(), OutboxError>> {
        Box::pin(Outbox::put(self, connection, messages))
    }

    fn committed(&self) {
        self.wakeup().wake();
    }
}

impl<DB: OutboxDatabase> UnitOfWork for SqlUnitOfWork<DB> {
    async fn commit(mut self) -> Result<(), CommitError> {
        if !self.has_stored {
            self.check_open("committing the transaction").await.map_err(CommitError::failed)?;
        }
        self.transaction.commit().await.map_err(|error| match DB::is_certain(&error) {
            true => CommitError::failed(error),
            false => CommitError::unknown(error),
        })?;
        if self.has_stored {
            self.writer.committed();
        }
        Ok(())
    }

    async fn rollback(self) -> Result<(), BoxError> {
        self.transaction.rollback().await?;
        Ok(())
    }
}

impl<DB: OutboxDatabase> OutboxUnit for SqlUnitOfWork<DB> {
    async fn put(&mut self, messages: &[Message]) -> Result<(), BoxError> {
        if !DB::INSERT_NEEDS_TRANSACTION && !messages.is_empty() {
            self.check_open("writing events to the outbox").await?;
        }
        self.writer.put(&mut self.transaction, messages).await?;
        self.has_stored |= !messages.is_empty();
        Ok(())
    }
}

impl<DB: OutboxDatabase> fmt::Debug for SqlUnitOfWork<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlUnitOfWork")
            .field("has_stored", &self.has_stored)
            .finish_non_exhaustive()
    }
}
