//! The environment variables of an [`AmqpConfig`].

use cqrs_config::{Env, MIN_TIMEOUT};

use super::AmqpConfig;
use crate::error::AmqpError;

const PREFIX: &str = "AMQP_";

impl AmqpConfig {
    /// Reads the settings from environment variables; what is not set has its default.
    ///
    /// | variable | setting |
    /// |---|---|
    /// | `AMQP_DSN` | `dsn`, required |
    /// | `AMQP_EXCHANGE` | `exchange.name` |
    /// | `AMQP_EXCHANGE_KIND` | `exchange.kind`: `direct`, `topic`, `fanout`, `headers` |
    /// | `AMQP_EXCHANGE_DURABLE`, `AMQP_EXCHANGE_AUTO_DELETE` | `true` or `false` |
    /// | `AMQP_DECLARE` | `declare`: `declare`, `passive`, `none`, `python_compatible` |
    /// | `AMQP_POOL_SIZE`, `AMQP_CHANNELS_PER_CONNECTION` | the same |
    /// | `AMQP_PUBLISH_TIMEOUT`, `AMQP_CONNECT_TIMEOUT`, `AMQP_HEARTBEAT` | the same, such as `30s` or `250ms` |
    /// | `AMQP_WINDOW_MESSAGES`, `AMQP_WINDOW_BYTES`, `AMQP_MAX_MESSAGE_SIZE` | the same |
    /// | `AMQP_RECONNECT_INITIAL`, `AMQP_RECONNECT_MAX` | `reconnect`, such as `30s` or `250ms` |
    /// | `AMQP_PERSISTENT` | `true` or `false` |
    /// | `AMQP_APP_ID`, `AMQP_CONNECTION_NAME` | the same |
    /// | `AMQP_TLS_CA`, `AMQP_TLS_CLIENT_CERTIFICATE`, `AMQP_TLS_CLIENT_KEY` | a file, or PEM text |
    /// | `AMQP_TLS_CLIENT_KEY_PASSWORD` | text |
    ///
    /// A variable that is empty counts as not set, but for `AMQP_EXCHANGE`, where empty is the default
    /// exchange; one that is not listed is ignored, with a warning that names a listed one like it.
    /// Queues and bindings are set in code.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) when variables are missing or malformed. The error
    /// names all of them, and never shows a value.
    pub fn from_env() -> Result<Self, AmqpError> {
        Self::read_env(Env::new(PREFIX))
    }

    fn read_env(mut env: Env) -> Result<Self, AmqpError> {
        let mut config = Self::default();
        env.require("DSN", &mut config.dsn, "amqp://user:password@host:port/vhost");
        if let Some(name) = env.text_or_empty("EXCHANGE") {
            config.exchange.name = name;
        }
        env.read("EXCHANGE_KIND", &mut config.exchange.kind);
        env.read("EXCHANGE_DURABLE", &mut config.exchange.durable);
        env.read("EXCHANGE_AUTO_DELETE", &mut config.exchange.auto_delete);
        env.read("DECLARE", &mut config.declare);
        env.read("POOL_SIZE", &mut config.pool_size);
        env.read("CHANNELS_PER_CONNECTION", &mut config.channels_per_connection);
        env.read_timeout("PUBLISH_TIMEOUT", &mut config.publish_timeout, MIN_TIMEOUT);
        env.read_timeout("CONNECT_TIMEOUT", &mut config.connect_timeout, MIN_TIMEOUT);
        env.read("HEARTBEAT", &mut config.heartbeat);
        env.read("WINDOW_MESSAGES", &mut config.window_messages);
        env.read("WINDOW_BYTES", &mut config.window_bytes);
        env.read("MAX_MESSAGE_SIZE", &mut config.max_message_size);
        env.read("RECONNECT_INITIAL", &mut config.reconnect.initial);
        env.read("RECONNECT_MAX", &mut config.reconnect.max);
        env.read("PERSISTENT", &mut config.persistent);
        env.read("APP_ID", &mut config.app_id);
        env.read("CONNECTION_NAME", &mut config.connection_name);
        env.read_tls(&mut config.tls);
        env.finish().map_err(AmqpError::config)?;
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{DeclareMode, ExchangeKind, Pem};

    fn read(vars: &[(&str, &str)]) -> Result<AmqpConfig, AmqpError> {
        let vars = vars.iter().map(|&(name, value)| (name.into(), value.into()));
        AmqpConfig::read_env(Env::from_vars(PREFIX, vars))
    }

    #[test]
    fn only_the_dsn_is_required() {
        let dsn = ("AMQP_DSN", "amqp://h/v");
        let expected = AmqpConfig::new("amqp://h/v");
        assert_eq!(read(&[dsn]).unwrap(), expected);
        assert_eq!(read(&[dsn, ("AMQP_POOL_SIZE", "")]).unwrap(), expected);
        for vars in [&[][..], &[("AMQP_DSN", "")]] {
            let error = read(vars).unwrap_err().to_string();
            assert!(error.starts_with("AMQP_DSN: it is not set; expected amqp://"), "{error}");
        }
    }

    #[test]
    fn every_variable_reaches_its_field() {
        let config = read(&[
            ("AMQP_DSN", "amqps://u:p@h/v"),
            ("AMQP_EXCHANGE", ""),
            ("AMQP_EXCHANGE_KIND", "topic"),
            ("AMQP_EXCHANGE_DURABLE", "false"),
            ("AMQP_EXCHANGE_AUTO_DELETE", "1"),
            ("AMQP_DECLARE", "passive"),
            ("AMQP_POOL_SIZE", "3"),
            ("AMQP_CHANNELS_PER_CONNECTION", "4"),
            ("AMQP_PUBLISH_TIMEOUT", "500ms"),
            ("AMQP_CONNECT_TIMEOUT", "2s"),
            ("AMQP_HEARTBEAT", "1m"),
            ("AMQP_WINDOW_MESSAGES", "5"),
            ("AMQP_WINDOW_BYTES", "6"),
            ("AMQP_MAX_MESSAGE_SIZE", "7"),
            ("AMQP_RECONNECT_INITIAL", "8ms"),
            ("AMQP_RECONNECT_MAX", "9s"),
            ("AMQP_PERSISTENT", "false"),
            ("AMQP_APP_ID", "shop"),
            ("AMQP_CONNECTION_NAME", "orders"),
            ("AMQP_TLS_CA", "/etc/ca.pem"),
            ("AMQP_TLS_CLIENT_CERTIFICATE", "-----BEGIN CERTIFICATE-----"),
            ("AMQP_TLS_CLIENT_KEY", "/key.pem"),
            ("AMQP_TLS_CLIENT_KEY_PASSWORD", "hush"),
        ])
        .unwrap();
        assert_eq!(config.exchange.name, "");
        assert_eq!(config.exchange.kind, ExchangeKind::Topic);
        assert!(!config.exchange.durable && config.exchange.auto_delete && !config.persistent);
        assert_eq!(config.declare, DeclareMode::Passive);
        assert_eq!((config.pool_size, config.channels_per_connection), (3, 4));
        assert_eq!(config.publish_timeout, Duration::from_millis(500));
        assert_eq!((config.connect_timeout.as_secs(), config.heartbeat.as_secs()), (2, 60));
        assert_eq!(
            (config.window_messages, config.window_bytes, config.max_message_size),
            (5, 6, 7)
        );
        assert_eq!(config.reconnect.initial, Duration::from_millis(8));
        assert_eq!(config.reconnect.max, Duration::from_secs(9));
        assert_eq!((config.app_id.as_deref(), &*config.connection_name), (Some("shop"), "orders"));
        assert_eq!(config.tls.ca, Some(Pem::Path("/etc/ca.pem".into())));
        assert!(matches!(config.tls.client_certificate, Some(Pem::Text(_))));
        assert_eq!(config.tls.client_key, Some(Pem::Path("/key.pem".into())));
        assert_eq!(config.tls.client_key_password, Some("hush".into()));
    }

    #[test]
    fn error_names_all_wrong_variables_unseen() {
        let error = read(&[
            ("AMQP_DSN", "s3cret"),
            ("AMQP_POOL_SIZE", "s3cret"),
            ("AMQP_PUBLISH_TIMEOUT", "30"),
            ("AMQP_CONNECT_TIMEOUT", "30ms"),
            ("AMQP_HEARTBEAT", "s3cret"),
            ("AMQP_DECLARE", "s3cret"),
            ("AMQP_PERSISTENT", "s3cret"),
        ])
        .unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        for words in [
            "AMQP_DSN: the dsn is not of the form",
            "AMQP_POOL_SIZE: expected a whole number from 0 to 65535",
            "AMQP_PUBLISH_TIMEOUT: a number without a unit",
            "AMQP_CONNECT_TIMEOUT: 30ms is below the minimum of 100ms",
            "AMQP_HEARTBEAT: expected a duration",
            "AMQP_DECLARE: expected one of declare, passive, none, python_compatible",
            "AMQP_PERSISTENT: expected true or false",
        ] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
    }
}
