//! A unit of work on SeaORM.

use std::error::Error;

use cqrs::outbox::{Dialect, NewRow, Tables, Wakeup};
use cqrs::scope::{CommitError, OutboxUnit, UnitOfWorkFactory};
use cqrs::{Message, UnitOfWork};
use sea_orm::sea_query::ArrayType;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, Statement,
    TransactionTrait, Value,
};

type BoxError = Box<dyn Error + Send + Sync>;

/// Begins transactions of a pool.
#[derive(Debug)]
pub struct Database {
    /// The pool.
    pub connection: DatabaseConnection,
    /// The names of the outbox's tables.
    pub tables: Tables,
    /// `outbox.wakeup()` of a relay in this process. Without it a relay sees the rows at its next poll.
    pub wakeup: Option<Wakeup>,
}

/// A transaction. Dropping it rolls back.
#[derive(Debug)]
pub struct Transaction {
    transaction: DatabaseTransaction,
    tables: Tables,
    wakeup: Option<Wakeup>,
}

impl Transaction {
    /// The connection, for the queries of handlers.
    pub fn connection(&self) -> &DatabaseTransaction {
        &self.transaction
    }
}

impl UnitOfWorkFactory for Database {
    type Unit = Transaction;

    async fn begin(&self) -> Result<Transaction, BoxError> {
        let transaction = self.connection.begin().await?;
        Ok(Transaction { transaction, tables: self.tables.clone(), wakeup: self.wakeup.clone() })
    }
}

impl UnitOfWork for Transaction {
    async fn commit(self) -> Result<(), CommitError> {
        // PostgreSQL answers the commit of a failed transaction with a rollback and no error.
        let check = self.transaction.execute_unprepared("SELECT 1").await;
        check.map_err(CommitError::failed)?;
        self.transaction.commit().await?; // an error here: the outcome is unknown
        self.wakeup.iter().for_each(Wakeup::wake);
        Ok(())
    }

    async fn rollback(self) -> Result<(), BoxError> {
        Ok(self.transaction.rollback().await?)
    }
}

impl OutboxUnit for Transaction {
    async fn put(&mut self, messages: &[Message]) -> Result<(), BoxError> {
        let rows: Vec<_> =
            messages.iter().map(|message| NewRow::new(message, Dialect::Postgres)).collect();
        // SeaORM has no arrays with nulls. A null in place of the array is the same as nulls in it: so each
        // statement has rows that lack the same fields.
        let lacks = |row: &NewRow<'_>| {
            (row.key.is_none(), row.content_type.is_none(), row.headers.is_none())
        };
        for rows in rows.chunk_by(|one, next| lacks(one) == lacks(next)) {
            let values = [
                rows.iter().map(|row| row.lane).collect::<Vec<_>>().into(),
                rows.iter().map(|row| row.event_id).collect::<Vec<_>>().into(),
                rows.iter().map(|row| row.name.to_owned()).collect::<Vec<_>>().into(),
                rows.iter().map(|row| row.topic.to_owned()).collect::<Vec<_>>().into(),
                array(ArrayType::Bytes, rows.iter().map(|row| row.key.map(<[u8]>::to_vec))),
                array(ArrayType::String, rows.iter().map(|row| row.content_type)),
                array(ArrayType::String, rows.iter().map(|row| row.headers.as_deref())),
                rows.iter().map(|row| row.body.to_vec()).collect::<Vec<_>>().into(),
                rows.iter().map(|row| row.occurred_at).collect::<Vec<_>>().into(),
                rows.iter().map(|row| row.mandatory).collect::<Vec<_>>().into(),
            ];
            let sql = self.tables.insert(Dialect::Postgres, rows.len());
            let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
            self.transaction.execute_raw(statement).await?;
        }
        Ok(())
    }
}

/// An array of values, or a null if there are none.
fn array<V: Into<Value>>(of: ArrayType, values: impl Iterator<Item = Option<V>>) -> Value {
    let values: Option<Vec<Value>> = values.map(|value| value.map(Into::into)).collect();
    Value::Array(of, values.map(Box::new))
}
