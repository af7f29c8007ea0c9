//! The start of a relay's store on MySQL: its connections and their settings.

use sqlx::MySql;
use uuid::Uuid;

use super::MysqlStore;
use super::session::Session;
use super::sql::Sql;
use crate::database::mysql::BEGIN_READ_COMMITTED;
use crate::outbox::Outbox;
use crate::relay::store::connections::Connections;
use crate::relay::store::{RelayDatabase, StoreSettings};

/// One for the reads, one for the deletes and moves. The session and the heartbeat have one each besides.
const CONNECTIONS: usize = 2;

impl RelayDatabase for MySql {
    type Store = MysqlStore;

    #[expect(private_interfaces, reason = "seals the trait")]
    fn store(outbox: &Outbox<Self>, relay: Uuid, settings: StoreSettings) -> MysqlStore {
        let StoreSettings { wake: _, lease, uses_session, statement_timeout } = settings;
        let options = (*outbox.pool().connect_options()).clone();
        // Its own connections, as the application's may all be busy; with the application's hooks.
        let pool = outbox.pool().options().clone().max_connections(1).min_connections(0);
        let pool = || pool.clone().connect_lazy_with(options.clone());
        let session = uses_session.then(|| Session::new(pool(), relay));
        // Statements that take long must not cost the lanes.
        let connections = Connections::new(pool(), CONNECTIONS);
        let heartbeats = Connections::new(pool(), 1);
        // The server, too, ends a statement that waits for a lock for too long.
        let timeout = statement_timeout.as_secs().clamp(1, i32::MAX as u64);
        let begin =
            format!("SET SESSION innodb_lock_wait_timeout = {timeout}; {BEGIN_READ_COMMITTED}");
        let sql = Sql::new(outbox.tables(), uses_session);
        let trailing = std::sync::Mutex::default();
        MysqlStore { connections, heartbeats, relay, session, lease, begin, sql, trailing }
    }
}
