//! The session of a relay on MySQL: holds its named lock.

use sqlx::{AssertSqlSafe, Error, MySqlConnection, MySqlPool};
use tokio::sync::Mutex;
use uuid::Uuid;

/// The SQL of the name of a relay's lock, of at most 64 characters, from its id.
const LOCK_NAME: &str = "CONCAT('cqrs_relay_', LOWER(HEX($ID)))";

/// A connection that shows that the relay is alive: its lock is gone with its socket.
#[derive(Debug)]
pub(super) struct Session {
    pool: MySqlPool,
    relay: Uuid,
    held: Mutex<Option<MySqlConnection>>,
}

impl Session {
    pub(super) fn new(pool: MySqlPool, relay: Uuid) -> Self {
        Self { pool, relay, held: Mutex::new(None) }
    }

    /// Takes the lock, unless the session has it. Also keeps the server from closing an idle connection.
    ///
    /// # Cancel safety
    /// Dropped, it ends the session: the connection may hang on a dead socket.
    pub(super) async fn ensure(&self) -> Result<(), Error> {
        let mut held = self.held.lock().await;
        if let Some(mut connection) = held.take() {
            let holds = format!("SELECT IS_USED_LOCK({}) = CONNECTION_ID()", name("?"));
            if let Ok(Some(1)) = self.ask(&mut connection, holds).await {
                *held = Some(connection);
                return Ok(());
            }
        }
        let mut connection = self.pool.acquire().await?.detach();
        let lock = format!("SELECT GET_LOCK({}, 0)", name("?"));
        if self.ask(&mut connection, lock).await? == Some(1) {
            *held = Some(connection);
        }
        // Otherwise the server has not noticed the end of the last session. Until then that one counts.
        Ok(())
    }

    async fn ask(
        &self,
        connection: &mut MySqlConnection,
        sql: String,
    ) -> Result<Option<i64>, Error> {
        sqlx::query_scalar(AssertSqlSafe(sql)).bind(self.relay).fetch_one(connection).await
    }

    /// Ends the session, so that the next [`ensure`](Self::ensure) makes a new one.
    pub(super) async fn end(&self) {
        *self.held.lock().await = None;
    }
}

/// The SQL of the lock's name of the relay with this id.
pub(super) fn name(id: &str) -> String {
    LOCK_NAME.replace("$ID", id)
}
