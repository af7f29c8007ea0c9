//! Relays in this process, each with a broker value of its own.

use std::time::{Duration, Instant};

use cqrs_outbox::{PostgresOutbox, Relay, RelayHandle, RelayReport};
use sqlx::{PgPool, Postgres};
use tokio::task::JoinHandle;

use super::watched::Watched;

const LIMIT: Duration = Duration::from_secs(600);

pub(super) struct Relays(Vec<(RelayHandle<Postgres>, JoinHandle<RelayReport>)>);

impl Relays {
    /// Starts a relay for each broker.
    pub(super) fn start(outbox: &PostgresOutbox, brokers: &[Watched]) -> Self {
        let start = |broker: &Watched| {
            let relay = Relay::builder(outbox, broker.clone()).build().expect("a relay");
            (relay.handle(), tokio::spawn(relay.run()))
        };
        Self(brokers.iter().map(start).collect())
    }

    /// Stops them, and fails if one leaves a row in flight.
    pub(super) async fn stop(self) {
        self.0.iter().for_each(|(handle, _)| handle.stop());
        for (_, running) in self.0 {
            let report = running.await.expect("a relay");
            assert_eq!(report.unsettled, 0, "rows in flight at the end");
        }
    }
}

/// Waits until `condition` is met; looks again after `every`.
pub(super) async fn wait(every: Duration, what: &str, condition: impl AsyncFn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition().await {
        assert!(Instant::now() < end, "no {what} within {LIMIT:?}");
        tokio::time::sleep(every).await;
    }
}

/// The numbers of lanes of relays that share them evenly, the smallest first.
pub(super) fn even_shares(relays: usize) -> Vec<i64> {
    (0..relays).map(|relay| ((64 + relay) / relays) as i64).collect()
}

/// Waits until the relays own `lanes` lanes each.
pub(super) async fn owned(pool: &PgPool, lanes: &[i64]) {
    let sql =
        "SELECT count(*) FROM cqrs_outbox_lane WHERE owner IS NOT NULL GROUP BY owner ORDER BY 1";
    let owned = async || {
        let counts: Vec<i64> = sqlx::query_scalar(sql).fetch_all(pool).await.expect("the lanes");
        counts == lanes
    };
    wait(Duration::from_millis(20), "owned lanes", owned).await;
}
