//! The session of a relay on PostgreSQL: holds its advisory lock, and listens for notifications.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, Error};
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// A connection that shows that the relay is alive: its lock is gone with its socket.
#[derive(Debug)]
pub(super) struct Session {
    /// Of one connection, made anew for each session: the end of a session on a dead socket holds it.
    pool: PgPoolOptions,
    options: PgConnectOptions,
    relay: Uuid,
    /// The table of the relays: its object id tells the locks of several outboxes apart.
    table: String,
    wake: Arc<Notify>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    task: JoinHandle<()>,
    is_lost: Arc<AtomicBool>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The second number of a relay's lock, from the last four bytes of its id.
pub(super) const LOCK_NUMBER: &str =
    "('x' || right(replace($ID::text, '-', ''), 8))::bit(32)::int4";

/// The SQL of the channel's name, from the table of the relays. Its names may be longer than the 63 bytes of
/// a channel, so it is the object id.
pub(super) fn channel(table: &str) -> String {
    format!("'cqrs_outbox_' || '{table}'::regclass::oid")
}

impl Session {
    pub(super) fn new(
        pool: PgPoolOptions,
        options: PgConnectOptions,
        relay: Uuid,
        table: String,
        wake: Arc<Notify>,
    ) -> Self {
        Self { pool, options, relay, table, wake, running: Mutex::new(None) }
    }

    /// Connects, unless the session runs.
    pub(super) async fn ensure(&self) -> Result<(), Error> {
        let mut running = self.running.lock().await;
        if running.as_ref().is_some_and(|of| !of.is_lost.load(Ordering::Acquire)) {
            return Ok(());
        }
        *running = None;
        let pool = self.pool.clone().connect_lazy_with(self.options.clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        // A new connection has no lock: the caller must know.
        listener.eager_reconnect(false);
        let sql = format!(
            "SELECT pg_try_advisory_lock('{}'::regclass::oid::int4, {}), {}",
            self.table,
            LOCK_NUMBER.replace("$ID", "$1"),
            channel(&self.table)
        );
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.relay);
        let (is_locked, channel): (bool, String) = query.fetch_one(&mut listener).await?;
        if !is_locked {
            // The server has not noticed the end of the last session. Until then that one counts.
            return Ok(());
        }
        listener.listen(&channel).await?;
        let is_lost = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(listen(listener, Arc::clone(&self.wake), Arc::clone(&is_lost)));
        *running = Some(Running { task, is_lost });
        // What was notified before is lost.
        self.wake.notify_one();
        Ok(())
    }

    /// Ends the session, so that the next [`ensure`](Self::ensure) makes a new one.
    pub(super) async fn end(&self) {
        *self.running.lock().await = None;
    }
}

async fn listen(mut listener: PgListener, wake: Arc<Notify>, is_lost: Arc<AtomicBool>) {
    while let Ok(Some(_)) = listener.try_recv().await {
        wake.notify_one();
    }
    is_lost.store(true, Ordering::Release);
}
