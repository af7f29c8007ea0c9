//! The environment variables of a [`KafkaConfig`].

use cqrs_config::{Env, MIN_TIMEOUT};

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
    /// | `KAFKA_PUBLISH_TIMEOUT`, `KAFKA_REQUEST_TIMEOUT` | [`publish_timeout`](Self::publish_timeout), [`request_timeout`](Self::request_timeout) | duration |
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
        env.read("CLIENT_ID", &mut config.client_id);
        env.read("ACKS", &mut config.acks);
        env.read("ENABLE_IDEMPOTENCE", &mut config.enable_idempotence);
        let in_flight = &mut config.max_in_flight_requests_per_connection;
        env.read("MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION", in_flight);
        env.read("RETRIES", &mut config.retries);
        env.read("RETRY_DELAY", &mut config.retry_delay);
        env.read("RETRY_DELAY_MAX", &mut config.retry_delay_max);
        env.read("SECURITY_PROTOCOL", &mut config.security_protocol);
        env.read("SASL_MECHANISM", &mut config.sasl.mechanism);
        env.read("SASL_USERNAME", &mut config.sasl.username);
        env.read("SASL_PASSWORD", &mut config.sasl.password);
        env.read_tls(&mut config.tls);
        env.read("DANGER_ACCEPT_ANY_CERTIFICATE", &mut config.danger_accept_any_certificate);
        env.read("DANGER_ACCEPT_ANY_HOSTNAME", &mut config.danger_accept_any_hostname);
        env.read("COMPRESSION", &mut config.compression);
        env.read("LINGER", &mut config.linger);
        env.read("BATCH_SIZE", &mut config.batch_size);
        env.read("MAX_MESSAGE_SIZE", &mut config.max_message_size);
        env.read("ALLOW_AUTO_CREATE_TOPICS", &mut config.allow_auto_create_topics);
        env.read("CONTENT_TYPE_HEADER", &mut config.record_headers.content_type);
        env.read("IDENTITY_HEADERS", &mut config.record_headers.identity);
        env.read("LOG_LEVEL", &mut config.log_level);
        env.read_timeout("PUBLISH_TIMEOUT", &mut config.publish_timeout, MIN_TIMEOUT);
        env.read_timeout("REQUEST_TIMEOUT", &mut config.request_timeout, MIN_REQUEST_TIMEOUT);
        env.read("WINDOW_MESSAGES", &mut config.window_messages);
        env.read("WINDOW_BYTES", &mut config.window_bytes);
        env.read("RECONNECT_INITIAL", &mut config.reconnect.initial);
        env.read("RECONNECT_MAX", &mut config.reconnect.max);
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
    use crate::{
        Acks, Compression, ErrorKind, IdentityHeaders, Pem, SaslMechanism, SecurityProtocol,
    };

    fn read(vars: &[(&str, &str)]) -> Result<KafkaConfig, KafkaError> {
        let vars = vars.iter().map(|&(name, value)| (name.into(), value.into()));
        KafkaConfig::read_env(Env::from_vars(PREFIX, vars))
    }

    #[test]
    fn every_variable_reaches_its_field() {
        let config = read(&[
            ("KAFKA_BOOTSTRAP_SERVERS", "a:9092, b:9093"),
            ("KAFKA_CLIENT_ID", "orders"),
            ("KAFKA_ACKS", "1"),
            ("KAFKA_ENABLE_IDEMPOTENCE", "false"),
            ("KAFKA_MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION", "3"),
            ("KAFKA_RETRIES", "7"),
            ("KAFKA_RETRY_DELAY", "200ms"),
            ("KAFKA_RETRY_DELAY_MAX", "3s"),
            ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL"),
            ("KAFKA_SASL_MECHANISM", "PLAIN"),
            ("KAFKA_SASL_USERNAME", "me"),
            ("KAFKA_SASL_PASSWORD", "hush"),
            ("KAFKA_TLS_CA", "/ca.pem"),
            ("KAFKA_TLS_CLIENT_CERTIFICATE", "-----BEGIN CERTIFICATE-----"),
            ("KAFKA_TLS_CLIENT_KEY", "/key.pem"),
            ("KAFKA_TLS_CLIENT_KEY_PASSWORD", "quiet"),
            ("KAFKA_DANGER_ACCEPT_ANY_CERTIFICATE", "true"),
            ("KAFKA_DANGER_ACCEPT_ANY_HOSTNAME", "true"),
            ("KAFKA_COMPRESSION", "zstd"),
            ("KAFKA_LINGER", "1ms"),
            ("KAFKA_BATCH_SIZE", "1000"),
            ("KAFKA_MAX_MESSAGE_SIZE", "2000"),
            ("KAFKA_ALLOW_AUTO_CREATE_TOPICS", "false"),
            ("KAFKA_CONTENT_TYPE_HEADER", "true"),
            ("KAFKA_IDENTITY_HEADERS", "always"),
            ("KAFKA_LOG_LEVEL", "debug"),
            ("KAFKA_PUBLISH_TIMEOUT", "1m"),
            ("KAFKA_REQUEST_TIMEOUT", "2s"),
            ("KAFKA_WINDOW_MESSAGES", "5"),
            ("KAFKA_WINDOW_BYTES", "6"),
            ("KAFKA_RECONNECT_INITIAL", "7ms"),
            ("KAFKA_RECONNECT_MAX", "8ms"),
            ("KAFKA_RAW_SOCKET_KEEPALIVE_ENABLE", "true"),
            ("KAFKA_PORT", "tcp://10.0.0.1:9092"),
            ("OTHER", "x"),
        ])
        .unwrap();
        assert_eq!(config.bootstrap_servers, ["a:9092", "b:9093"]);
        assert_eq!(config.client_id, "orders");
        assert_eq!((config.acks, config.enable_idempotence), (Acks::Leader, false));
        assert_eq!((config.max_in_flight_requests_per_connection, config.retries), (3, Some(7)));
        assert_eq!((config.retry_delay.as_millis(), config.retry_delay_max.as_secs()), (200, 3));
        assert_eq!(config.security_protocol, SecurityProtocol::SaslSsl);
        assert_eq!(config.sasl.mechanism, Some(SaslMechanism::Plain));
        assert_eq!(config.sasl.username.as_deref(), Some("me"));
        assert_eq!(config.sasl.password, Some("hush".into()));
        assert_eq!(config.tls.ca, Some(Pem::Path("/ca.pem".into())));
        assert!(matches!(config.tls.client_certificate, Some(Pem::Text(_))));
        assert_eq!(config.tls.client_key, Some(Pem::Path("/key.pem".into())));
        assert_eq!(config.tls.client_key_password, Some("quiet".into()));
        assert!(config.danger_accept_any_certificate && config.danger_accept_any_hostname);
        assert_eq!((config.compression, config.linger.as_millis()), (Compression::Zstd, 1));
        assert_eq!((config.batch_size, config.max_message_size), (1000, 2000));
        assert!(!config.allow_auto_create_topics && config.record_headers.content_type);
        assert_eq!(config.record_headers.identity, IdentityHeaders::Always);
        assert_eq!(config.log_level, crate::LogLevel::Debug);
        assert_eq!((config.publish_timeout.as_secs(), config.request_timeout.as_secs()), (60, 2));
        assert_eq!((config.window_messages, config.window_bytes), (5, 6));
        assert_eq!(config.reconnect.initial.as_millis(), 7);
        assert_eq!(config.reconnect.max.as_millis(), 8);
        assert_eq!(config.raw.len(), 1);
        assert_eq!(config.raw["socket.keepalive.enable"].expose(), "true");
    }

    #[test]
    fn error_names_all_wrong_variables_unseen() {
        let error = read(&[
            ("KAFKA_BOOTSTRAP_SERVERS", ""),
            ("KAFKA_LINGER", "5"),
            ("KAFKA_PUBLISH_TIMEOUT", "30"),
            ("KAFKA_REQUEST_TIMEOUT", "30ms"),
            ("KAFKA_ACKS", "s3cret"),
            ("KAFKA_RETRIES", "-1"),
        ])
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        for words in [
            "KAFKA_BOOTSTRAP_SERVERS: it is not set; expected host:port",
            "KAFKA_LINGER: a number without a unit",
            "KAFKA_PUBLISH_TIMEOUT: a number without a unit",
            "KAFKA_REQUEST_TIMEOUT: 30ms is below the minimum of 1s",
            "KAFKA_ACKS: expected one of all, 1, 0",
            "KAFKA_RETRIES: expected a whole number",
        ] {
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
    }
}
