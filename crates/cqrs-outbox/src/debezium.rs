//! The outbox table of a Debezium connector, which publishes its rows in place of a relay.

use cqrs_core::Message;
use cqrs_core::event::Timestamp;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgPool, Postgres};

use crate::error::OutboxError;
use crate::headers;
use crate::table_name::TableName;
use crate::table_outbox::{RowWriter, TableOutbox, column};

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
pub type DebeziumOutbox = TableOutbox<DebeziumRows>;

/// Writes the rows of a [`DebeziumOutbox`].
#[derive(Debug, Clone)]
pub struct DebeziumRows;

impl TableOutbox<DebeziumRows> {
    /// The table `outbox` in the schema of the connection.
    pub fn new(pool: PgPool) -> Self {
        Self::of(pool, DebeziumRows)
    }

    /// The statement that creates the table, if no table has its name.
    pub fn create_table_sql(&self) -> String {
        self.table().render(
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
        query.execute(self.pool()).await.map_err(|error| {
            OutboxError::database("creating the outbox table of Debezium", error)
        })?;
        Ok(())
    }
}

impl RowWriter for DebeziumRows {
    const WRITING: &'static str = "writing events to the outbox table of Debezium";

    #[expect(private_interfaces, reason = "seals the trait")]
    fn insert<'m>(
        &self,
        table: &TableName,
        messages: &'m [Message],
    ) -> Result<Query<'m, Postgres, PgArguments>, OutboxError> {
        let keys: Vec<_> = messages.iter().map(text_key).collect::<Result<_, _>>()?;
        let sql = table.render(
            "INSERT INTO {t} (id, aggregatetype, aggregateid, type, payload, \"timestamp\", content_type, \
             headers) \
             SELECT id, aggregatetype, aggregateid, type, payload, \
             timestamp 'epoch' + occurred_at * interval '1 microsecond', content_type, headers::json \
             FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::int8[], \
             $7::text[], $8::text[]) WITH ORDINALITY AS r (id, aggregatetype, aggregateid, type, payload, \
             occurred_at, content_type, headers, number) ORDER BY number",
        );
        Ok(sqlx::query(AssertSqlSafe(sql))
            .bind(column(messages, |message| message.id))
            .bind(column(messages, |message| &*message.topic))
            .bind(keys)
            .bind(column(messages, |message| &*message.name))
            .bind(column(messages, |message| &message.body[..]))
            .bind(column(messages, |message| Timestamp::from(message.timestamp).unix_micros()))
            .bind(column(messages, |message| message.content_type.as_deref()))
            .bind(column(messages, |message| headers::to_json(&message.headers))))
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
