//! [`TableOutbox`]: an outbox in the table of another tool; for Debezium and python-cqrs.

use std::error::Error;
use std::fmt;

use cqrs_core::broker::BoxFuture;
use cqrs_core::scope::UnitOfWorkFactory;
use cqrs_core::{Message, Notification, NotificationEvent};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{PgConnection, PgPool, Postgres};

use crate::error::OutboxError;
use crate::table_name::TableName;
use crate::unit::{EventWriter, SqlUnitOfWork};

/// An outbox on PostgreSQL in the table of another tool, which publishes its rows: a
/// [`DebeziumOutbox`](crate::DebeziumOutbox) or a [`PythonOutbox`](crate::PythonOutbox). Cloning is cheap.
#[derive(Clone)]
pub struct TableOutbox<W> {
    pool: PgPool,
    table: TableName,
    writer: W,
}

/// Writes the rows of a table. Sealed: it is implemented here alone.
pub trait RowWriter: Clone + fmt::Debug + Send + Sync + 'static {
    /// The operation, for its errors.
    const WRITING: &'static str;

    /// The statement that inserts the rows of `messages`, in their order. Not empty.
    #[expect(private_interfaces, reason = "seals the trait")]
    fn insert<'m>(
        &self,
        table: &TableName,
        messages: &'m [Message],
    ) -> Result<Query<'m, Postgres, PgArguments>, OutboxError>;
}

/// One column of all rows.
pub(crate) fn column<'m, T>(messages: &'m [Message], value: impl Fn(&'m Message) -> T) -> Vec<T> {
    messages.iter().map(value).collect()
}

impl<W> TableOutbox<W> {
    /// The table `outbox`.
    pub(crate) fn of(pool: PgPool, writer: W) -> Self {
        Self { pool, table: TableName::new("outbox"), writer }
    }

    /// Sets the schema. It must exist.
    #[must_use]
    pub fn with_schema(mut self, schema: &str) -> Self {
        self.table.set_schema(schema);
        self
    }

    /// Sets the name of the table: that of python-cqrs, as `rebind_outbox_model` does.
    #[must_use]
    pub fn with_table(mut self, table: &str) -> Self {
        self.table.set_table(table);
        self
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(crate) fn table(&self) -> &TableName {
        &self.table
    }

    pub(crate) fn writer(&self) -> &W {
        &self.writer
    }

    pub(crate) fn writer_mut(&mut self) -> &mut W {
        &mut self.writer
    }
}

impl<W: RowWriter> TableOutbox<W> {
    /// Writes an event in a transaction of the caller, without a mediator.
    ///
    /// # Errors
    /// If the event cannot be serialized, has no row in this table (Debezium: its key is not UTF-8), or the database
    /// refuses the row: roll back then.
    ///
    /// # Cancel safety
    /// Dropped, the row may be in the transaction: roll back.
    pub async fn add<P: Notification>(
        &self,
        transaction: &mut PgConnection,
        event: impl Into<NotificationEvent<P>>,
    ) -> Result<(), OutboxError> {
        let message = event.into().to_message().map_err(OutboxError::serialize)?;
        self.put(transaction, &[message]).await
    }

    /// As [`add`](Self::add), for messages, in their order and in one statement.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    ///
    /// # Cancel safety
    /// As [`add`](Self::add).
    pub async fn put(
        &self,
        transaction: &mut PgConnection,
        messages: &[Message],
    ) -> Result<(), OutboxError> {
        if messages.is_empty() {
            return Ok(());
        }
        let insert = self.writer.insert(&self.table, messages)?;
        let inserted = insert.execute(transaction).await;
        inserted.map_err(|error| OutboxError::database(W::WRITING, error))?;
        Ok(())
    }
}

impl<W: RowWriter> EventWriter<Postgres> for TableOutbox<W> {
    fn put<'a>(
        &'a self,
        connection: &'a mut PgConnection,
        messages: &'a [Message],
    ) -> BoxFuture<'a, Result<(), OutboxError>> {
        Box::pin(TableOutbox::put(self, connection, messages))
    }

    /// The connector reads the log, and the relays of python-cqrs's table poll.
    fn committed(&self) {}
}

impl<W: RowWriter> UnitOfWorkFactory for TableOutbox<W> {
    type Unit = SqlUnitOfWork<Postgres>;

    async fn begin(&self) -> Result<Self::Unit, Box<dyn Error + Send + Sync>> {
        Ok(SqlUnitOfWork::begin(&self.pool, self.clone()).await?)
    }
}

/// The pool's `Debug` would show the address of the database.
impl<W: fmt::Debug> fmt::Debug for TableOutbox<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableOutbox")
            .field("table", &self.table)
            .field("writer", &self.writer)
            .finish_non_exhaustive()
    }
}
