//! The checks of a [`KafkaConfig`] before anything connects.

use std::time::Duration;

use cqrs_config::{MIN_TIMEOUT, check_minimum, not_text};

use super::KafkaConfig;
use crate::error::KafkaError;

/// The smallest `socket.timeout.ms` that librdkafka's requests are used with.
pub(super) const MIN_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

impl KafkaConfig {
    pub(super) fn check(&self) -> Result<(), KafkaError> {
        let wrong = |text: &'static str| Err(KafkaError::config(text));
        if self.bootstrap_servers.is_empty() {
            return wrong("bootstrap_servers is empty; it lists brokers as host:port");
        }
        let bad = |server: &String| {
            server.is_empty() || server.contains(|c: char| c == ',' || c.is_whitespace())
        };
        if let Some(server) = self.bootstrap_servers.iter().find(|server| bad(server)) {
            return Err(KafkaError::config(match not_text(server) {
                Some(what) => format!("bootstrap_servers has {what}; write texts, in quotes"),
                None => format!("bootstrap_servers has {server:?}, which is not host:port"),
            }));
        }
        let minimum = |setting, value, minimum| {
            check_minimum(setting, value, minimum).map_err(KafkaError::config)
        };
        minimum("publish_timeout", self.publish_timeout, MIN_TIMEOUT)?;
        minimum("connect_timeout", self.connect_timeout, MIN_TIMEOUT)?;
        minimum("request_timeout", self.request_timeout, MIN_REQUEST_TIMEOUT)?;
        self.reconnect.check().map_err(KafkaError::config)?;
        if self.linger >= self.publish_timeout {
            return wrong("linger is not below publish_timeout; no record would be sent in time");
        }
        if self.retry_delay > self.retry_delay_max {
            return wrong("retry_delay is above retry_delay_max");
        }
        self.check_security()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{config, options, refused};

    #[test]
    fn contradictions_are_refused() {
        assert!(refused(&KafkaConfig::default()).contains("bootstrap_servers is empty"));
        assert!(refused(&KafkaConfig::new(["a:1,b:2"])).contains("not host:port"));
        let mut slow = config();
        slow.linger = slow.publish_timeout;
        assert!(refused(&slow).contains("linger"));
        let mut short = config();
        short.publish_timeout = Duration::from_millis(30);
        assert!(
            refused(&short)
                .contains("publish_timeout is 30ms, which is below the minimum of 100ms")
        );
        short = config();
        short.request_timeout = Duration::from_millis(30);
        assert!(
            refused(&short).contains("request_timeout is 30ms, which is below the minimum of 1s")
        );
        short = config();
        short.reconnect.initial = Duration::from_secs(60);
        assert!(refused(&short).contains("reconnect.max is 2s"));
    }

    #[test]
    fn file_has_the_names_of_the_fields() {
        let text = r#"{
            "bootstrap_servers": ["a:9092"], "linger": "20ms", "publish_timeout": "5s",
            "security_protocol": "SASL_SSL", "compression": "lz4", "retries": 3,
            "sasl": {"mechanism": "PLAIN", "username": "me", "password": "hush"},
            "tls": {"ca": "/ca.pem"}, "raw": {"socket.keepalive.enable": "true"}
        }"#;
        let config: KafkaConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.linger, Duration::from_millis(20));
        assert_eq!(config.publish_timeout, Duration::from_secs(5));
        assert_eq!(config.sasl.password, Some("hush".into()));
        options(&config);
        for wrong in [r#"{"ack": "all"}"#, r#"{"linger": 5}"#] {
            assert!(serde_json::from_str::<KafkaConfig>(wrong).is_err(), "{wrong}");
        }
        let one: KafkaConfig = toml::from_str("bootstrap_servers = 'a:1, b:2'").unwrap();
        assert_eq!(one.bootstrap_servers, ["a:1", "b:2"]);
        let list: KafkaConfig = toml::from_str("bootstrap_servers = [8675309]").unwrap();
        let error = refused(&list);
        assert!(error.contains("in quotes") && !error.contains("867"), "{error}");
    }
}
