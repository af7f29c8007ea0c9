//! The statements of operators on PostgreSQL, and the start of a relay's store.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Postgres};
use uuid::Uuid;

use super::sql::{COLUMNS, Sql};
use super::{PostgresStore, error};
use crate::error::OutboxError;
use crate::outbox::Outbox;
use crate::relay::failed::{FailedRow, FailedTable};
use crate::relay::status::Counts;
use crate::relay::store::connections::Connections;
use crate::relay::store::session::Session;
use crate::relay::store::{RelayDatabase, StoreSettings};
use crate::row::row_columns;
use crate::tables::Dialect;

/// One for the reads, one for the deletes and moves, one for the session.
const CONNECTIONS: usize = 3;

impl RelayDatabase for Postgres {
    type Store = PostgresStore;

    async fn counts(outbox: &Outbox<Self>) -> Result<Counts, OutboxError> {
        // The oldest row of a lane is its first one, more or less: no need to read them all.
        let sql = outbox.tables().render(
            "SELECT (SELECT count(*) FROM {t}outbox), \
             (SELECT (extract(epoch FROM clock_timestamp() - min(r.created_at)) * 1000000)::int8 \
             FROM {t}outbox_lane l CROSS JOIN LATERAL (SELECT o.created_at FROM {t}outbox o \
             WHERE o.lane = l.lane ORDER BY o.id LIMIT 1) r), \
             (SELECT count(*) FROM {t}outbox_parked), (SELECT count(*) FROM {t}outbox_dead)",
        );
        let (pending, oldest_micros, parked, dead) = sqlx::query_as(AssertSqlSafe(sql))
            .fetch_one(outbox.pool())
            .await
            .map_err(error("counting the rows of the outbox"))?;
        Ok(Counts { pending, oldest_micros, parked, dead })
    }

    async fn failed_rows(
        outbox: &Outbox<Self>,
        table: FailedTable,
        after: i64,
        limit: u32,
    ) -> Result<Vec<FailedRow>, OutboxError> {
        let sql = outbox.tables().render(&format!(
            "SELECT {}, r.attempts, r.last_error, \
             (extract(epoch FROM r.first_failed_at) * 1000000)::int8 AS first_failed_at, \
             (extract(epoch FROM r.{}) * 1000000)::int8 AS at \
             FROM {{t}}{} r WHERE r.id > $1 ORDER BY r.id LIMIT $2",
            row_columns(Dialect::Postgres),
            table.time(),
            table.name(),
        ));
        let query = sqlx::query(AssertSqlSafe(sql)).bind(after).bind(i64::from(limit));
        let rows = query.try_map(|row| FailedRow::read(&row)).fetch_all(outbox.pool()).await;
        rows.map_err(error("reading failed rows of the outbox"))
    }

    async fn replay_dead(outbox: &Outbox<Self>, ids: &[i64]) -> Result<u64, OutboxError> {
        let columns = COLUMNS.replace("id, event_id", "event_id");
        let sql = outbox.tables().render(&format!(
            "WITH gone AS (DELETE FROM {{t}}outbox_dead WHERE id = ANY ($1) RETURNING *) \
             INSERT INTO {{t}}outbox ({columns}) SELECT {columns} FROM gone ORDER BY id"
        ));
        let query = sqlx::query(AssertSqlSafe(sql)).bind(ids);
        let done = query.execute(outbox.pool()).await.map_err(error("replaying dead rows"))?;
        Ok(done.rows_affected())
    }

    async fn purge_dead(outbox: &Outbox<Self>, age: Duration) -> Result<u64, OutboxError> {
        let sql = outbox
            .tables()
            .render("DELETE FROM {t}outbox_dead WHERE died_at < now() - $1 * interval '1 second'");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(age.as_secs_f64());
        let done = query.execute(outbox.pool()).await.map_err(error("purging dead rows"))?;
        Ok(done.rows_affected())
    }

    #[expect(private_interfaces, reason = "seals the trait")]
    fn store(outbox: &Outbox<Self>, relay: Uuid, settings: StoreSettings) -> PostgresStore {
        let StoreSettings { wake, lease, uses_session, statement_timeout } = settings;
        let mut options = (*outbox.pool().connect_options()).clone();
        if uses_session {
            // Plans with the index only, whatever the statistics of a table say that is empty one moment and
            // full the next. The server, too, ends a statement that waits for a lock for too long. Not behind a
            // pooler, whose other clients would get these settings.
            let timeout = statement_timeout.as_millis().clamp(1, i32::MAX as u128).to_string();
            options = options.options([
                ("enable_seqscan", "off"),
                ("enable_bitmapscan", "off"),
                ("jit", "off"),
                ("statement_timeout", &timeout),
            ]);
        }
        // Its own connections, as the application's may all be busy; with the application's hooks, which may
        // set the role or the search path.
        let pool = outbox.pool().options().clone().max_connections(1).min_connections(0);
        let tables = outbox.tables();
        let session = uses_session.then(|| {
            let table = tables.name("outbox_relay");
            Session::new(pool.clone(), options.clone(), relay, table, wake)
        });
        let most = CONNECTIONS - usize::from(uses_session);
        let connections = Connections::new(pool.connect_lazy_with(options), most);
        let sql = Sql::new(tables, uses_session);
        PostgresStore { connections, relay, session, lease, sql }
    }
}
