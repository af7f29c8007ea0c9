//! The outbox table of a Debezium connector, which publishes its rows in place of a relay.

use std::error::Error;
use std::fmt;

use cqrs_core::broker::BoxFuture;
use cqrs_core::event::Timestamp;
use cqrs_core::scope::UnitOfWorkFactory;
use cqrs_core::{Message, Notification, NotificationEvent};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres};

use crate::error::OutboxError;
use crate::headers;
use crate::table_name::TableName;
use crate::unit::{EventWriter, SqlUnitOfWork};

/// An outbox on PostgreSQL for a Debezium connector with the [outbox event router][router]: the connector reads
/// the rows from the log of the database and publishes them to Kafka. No relay runs.
///
/// Given to a mediator's builder with `outbox(..)`, the events that handlers emit become rows, in the handlers'
/// transaction. The handlers are those of a [`PostgresOutbox`](crate::PostgresOutbox): their unit of work is a
/// [`PostgresUnitOfWork`](crate::PostgresUnitOfWork).
///
/// | column | value | in the router |
/// |---|---|---|
/// | `id uuid` | the event's id | the header `id` |
/// | `aggregatetype text` | the topic | the topic, by `route.topic.replacement` |
/// | `aggregateid text` | the key, or null | the key |
/// | `type text` | the event's name | nothing, or a header |
/// | `payload bytea` | the body, as it is published | the value |
/// | `timestamp timestamp` | the event's time, in UTC | the record's time, by `table.field.event.timestamp` |
/// | `content_type text` | the media type of the body, or null | nothing, or a header |
/// | `headers json` | the headers, an object, or null | nothing, or a header |
///
/// The columns have the names of the router's defaults. These settings of the connector make records with the same
/// topic, key and body as a [`Relay`](crate::Relay):
///
/// ```text
/// transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
/// transforms.outbox.route.topic.replacement=${routedByValue}
/// transforms.outbox.table.field.event.timestamp=timestamp
/// key.converter=org.apache.kafka.connect.storage.StringConverter
/// value.converter=io.debezium.converters.BinaryDataConverter
/// ```
///
/// Without `route.topic.replacement` the router puts `outbox.event.` before the topic. The headers stand in one
/// column, which the router can place in one header alone (`table.fields.additional.placement`): the correlation
/// and trace headers of a relay are not there.
///
/// Rows stay in the table. The connector ignores their deletion, so that a job may delete old ones at any time.
///
/// [router]: https://debezium.io/documentation/reference/stable/transformations/outbox-event-router.html
#[derive(Clone)]
pub struct DebeziumOutbox {
    pool: PgPool,
    table: TableName,
}

impl DebeziumOutbox {
    /// The table `outbox` in the schema of the connection.
    pub fn new(pool: PgPool) -> Self {
        Self { pool, table: TableName::new("outbox") }
    }

    /// Sets the schema. It must exist.
    #[must_use]
    pub fn with_schema(mut self, schema: &str) -> Self {
        self.table.set_schema(schema);
        self
    }

    /// Sets the name of the table.
    #[must_use]
    pub fn with_table(mut self, table: &str) -> Self {
        self.table.set_table(table);
        self
    }

    /// The statement that creates the table, if no table has its name.
    pub fn create_table_sql(&self) -> String {
        self.table.render(
            "CREATE TABLE IF NOT EXISTS {t} (id uuid PRIMARY KEY, aggregatetype text NOT NULL, \
             aggregateid text, type text NOT NULL, payload bytea NOT NULL, \"timestamp\" timestamp NOT NULL, \
             content_type text, headers json)",
        )
    }

    /// Creates the table, if no table has its name.
    ///
    /// # Errors
    /// If the database is away, or refuses it: the role may create no table, or the schema is missing.
    pub async fn create_table(&self) -> Result<(), OutboxError> {
        let query = sqlx::query(AssertSqlSafe(self.create_table_sql()));
        query.execute(&self.pool).await.map_err(|error| {
            OutboxError::database("creating the outbox table of Debezium", error)
        })?;
        Ok(())
    }

    /// Writes an event in a transaction of the caller, without a mediator.
    ///
    /// # Errors
    /// If the event cannot be serialized, its key is not UTF-8, or the database refuses the row: roll back then.
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
    /// If a key is not UTF-8, or the database refuses the rows: roll back then.
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
        let keys: Vec<_> = messages.iter().map(text_key).collect::<Result<_, _>>()?;
        let sql = self.table.render(
            "INSERT INTO {t} (id, aggregatetype, aggregateid, type, payload, \"timestamp\", content_type, \
             headers) \
             SELECT id, aggregatetype, aggregateid, type, payload, \
             timestamp 'epoch' + occurred_at * interval '1 microsecond', content_type, headers::json \
             FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::int8[], \
             $7::text[], $8::text[]) WITH ORDINALITY AS r (id, aggregatetype, aggregateid, type, payload, \
             occurred_at, content_type, headers, number) ORDER BY number",
        );
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(column(messages, |message| message.id))
            .bind(column(messages, |message| &*message.topic))
            .bind(keys)
            .bind(column(messages, |message| &*message.name))
            .bind(column(messages, |message| &message.body[..]))
            .bind(column(messages, |message| Timestamp::from(message.timestamp).unix_micros()))
            .bind(column(messages, |message| message.content_type.as_deref()))
            .bind(column(messages, |message| headers::to_json(&message.headers)));
        query.execute(transaction).await.map_err(|error| {
            OutboxError::database("writing events to the outbox table of Debezium", error)
        })?;
        Ok(())
    }
}

/// The key as the column takes it.
fn text_key(message: &Message) -> Result<Option<&str>, OutboxError> {
    let Some(key) = &message.key else { return Ok(None) };
    std::str::from_utf8(key).map(Some).map_err(|_| {
        OutboxError::config(format!(
            "the key of the event {} is not UTF-8: the outbox table of Debezium keeps keys as text",
            message.id
        ))
    })
}

impl EventWriter<Postgres> for DebeziumOutbox {
    fn put<'a>(
        &'a self,
        connection: &'a mut PgConnection,
        messages: &'a [Message],
    ) -> BoxFuture<'a, Result<(), OutboxError>> {
        Box::pin(DebeziumOutbox::put(self, connection, messages))
    }

    /// The connector reads the log.
    fn committed(&self) {}
}

impl UnitOfWorkFactory for DebeziumOutbox {
    type Unit = SqlUnitOfWork<Postgres>;

    async fn begin(&self) -> Result<Self::Unit, Box<dyn Error + Send + Sync>> {
        Ok(SqlUnitOfWork::begin(&self.pool, self.clone()).await?)
    }
}

/// The pool's `Debug` would show the address of the database.
impl fmt::Debug for DebeziumOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebeziumOutbox").field("table", &self.table).finish_non_exhaustive()
    }
}
