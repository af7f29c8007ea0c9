//! Helpers for the tests of the settings.

use rdkafka::ClientConfig;

use super::KafkaConfig;
use crate::error::ErrorKind;

pub(super) fn config() -> KafkaConfig {
    KafkaConfig::new(["localhost:9092"])
}

pub(super) fn options(config: &KafkaConfig) -> ClientConfig {
    config.to_client_config().unwrap()
}

pub(super) fn refused(config: &KafkaConfig) -> String {
    let error = config.to_client_config().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    error.to_string()
}
