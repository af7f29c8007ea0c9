//! The `outbox` table of python-cqrs 5: writes events to it, which its `EventProducer` or a
//! [`PythonRelay`](crate::PythonRelay) publishes.

use std::error::Error;
use std::fmt;

use cqrs_core::broker::BoxFuture;
use cqrs_core::event::Timestamp;
use cqrs_core::scope::UnitOfWorkFactory;
use cqrs_core::{Message, Notification, NotificationEvent};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres};

use super::compression::compress;
use crate::error::OutboxError;
use crate::table_name::TableName;
use crate::unit::{EventWriter, SqlUnitOfWork};

/// The outbox table of a python-cqrs 5 service on PostgreSQL, which the package has created.
///
/// Given to a mediator's builder with `outbox(..)`, the events that handlers emit become rows of it, in the
/// handlers' transaction. The handlers are those of a [`PostgresOutbox`](crate::PostgresOutbox): their unit of
/// work is a [`PostgresUnitOfWork`](crate::PostgresUnitOfWork).
///
/// ```no_run
/// # use cqrs_core::Mediator;
/// # use cqrs_outbox::PythonOutbox;
/// # fn f(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let mediator = Mediator::builder().outbox(PythonOutbox::new(pool)).build()?;
/// # Ok(())
/// # }
/// ```
///
/// The table has columns for the event's id, name, topic and time and for the body. A message's key and headers
/// (correlation, trace) have none, and are not kept. python-cqrs's `EventProducer` sends the body as it is, but
/// reads it first: register the name on its `OutboxedEventMap`, for a Protobuf event with the serializer. An event
/// that it cannot read it never sends.
#[derive(Clone)]
pub struct PythonOutbox {
    pool: PgPool,
    table: TableName,
    uses_zlib: bool,
}

impl PythonOutbox {
    /// The table `outbox` in the schema of the connection, with uncompressed payloads.
    pub fn new(pool: PgPool) -> Self {
        Self { pool, table: TableName::new("outbox"), uses_zlib: false }
    }

    /// Sets the schema.
    #[must_use]
    pub fn with_schema(mut self, schema: &str) -> Self {
        self.table.set_schema(schema);
        self
    }

    /// Sets the name of the table, as `rebind_outbox_model` does.
    #[must_use]
    pub fn with_table(mut self, table: &str) -> Self {
        self.table.set_table(table);
        self
    }

    /// Compresses the payloads, as a repository with a `ZlibCompressor`. A relay takes a row that is not
    /// compressed for a broken one then, as that repository does.
    #[must_use]
    pub fn with_zlib(mut self) -> Self {
        self.uses_zlib = true;
        self
    }

    /// Writes an event in a transaction of the caller, without a mediator.
    ///
    /// # Errors
    /// If the event cannot be serialized, or the database refuses the row (a second one with the same id and
    /// name, a name or a topic of more than 255 characters): roll back then.
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
    /// If the database refuses the rows: roll back then.
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
        /// One column of all rows.
        fn column<'m, T>(messages: &'m [Message], value: impl Fn(&'m Message) -> T) -> Vec<T> {
            messages.iter().map(value).collect()
        }
        // The time is that of the event, without an offset, in UTC.
        let sql = self.table.render(
            "INSERT INTO {t} (event_id, event_id_bin, event_status, flush_counter, event_name, topic, \
             created_at, payload) \
             SELECT event_id, uuid_send(event_id), 'NEW', 0, event_name, topic, \
             timestamp 'epoch' + occurred_at * interval '1 microsecond', payload \
             FROM unnest($1::uuid[], $2::text[], $3::text[], $4::int8[], $5::bytea[]) WITH ORDINALITY \
             AS r (event_id, event_name, topic, occurred_at, payload, number) ORDER BY number",
        );
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(column(messages, |message| message.id))
            .bind(column(messages, |message| &*message.name))
            .bind(column(messages, |message| &*message.topic))
            .bind(column(messages, |message| Timestamp::from(message.timestamp).unix_micros()));
        let query = match self.uses_zlib {
            true => query.bind(column(messages, |message| compress(&message.body))),
            false => query.bind(column(messages, |message| &message.body[..])),
        };
        query.execute(transaction).await.map_err(|error| {
            OutboxError::database("writing events to the outbox table of python-cqrs", error)
        })?;
        Ok(())
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(crate) fn table(&self) -> &TableName {
        &self.table
    }

    pub(crate) fn uses_zlib(&self) -> bool {
        self.uses_zlib
    }
}

impl EventWriter<Postgres> for PythonOutbox {
    fn put<'a>(
        &'a self,
        connection: &'a mut PgConnection,
        messages: &'a [Message],
    ) -> BoxFuture<'a, Result<(), OutboxError>> {
        Box::pin(PythonOutbox::put(self, connection, messages))
    }

    /// The relays of this table poll.
    fn committed(&self) {}
}

impl UnitOfWorkFactory for PythonOutbox {
    type Unit = SqlUnitOfWork<Postgres>;

    async fn begin(&self) -> Result<Self::Unit, Box<dyn Error + Send + Sync>> {
        Ok(SqlUnitOfWork::begin(&self.pool, self.clone()).await?)
    }
}

/// The pool's `Debug` would show the address of the database.
impl fmt::Debug for PythonOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PythonOutbox")
            .field("table", &self.table)
            .field("uses_zlib", &self.uses_zlib)
            .finish_non_exhaustive()
    }
}
