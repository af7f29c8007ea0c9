//! The start of a relay's store on MySQL: its connections and their settings.

use std::time::Duration;

use sqlx::MySql;
use uuid::Uuid;

use super::MysqlStore;
use super::session::Session;
use super::sql::Sql;
use crate::outbox::Outbox;
use crate::relay::store::connections::Connections;
use crate::relay::store::{RelayDatabase, StoreSettings};

/// One for the reads, one for the deletes and moves. The session and the heartbeat have one each besides.
const CONNECTIONS: usize = 2;

/// In the range of all settings of both servers.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(1_000_000);

impl RelayDatabase for MySql {
    type Store = MysqlStore;

    #[expect(private_interfaces, reason = "seals the trait")]
    fn store(outbox: &Outbox<Self>, relay: Uuid, settings: StoreSettings) -> MysqlStore {
        let StoreSettings { wake: _, lease, uses_session, statement_timeout, history: _ } =
            settings;
        let options = (*outbox.pool().connect_options()).clone();
        // Its own connections, as the application's may all be busy; with the application's hooks.
        let pool = outbox.pool().options().clone().max_connections(1).min_connections(0);
        let pool = || pool.clone().connect_lazy_with(options.clone());
        let session = uses_session.then(|| Session::new(pool(), relay));
        // Statements that take long must not cost the lanes.
        let connections = Connections::new(pool(), CONNECTIONS);
        let heartbeats = Connections::new(pool(), 1);
        let settings = settings_of(uses_session.then_some(statement_timeout));
        let sql = Sql::new(outbox.tables(), uses_session);
        MysqlStore { connections, heartbeats, relay, session, lease, settings, sql }
    }
}

/// The statement that makes the settings of a new connection. `timeout`: the longest that the server may take for a
/// statement, which would not notice that its client is gone.
fn settings_of(timeout: Option<Duration>) -> String {
    // The hook of the application's pool may have set something else.
    let mut settings = "SET autocommit = 1".to_owned();
    if let Some(timeout) = timeout {
        let timeout = timeout.clamp(Duration::from_millis(1), LONGEST_TIMEOUT);
        let (seconds, millis) = (timeout.as_secs_f64(), timeout.as_millis());
        let lock_wait = timeout.as_secs().max(1);
        // MySQL and MariaDB each read the comment of their own.
        settings += &format!(
            ", innodb_lock_wait_timeout = {lock_wait} /*!80000 , max_execution_time = {millis} */ \
             /*M!100000 , max_statement_time = {seconds:.3} */"
        );
    }
    settings
}
