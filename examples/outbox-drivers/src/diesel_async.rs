//! A unit of work on diesel-async and its bb8 pool.

use std::error::Error;
use std::fmt;

use cqrs::outbox::{Dialect, NewRow, Tables, Wakeup};
use cqrs::scope::{CommitError, OutboxUnit, UnitOfWorkFactory};
use cqrs::{Message, UnitOfWork};
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Nullable, SmallInt, Text, Uuid};
use diesel_async::pooled_connection::bb8::{Pool, PooledConnection};
use diesel_async::{AnsiTransactionManager, AsyncPgConnection, RunQueryDsl, TransactionManager};

type BoxError = Box<dyn Error + Send + Sync>;

/// Begins transactions of a pool.
pub struct Database {
    /// The pool.
    pub pool: Pool<AsyncPgConnection>,
    /// The names of the outbox's tables.
    pub tables: Tables,
    /// `outbox.wakeup()` of a relay in this process. Without it a relay sees the rows at its next poll.
    pub wakeup: Option<Wakeup>,
}

/// A transaction. If it is dropped, the pool sees that it is open and closes the connection, and the database
/// rolls back.
pub struct Transaction {
    connection: PooledConnection<'static, AsyncPgConnection>,
    tables: Tables,
    wakeup: Option<Wakeup>,
}

impl Transaction {
    /// The connection, for the queries of handlers.
    pub fn connection(&mut self) -> &mut AsyncPgConnection {
        &mut self.connection
    }
}

impl UnitOfWorkFactory for Database {
    type Unit = Transaction;

    async fn begin(&self) -> Result<Transaction, BoxError> {
        let mut connection = self.pool.get_owned().await?;
        AnsiTransactionManager::begin_transaction(&mut *connection).await?;
        Ok(Transaction { connection, tables: self.tables.clone(), wakeup: self.wakeup.clone() })
    }
}

impl UnitOfWork for Transaction {
    async fn commit(mut self) -> Result<(), CommitError> {
        // PostgreSQL answers the commit of a failed transaction with a rollback and no error.
        let check = sql_query("SELECT 1").execute(self.connection()).await;
        check.map_err(CommitError::failed)?;
        // An error here: the outcome is unknown.
        AnsiTransactionManager::commit_transaction(self.connection()).await?;
        self.wakeup.iter().for_each(Wakeup::wake);
        Ok(())
    }

    async fn rollback(mut self) -> Result<(), BoxError> {
        AnsiTransactionManager::rollback_transaction(self.connection()).await?;
        Ok(())
    }
}

impl OutboxUnit for Transaction {
    async fn put(&mut self, messages: &[Message]) -> Result<(), BoxError> {
        let rows: Vec<_> =
            messages.iter().map(|message| NewRow::new(message, Dialect::Postgres)).collect();
        sql_query(self.tables.insert(Dialect::Postgres, rows.len()))
            .bind::<Array<SmallInt>, _>(rows.iter().map(|row| row.lane).collect::<Vec<_>>())
            .bind::<Array<Uuid>, _>(rows.iter().map(|row| row.event_id).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(rows.iter().map(|row| row.name).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(rows.iter().map(|row| row.topic).collect::<Vec<_>>())
            .bind::<Array<Nullable<Binary>>, _>(rows.iter().map(|row| row.key).collect::<Vec<_>>())
            .bind::<Array<Nullable<Text>>, _>(
                rows.iter().map(|row| row.content_type).collect::<Vec<_>>(),
            )
            .bind::<Array<Nullable<Text>>, _>(
                rows.iter().map(|row| row.headers.as_deref()).collect::<Vec<_>>(),
            )
            .bind::<Array<Binary>, _>(rows.iter().map(|row| row.body).collect::<Vec<_>>())
            .bind::<Array<BigInt>, _>(rows.iter().map(|row| row.occurred_at).collect::<Vec<_>>())
            .bind::<Array<Bool>, _>(rows.iter().map(|row| row.mandatory).collect::<Vec<_>>())
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}
