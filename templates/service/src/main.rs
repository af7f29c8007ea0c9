//! The process: log, start, shutdown.

mod {{broker}};
mod service;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use cqrs::prelude::*;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // lapin, RabbitMQ's client, writes the login to its log.
    let filter = EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info,lapin=off"));
    tracing_subscriber::fmt().with_env_filter(filter).init();

    let broker = Arc::new({{broker}}::connect().await?);
    let ended = service::service(broker.clone())?.run().await; // until SIGTERM or Ctrl-C
    let left = broker.shutdown(Duration::from_secs(10)).await;
    if left.undelivered > 0 {
        tracing::error!("{} messages are not delivered", left.undelivered);
    }
    ended?;
    Ok(())
}
