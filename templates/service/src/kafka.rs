//! The connection to Kafka.

use std::error::Error;

use cqrs::kafka::{KafkaConfig, KafkaMessageBroker};

/// Connects with `KAFKA_BOOTSTRAP_SERVERS` and the other variables of `KafkaConfig::from_env`.
pub(crate) async fn connect() -> Result<KafkaMessageBroker, Box<dyn Error>> {
    Ok(KafkaMessageBroker::connect(KafkaConfig::from_env()?).await?)
}
