//! A unit of work on tokio-postgres and a bb8 pool.

use std::error::Error;

use cqrs::outbox::{Dialect, NewRow, Tables, Wakeup};
use cqrs::scope::{CommitError, OutboxUnit, UnitOfWorkFactory};
use cqrs::{Message, UnitOfWork};
use tokio_postgres::{Client, Config, NoTls};

type BoxError = Box<dyn Error + Send + Sync>;

/// Makes the connections of a pool.
#[derive(Debug)]
pub struct Manager(pub Config);

/// A connection of a pool.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    is_in_transaction: bool,
}

impl bb8::ManageConnection for Manager {
    type Connection = Connection;
    type Error = tokio_postgres::Error;

    async fn connect(&self) -> Result<Connection, Self::Error> {
        let (client, connection) = self.0.connect(NoTls).await?;
        // It ends with the client.
        tokio::spawn(connection);
        Ok(Connection { client, is_in_transaction: false })
    }

    async fn is_valid(&self, connection: &mut Connection) -> Result<(), Self::Error> {
        connection.client.simple_query("").await.map(drop)
    }

    /// A unit of work that is dropped in its transaction returns such a connection. The pool closes it, and the
    /// database rolls back.
    fn has_broken(&self, connection: &mut Connection) -> bool {
        connection.is_in_transaction || connection.client.is_closed()
    }
}

/// Begins transactions of a pool.
#[derive(Debug)]
pub struct Database {
    /// The pool.
    pub pool: bb8::Pool<Manager>,
    /// The names of the outbox's tables.
    pub tables: Tables,
    /// `outbox.wakeup()` of a relay in this process. Without it a relay sees the rows at its next poll.
    pub wakeup: Option<Wakeup>,
}

/// A transaction.
#[derive(Debug)]
pub struct Transaction {
    connection: bb8::PooledConnection<'static, Manager>,
    tables: Tables,
    wakeup: Option<Wakeup>,
}

impl Transaction {
    /// The client, for the queries of handlers.
    pub fn client(&self) -> &Client {
        &self.connection.client
    }
}

impl UnitOfWorkFactory for Database {
    type Unit = Transaction;

    async fn begin(&self) -> Result<Transaction, BoxError> {
        let mut connection = self.pool.get_owned().await?;
        connection.is_in_transaction = true;
        connection.client.batch_execute("BEGIN").await?;
        Ok(Transaction { connection, tables: self.tables.clone(), wakeup: self.wakeup.clone() })
    }
}

impl UnitOfWork for Transaction {
    async fn commit(mut self) -> Result<(), CommitError> {
        // PostgreSQL answers the commit of a failed transaction with a rollback and no error.
        self.client().batch_execute("SELECT 1").await.map_err(CommitError::failed)?;
        self.client().batch_execute("COMMIT").await?; // an error here: the outcome is unknown
        self.connection.is_in_transaction = false;
        self.wakeup.iter().for_each(Wakeup::wake);
        Ok(())
    }

    async fn rollback(mut self) -> Result<(), BoxError> {
        self.client().batch_execute("ROLLBACK").await?;
        self.connection.is_in_transaction = false;
        Ok(())
    }
}

impl OutboxUnit for Transaction {
    async fn put(&mut self, messages: &[Message]) -> Result<(), BoxError> {
        let rows: Vec<_> =
            messages.iter().map(|message| NewRow::new(message, Dialect::Postgres)).collect();
        let statement =
            self.client().prepare(&self.tables.insert(Dialect::Postgres, rows.len())).await?;
        self.client()
            .execute(
                &statement,
                &[
                    &rows.iter().map(|row| row.lane).collect::<Vec<_>>(),
                    &rows.iter().map(|row| row.event_id).collect::<Vec<_>>(),
                    &rows.iter().map(|row| row.name).collect::<Vec<_>>(),
                    &rows.iter().map(|row| row.topic).collect::<Vec<_>>(),
                    &rows.iter().map(|row| row.key).collect::<Vec<_>>(),
                    &rows.iter().map(|row| row.content_type).collect::<Vec<_>>(),
                    &rows.iter().map(|row| row.headers.as_deref()).collect::<Vec<_>>(),
                    &rows.iter().map(|row| row.body).collect::<Vec<_>>(),
                    &rows.iter().map(|row| row.occurred_at).collect::<Vec<_>>(),
                    &rows.iter().map(|row| row.mandatory).collect::<Vec<_>>(),
                ],
            )
            .await?;
        Ok(())
    }
}
