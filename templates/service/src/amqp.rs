//! The connection to RabbitMQ.

use std::error::Error;

use cqrs::amqp::{AmqpConfig, AmqpMessageBroker};

/// Connects with `AMQP_DSN` and the other variables of `AmqpConfig::from_env`.
pub(crate) async fn connect() -> Result<AmqpMessageBroker, Box<dyn Error>> {
    Ok(AmqpMessageBroker::connect(AmqpConfig::from_env()?).await?)
}
