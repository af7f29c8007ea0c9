use std::env;
use std::error::Error;
use std::sync::Arc;

use cqrs::amqp::{AmqpConfig, AmqpMessageBroker};
use cqrs_testkit::Probe;

use super::Wire;

pub(crate) async fn open(topic: String) -> Result<Wire, Box<dyn Error>> {
    let local = "amqp://guest:guest@localhost:5672/%2f";
    let dsn = env::var("CQRS_TEST_AMQP").unwrap_or_else(|_| local.to_owned());
    let mut config = AmqpConfig::new(dsn.as_str());
    config.exchange.name = "events".to_owned();
    let broker = AmqpMessageBroker::connect(config)
        .await
        .map_err(|error| format!("{error}; `./scripts/brokers up` starts one"))?;
    // The queue must be bound before the first publish: an unroutable event is an error.
    let probe = Probe::amqp(&dsn, "events", &topic).await?;
    Ok(Wire { name: "RabbitMQ", broker: Arc::new(broker), topic, probe })
}
