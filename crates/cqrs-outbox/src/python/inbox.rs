//! The `inbox` table of python-cqrs 5 as the inbox of a subscription.

use std::error::Error;
use std::sync::Arc;

use cqrs_core::scope;
use sqlx::{AssertSqlSafe, Postgres};
use uuid::Uuid;

use crate::error::OutboxError;
use crate::table_name::TableName;
use crate::unit::SqlUnitOfWork;

/// The inbox table of a python-cqrs 5 service on PostgreSQL, which the package has created, for
/// [`Subscription::inbox`](cqrs_core::Subscription::inbox). Cloning is cheap.
///
/// A message whose id and name are in the table is a duplicate, whichever side stored it and whatever its status
/// is: a row that is still `NEW` is the work of Python's `InboxProcessor`, and one that it gave up (`NOT_PROCESSED` with
/// a counter of 5) is not handled by anybody. Drain or mend those before the `InboxProcessor` is stopped. A message that is handled here becomes
/// a row `PROCESSED` without a payload, in the handler's transaction, and Python's `add` of it returns `False`.
///
/// The id is the event's, hyphenated, as `str(event.event_id)`. The name is one for all messages of the
/// subscription: that of Python's `InboxMessageMap`.
///
/// ```no_run
/// # use cqrs_core::Subscription;
/// # use cqrs_outbox::PythonInbox;
/// let orders = Subscription::to("orders").group("billing").inbox(PythonInbox::new("OrderPlaced"));
/// ```
///
/// Rows are never deleted, as Python deletes none.
#[derive(Debug, Clone)]
pub struct PythonInbox {
    message_name: Arc<str>,
    table: TableName,
}

impl PythonInbox {
    /// The rows with this name in the table `inbox`, in the schema of the connection.
    pub fn new(message_name: &str) -> Self {
        Self { message_name: message_name.into(), table: TableName::new("inbox") }
    }

    /// Sets the schema.
    #[must_use]
    pub fn with_schema(mut self, schema: &str) -> Self {
        self.table.set_schema(schema);
        self
    }

    /// Sets the name of the table, as `rebind_inbox_model` does.
    #[must_use]
    pub fn with_table(mut self, table: &str) -> Self {
        self.table.set_table(table);
        self
    }
}

impl scope::Inbox for PythonInbox {
    type Unit = SqlUnitOfWork<Postgres>;

    /// The table has no column for the consumer.
    async fn mark(
        &self,
        unit: &mut Self::Unit,
        _consumer: &str,
        message_id: Uuid,
    ) -> Result<bool, Box<dyn Error + Send + Sync>> {
        let sql = self.table.render(
            "INSERT INTO {t} (message_id, message_name, status, flush_counter, created_at, payload) \
             VALUES ($1, $2, 'PROCESSED', 0, now() AT TIME ZONE 'UTC', '') \
             ON CONFLICT (message_id, message_name) DO NOTHING",
        );
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(message_id.hyphenated().to_string())
            .bind(&*self.message_name);
        let done = query.execute(unit.connection()).await.map_err(|error| {
            OutboxError::database("marking a message in the inbox table of python-cqrs", error)
        })?;
        Ok(done.rows_affected() == 1)
    }
}
