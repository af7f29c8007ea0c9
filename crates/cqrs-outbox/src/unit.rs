//! The unit of work on an sqlx transaction, which stores events in the outbox.

use std::error::Error;
use std::fmt;

use cqrs_core::scope::{CommitError, OutboxUnit, UnitOfWorkFactory};
use cqrs_core::{Message, UnitOfWork};
use sqlx::Transaction;

use crate::database::OutboxDatabase;
use crate::error::OutboxError;
use crate::outbox::Outbox;

type BoxError = Box<dyn Error + Send + Sync>;

/// A transaction of an [`Outbox`]'s pool. Handlers get it from their scope.
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
    outbox: Outbox<DB>,
    has_stored: bool,
}

impl<DB: OutboxDatabase> SqlUnitOfWork<DB> {
    /// The connection of the transaction, on which queries run.
    pub fn connection(&mut self) -> &mut DB::Connection {
        &mut self.transaction
    }
}

impl<DB: OutboxDatabase> UnitOfWorkFactory for Outbox<DB> {
    type Unit = SqlUnitOfWork<DB>;

    async fn begin(&self) -> Result<Self::Unit, BoxError> {
        let begun = self.pool().begin_with(DB::BEGIN).await;
        let transaction =
            begun.map_err(|error| OutboxError::database("beginning a transaction", error))?;
        Ok(SqlUnitOfWork { transaction, outbox: self.clone(), has_stored: false })
    }
}

impl<DB: OutboxDatabase> UnitOfWork for SqlUnitOfWork<DB> {
    async fn commit(mut self) -> Result<(), CommitError> {
        if !self.has_stored {
            // Storing events fails itself then.
            DB::check_open(&mut self.transaction).await.map_err(CommitError::failed)?;
        }
        self.transaction.commit().await.map_err(|error| match DB::is_certain(&error) {
            true => CommitError::failed(error),
            false => CommitError::unknown(error),
        })?;
        if self.has_stored {
            self.outbox.wakeup().wake();
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
        self.outbox.put(&mut self.transaction, messages).await?;
        self.has_stored |= !messages.is_empty();
        Ok(())
    }
}

impl<DB: OutboxDatabase> fmt::Debug for SqlUnitOfWork<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlUnitOfWork").field("outbox", &self.outbox).finish_non_exhaustive()
    }
}
