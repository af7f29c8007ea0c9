//! A relay from a database to Kafka in its own process, which fault tests kill. Its argument are its options
//! as JSON; it ends on SIGTERM.

use std::time::Duration;

use cqrs_core::MessageBroker;
use cqrs_core::service::shutdown_signal;
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
use cqrs_outbox::{Outbox, Relay};
use integration_tests::database::TestDatabase;
use integration_tests::outbox::RelayOptions;
use integration_tests::servers;
use sqlx::{MySql, Postgres};
use tracing_subscriber::EnvFilter;

#[tokio::main(worker_threads = 2)]
async fn main() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    let options = std::env::args().nth(1).expect("the options");
    let options: RelayOptions = serde_json::from_str(&options).expect("options as JSON");
    if options.server == MySql::SERVER {
        run::<MySql>(options).await;
    } else {
        run::<Postgres>(options).await;
    }
}

async fn run<DB: TestDatabase>(options: RelayOptions) {
    let pool = DB::pool(DB::options(&options.schema));
    let config = KafkaConfig::new([servers::kafka()]);
    let broker = servers::connected(|| KafkaMessageBroker::connect(config.clone())).await;
    let relay = Relay::builder(&Outbox::new(pool), broker.clone())
        .lease(Duration::from_millis(options.lease_ms))
        .sweep(Duration::from_secs(2))
        .build()
        .expect("valid settings");
    let report = relay.run_until(shutdown_signal()).await;
    let undelivered = broker.shutdown(Duration::from_secs(5)).await;
    tracing::info!(?report, ?undelivered, "the relay has ended");
}
