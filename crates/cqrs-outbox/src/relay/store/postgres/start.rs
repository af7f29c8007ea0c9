//! The start of a relay's store on PostgreSQL: its connections and their settings.

use sqlx::Postgres;
use uuid::Uuid;

use super::PostgresStore;
use super::sql::Sql;
use crate::outbox::Outbox;
use crate::relay::history::History;
use crate::relay::store::connections::Connections;
use crate::relay::store::session::Session;
use crate::relay::store::{RelayDatabase, StoreSettings};

/// One for the reads, one for the deletes and moves. The session and the heartbeat have one each besides.
const CONNECTIONS: usize = 2;

impl RelayDatabase for Postgres {
    type Store = PostgresStore;

    #[expect(private_interfaces, reason = "seals the trait")]
    fn store(outbox: &Outbox<Self>, relay: Uuid, settings: StoreSettings) -> PostgresStore {
        let StoreSettings { wake, lease, uses_session, statement_timeout, history } = settings;
        let mut options = (*outbox.pool().connect_options()).clone();
        // Plans with the index only, whatever the statistics of a table say that is empty one moment and full the
        // next. The server, too, ends a statement that takes too long or waits for a lock: it would not notice that
        // its client is gone.
        let timeout = statement_timeout.as_millis().clamp(1, i32::MAX as u128).to_string();
        let settings = [
            ("enable_seqscan", "off"),
            ("enable_bitmapscan", "off"),
            ("jit", "off"),
            ("statement_timeout", &*timeout),
        ];
        let begin = match uses_session {
            true => {
                options = options.options(settings);
                None
            }
            // A pooler lends its connections to other clients, too, and refuses startup parameters.
            false => {
                let set = settings.map(|(name, value)| format!("; SET LOCAL {name} = {value}"));
                Some(format!("BEGIN{}", set.concat()))
            }
        };
        // Its own connections, as the application's may all be busy; with the application's hooks, which may
        // set the role or the search path.
        let pool = outbox.pool().options().clone().max_connections(1).min_connections(0);
        let tables = outbox.tables();
        let session = uses_session.then(|| {
            let table = tables.name("outbox_relay");
            Session::new(pool.clone(), options.clone(), relay, table, wake)
        });
        let connections =
            |most| Connections::new(pool.clone().connect_lazy_with(options.clone()), most);
        // Statements that take long must not cost the lanes.
        let (connections, heartbeats) = (connections(CONNECTIONS), connections(1));
        let sql = Sql::new(tables, uses_session, history.is_some());
        let history = history.map(|retention| {
            History::new(pool.clone(), options.clone(), tables.clone(), retention)
        });
        PostgresStore { connections, heartbeats, relay, session, lease, begin, sql, history }
    }
}
