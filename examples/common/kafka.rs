use std::env;
use std::error::Error;
use std::sync::Arc;

use cqrs::kafka::{KafkaConfig, KafkaMessageBroker};
use cqrs_testkit::Probe;

use super::Wire;

pub(crate) async fn open(topic: String) -> Result<Wire, Box<dyn Error>> {
    let servers = env::var("CQRS_TEST_KAFKA").unwrap_or_else(|_| "localhost:9092".to_owned());
    let broker = KafkaMessageBroker::connect(KafkaConfig::new([servers.as_str()]))
        .await
        .map_err(|error| format!("{error}; `./scripts/brokers up` starts one"))?;
    let probe = Probe::kafka(&servers, &topic).await?;
    Ok(Wire { name: "Apache Kafka", broker: Arc::new(broker), topic, probe })
}
