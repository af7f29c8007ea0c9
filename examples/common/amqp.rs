use std::env;
use std::sync::Arc;
use std::time::Duration;

use cqrs::amqp::{AmqpConfig, AmqpMessageBroker};
use cqrs::prelude::*;
use cqrs_testkit::Probe;
use lapin::options::QueueDeleteOptions;
use lapin::{Connection, ConnectionProperties};

use super::Fallible;

/// Deletes queues; the subscriptions make them.
pub(crate) struct Server {
    dsn: String,
}

pub(crate) async fn open() -> Fallible<(Arc<dyn Subscribe>, Server)> {
    let local = "amqp://guest:guest@localhost:5672/%2f";
    let dsn = env::var("CQRS_TEST_AMQP").unwrap_or_else(|_| local.to_owned());
    let broker = AmqpMessageBroker::connect(AmqpConfig::new(dsn.as_str()))
        .await
        .map_err(|error| format!("{error}; `./scripts/brokers up` starts one"))?;
    Ok((Arc::new(broker), Server { dsn }))
}

impl Server {
    pub(crate) async fn probe(&self, queue: &str) -> Fallible<Probe> {
        Ok(Probe::amqp(&self.dsn, "", queue).await?)
    }

    /// Deletes the queues `{topic}.{group}` and those beside them.
    pub(crate) async fn delete(
        &self,
        topics: &[String],
        group: &str,
        retry: &Retry,
    ) -> Fallible<()> {
        let connection = Connection::connect(&self.dsn, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        for topic in topics {
            let delays = retry.delays().iter().map(|delay| format!(".retry.{}", shown(*delay)));
            for end in delays.chain(["".to_owned(), ".dead".to_owned()]) {
                let queue = format!("{topic}.{group}{end}");
                channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
            }
        }
        connection.close(200, "done".into()).await?;
        Ok(())
    }
}

fn shown(delay: Duration) -> String {
    match delay.as_millis() {
        millis if millis % 1_000 == 0 => format!("{}s", millis / 1_000),
        millis => format!("{millis}ms"),
    }
}
