//! The environment variables of a [`KafkaConfig`].

use cqrs_config::{Env, MIN_TIMEOUT, read_fields};

use super::KafkaConfig;
use super::check::MIN_REQUEST_TIMEOUT;
use crate::error::KafkaError;

const PREFIX: &str = "KAFKA_";

impl KafkaConfig {
    /// Reads the configuration from environment variables.
    ///
    /// | variable | field | form |
    /// |---|---|---|
    /// | `KAFKA_BOOTSTRAP_SERVERS` | [`bootstrap_servers`](Self::bootstrap_servers), required | `host:port,host:port` |
    /// | `KAFKA_CLIENT_ID` | [`client_id`](Self::client_id) | text |
    /// | `KAFKA_ACKS` | [`acks`](Self::acks) | `all`, `1`, `0` |
    /// | `KAFKA_ENABLE_IDEMPOTENCE` | [`enable_idempotence`](Self::enable_idempotence) | `true`, `false` |
    /// | `KAFKA_MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION` | [`max_in_flight_requests_per_connection`](Self::max_in_flight_requests_per_connection) | number |
    /// | `KAFKA_RETRIES` | [`retries`](Self::retries) | number |
    /// | `KAFKA_RETRY_DELAY`, `KAFKA_RETRY_DELAY_MAX` | [`retry_delay`](Self::retry_delay), [`retry_delay_max`](Self::retry_delay_max) | duration |
    /// | `KAFKA_SECURITY_PROTOCOL` | [`security_protocol`](Self::security_protocol) | `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT`, `SASL_SSL` |
    /// | `KAFKA_SASL_MECHANISM`, `KAFKA_SASL_USERNAME`, `KAFKA_SASL_PASSWORD` | [`sasl`](Self::sasl) | text |
    /// | `KAFKA_TLS_CA`, `KAFKA_TLS_CLIENT_CERTIFICATE`, `KAFKA_TLS_CLIENT_KEY` | [`tls`](Self::tls) | path, or the PEM itself |
    /// | `KAFKA_TLS_CLIENT_KEY_PASSWORD` | [`tls`](Self::tls) | text |
    /// | `KAFKA_DANGER_ACCEPT_ANY_CERTIFICATE`, `KAFKA_DANGER_ACCEPT_ANY_HOSTNAME` | [`danger_accept_any_certificate`](Self::danger_accept_any_certificate), [`danger_accept_any_hostname`](Self::danger_accept_any_hostname) | `true`, `false` |
    /// | `KAFKA_COMPRESSION` | [`compression`](Self::compression) | `none`, `lz4`, `zstd`, `snappy`, `gzip` |
    /// | `KAFKA_LINGER` | [`linger`](Self::linger) | duration |
    /// | `KAFKA_BATCH_SIZE`, `KAFKA_MAX_MESSAGE_SIZE` | [`batch_size`](Self::batch_size), [`max_message_size`](Self::max_message_size) | bytes |
    /// | `KAFKA_ALLOW_AUTO_CREATE_TOPICS` | [`allow_auto_create_topics`](Self::allow_auto_create_topics) | `true`, `false` |
    /// | `KAFKA_CONTENT_TYPE_HEADER`, `KAFKA_IDENTITY_HEADERS` | [`record_headers`](Self::record_headers) | `true`, `false`; `auto`, `always`, `never` |
    /// | `KAFKA_LOG_LEVEL` | [`log_level`](Self::log_level) | `critical`, `error`, `warning`, `info`, `debug` |
    /// | `KAFKA_PUBLISH_TIMEOUT`, `KAFKA_CONNECT_TIMEOUT`, `KAFKA_REQUEST_TIMEOUT` | [`publish_timeout`](Self::publish_timeout), [`connect_timeout`](Self::connect_timeout), [`request_timeout`](Self::request_timeout) | duration |
    /// | `KAFKA_WINDOW_MESSAGES`, `KAFKA_WINDOW_BYTES` | [`window_messages`](Self::window_messages), [`window_bytes`](Self::window_bytes) | number |
    /// | `KAFKA_RECONNECT_INITIAL`, `KAFKA_RECONNECT_MAX` | [`reconnect`](Self::reconnect) | duration |
    /// | `KAFKA_RAW_<OPTION>` | [`raw`](Self::raw) | text; `KAFKA_RAW_SOCKET_KEEPALIVE_ENABLE` is `socket.keepalive.enable` |
    ///
    /// A duration has a unit: `250ms`, `30s`, `1m 30s`. A variable that is empty counts as not set; one
    /// that is not listed is ignored, with a warning that names a listed one like it.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) when variables are missing or malformed. The error
    /// names all of them, and never shows a value.
    pub fn from_env() -> Result<Self, KafkaError> {
        Self::read_env(Env::new(PREFIX))
    }

    fn read_env(mut env: Env) -> Result<Self, KafkaError> {
        let mut config = Self::default();
        env.require("BOOTSTRAP_SERVERS", &mut config.bootstrap_servers, "host:port,host:port");
        read_fields!(
            env, config: client_id, acks, enable_idempotence, max_in_flight_requests_per_connection,
            retries, retry_delay, retry_delay_max, security_protocol, sasl.mechanism, sasl.username,
            sasl.password, danger_accept_any_certificate, danger_accept_any_hostname, compression,
            linger, batch_size, max_message_size, allow_auto_create_topics, log_level,
            window_messages, window_bytes, reconnect.initial, reconnect.max,
        );
        env.read("CONTENT_TYPE_HEADER", &mut config.record_headers.content_type);
        env.read("IDENTITY_HEADERS", &mut config.record_headers.identity);
        env.read_tls(&mut config.tls);
        env.read_timeout("PUBLISH_TIMEOUT", &mut config.publish_timeout, MIN_TIMEOUT);
        env.read_timeout("CONNECT_TIMEOUT", &mut config.connect_timeout, MIN_TIMEOUT);
        env.read_timeout("REQUEST_TIMEOUT", &mut config.request_timeout, MIN_REQUEST_TIMEOUT);
        let raw = env.all_of("RAW_").into_iter();
        config.raw =
            raw.map(|(name, value)| (name.to_lowercase().replace('_', "."), value)).collect();
        env.finish().map_err(KafkaError::config)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn read(vars: &[(&str, &str)]) -> Result<KafkaConfig, KafkaError> {
        let vars = vars.iter().map(|&(name, value)| (name.into(), value.into()));
        KafkaConfig::read_env(Env::from_vars(PREFIX, vars))
    }

    #[test]
    fn every_variable_reaches_its_field() {
        let variables = [
            ("BOOTSTRAP_SERVERS", "a:9092, b:9093", r#"bootstrap_servers: ["a:9092", "b:9093"]"#),
            ("CLIENT_ID", "orders", r#"client_id: "orders""#),
            ("ACKS", "1", "acks: Leader"),
            ("ENABLE_IDEMPOTENCE", "false", "enable_idempotence: false"),
            ("MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION", "3", "requests_per_connection: 3"),
            ("RETRIES", "7", "retries: Some(7)"),
            ("RETRY_DELAY", "200ms", "retry_delay: 200ms"),
            ("RETRY_DELAY_MAX", "3s", "retry_delay_max: 3s"),
            ("SECURITY_PROTOCOL", "SASL_SSL", "security_protocol: SaslSsl"),
            ("SASL_MECHANISM", "PLAIN", "mechanism: Some(Plain)"),
            ("SASL_USERNAME", "me", r#"username: Some("me")"#),
            ("SASL_PASSWORD", "hush", "password: Some(***)"),
            ("TLS_CA", "/ca.pem", r#"ca: Some(Path("/ca.pem"))"#),
            ("TLS_CLIENT_CERTIFICATE", "-----BEGIN C", "client_certificate: Some(Text(***))"),
            ("TLS_CLIENT_KEY", "/key.pem", r#"client_key: Some("***")"#),
            ("TLS_CLIENT_KEY_PASSWORD", "quiet", "client_key_password: Some(***)"),
            ("DANGER_ACCEPT_ANY_CERTIFICATE", "true", "accept_any_certificate: true"),
            ("DANGER_ACCEPT_ANY_HOSTNAME", "true", "accept_any_hostname: true"),
            ("COMPRESSION", "zstd", "compression: Zstd"),
            ("LINGER", "1ms", "linger: 1ms"),
            ("BATCH_SIZE", "1000", "batch_size: 1000"),
            ("MAX_MESSAGE_SIZE", "2000", "max_message_size: 2000"),
            ("ALLOW_AUTO_CREATE_TOPICS", "false", "allow_auto_create_topics: false"),
            ("CONTENT_TYPE_HEADER", "true", "content_type: true"),
            ("IDENTITY_HEADERS", "always", "identity: Always"),
            ("LOG_LEVEL", "debug", "log_level: Debug"),
            ("PUBLISH_TIMEOUT", "1m", "publish_timeout: 60s"),
            ("CONNECT_TIMEOUT", "3s", "connect_timeout: 3s"),
            ("REQUEST_TIMEOUT", "2s", "request_timeout: 2s"),
            ("WINDOW_MESSAGES", "5", "window_messages: 5"),
            ("WINDOW_BYTES", "6", "window_bytes: 6"),
            ("RECONNECT_INITIAL", "7ms", "initial: 7ms"),
            ("RECONNECT_MAX", "8ms", "max: 8ms"),
            ("RAW_SOCKET_KEEPALIVE_ENABLE", "true", r#"raw: {"socket.keepalive.enable": ***}"#),
        ];
        let full = variables.map(|(name, value, _)| (format!("{PREFIX}{name}"), value));
        let full = full.each_ref().map(|(name, value)| (&**name, *value));
        let shown = format!("{:?}", read(&full).unwrap());
        for (name, _, field) in variables {
            assert!(shown.contains(field), "{name}: {shown}");
        }
    }

    #[test]
    fn error_names_all_wrong_variables() {
        let error =
            read(&[("KAFKA_REQUEST_TIMEOUT", "30ms"), ("KAFKA_ACKS", "s3cret")]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        let text = "KAFKA_BOOTSTRAP_SERVERS: it is not set; expected host:port,host:port; KAFKA_ACKS: \
                    expected one of all, 1, 0; KAFKA_REQUEST_TIMEOUT: 30ms is below the minimum of 1s";
        assert_eq!(error.to_string(), text);
    }
}
