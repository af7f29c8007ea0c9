//! The `outbox` table of python-cqrs 5: writes events to it, which its `EventProducer` or a
//! [`PythonRelay`](crate::PythonRelay) publishes.

use cqrs_core::Message;
use cqrs_core::event::Timestamp;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgPool, Postgres};

use super::compression::compress;
use crate::error::OutboxError;
use crate::table_name::TableName;
use crate::table_outbox::{RowWriter, TableOutbox, column};

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
///
/// The database refuses a second row with the same id and name, and a name or a topic of more than 255 characters.
pub type PythonOutbox = TableOutbox<PythonRows>;

/// Writes the rows of a [`PythonOutbox`].
#[derive(Debug, Clone)]
pub struct PythonRows {
    uses_zlib: bool,
}

impl TableOutbox<PythonRows> {
    /// The table `outbox` in the schema of the connection, with uncompressed payloads.
    pub fn new(pool: PgPool) -> Self {
        Self::of(pool, PythonRows { uses_zlib: false })
    }

    /// Compresses the payloads, as a repository with a `ZlibCompressor`. A relay takes a row that is not
    /// compressed for a broken one then, as that repository does.
    #[must_use]
    pub fn with_zlib(mut self) -> Self {
        self.writer_mut().uses_zlib = true;
        self
    }

    pub(crate) fn uses_zlib(&self) -> bool {
        self.writer().uses_zlib
    }
}

impl RowWriter for PythonRows {
    const WRITING: &'static str = "writing events to the outbox table of python-cqrs";

    #[expect(private_interfaces, reason = "seals the trait")]
    fn insert<'m>(
        &self,
        table: &TableName,
        messages: &'m [Message],
    ) -> Result<Query<'m, Postgres, PgArguments>, OutboxError> {
        // The time is that of the event, without an offset, in UTC.
        let sql = table.render(
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
        Ok(match self.uses_zlib {
            true => query.bind(column(messages, |message| compress(&message.body))),
            false => query.bind(column(messages, |message| &message.body[..])),
        })
    }
}
