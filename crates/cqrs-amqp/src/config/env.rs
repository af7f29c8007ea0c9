//! The environment variables of an [`AmqpConfig`].

use cqrs_config::{Env, MIN_TIMEOUT, read_fields};

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
    /// | `AMQP_PUBLISH_TIMEOUT`, `AMQP_CONNECT_TIMEOUT`, `AMQP_ATTEMPT_TIMEOUT`, `AMQP_HEARTBEAT` | the same, such as `30s` or `250ms` |
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
        read_fields!(
            env, config: exchange.kind, exchange.durable, exchange.auto_delete, declare, pool_size,
            channels_per_connection, heartbeat, window_messages, window_bytes, max_message_size,
            reconnect.initial, reconnect.max, persistent, app_id, connection_name,
        );
        env.read_timeout("PUBLISH_TIMEOUT", &mut config.publish_timeout, MIN_TIMEOUT);
        env.read_timeout("CONNECT_TIMEOUT", &mut config.connect_timeout, MIN_TIMEOUT);
        env.read_timeout("ATTEMPT_TIMEOUT", &mut config.attempt_timeout, MIN_TIMEOUT);
        env.read_tls(&mut config.tls);
        env.finish().map_err(AmqpError::config)?;
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let variables = [
            ("DSN", "amqps://u:p@h/v", "Dsn(amqps://***@h:5671/v)"),
            ("EXCHANGE", "", r#"name: """#),
            ("EXCHANGE_KIND", "topic", "kind: Topic"),
            ("EXCHANGE_DURABLE", "false", "durable: false"),
            ("EXCHANGE_AUTO_DELETE", "1", "auto_delete: true"),
            ("DECLARE", "passive", "declare: Passive"),
            ("POOL_SIZE", "3", "pool_size: 3"),
            ("CHANNELS_PER_CONNECTION", "4", "channels_per_connection: 4"),
            ("PUBLISH_TIMEOUT", "500ms", "publish_timeout: 500ms"),
            ("CONNECT_TIMEOUT", "2s", "connect_timeout: 2s"),
            ("ATTEMPT_TIMEOUT", "3s", "attempt_timeout: 3s"),
            ("HEARTBEAT", "1m", "heartbeat: 60s"),
            ("WINDOW_MESSAGES", "5", "window_messages: 5"),
            ("WINDOW_BYTES", "6", "window_bytes: 6"),
            ("MAX_MESSAGE_SIZE", "7", "max_message_size: 7"),
            ("RECONNECT_INITIAL", "8ms", "initial: 8ms"),
            ("RECONNECT_MAX", "9s", "max: 9s"),
            ("PERSISTENT", "false", "persistent: false"),
            ("APP_ID", "shop", r#"app_id: Some("shop")"#),
            ("CONNECTION_NAME", "orders", r#"connection_name: "orders""#),
            ("TLS_CA", "/etc/ca.pem", r#"ca: Some(Path("/etc/ca.pem"))"#),
            ("TLS_CLIENT_CERTIFICATE", "-----BEGIN C", "client_certificate: Some(Text(***))"),
            ("TLS_CLIENT_KEY", "/key.pem", r#"client_key: Some("***")"#),
            ("TLS_CLIENT_KEY_PASSWORD", "hush", "client_key_password: Some(***)"),
        ];
        let full = variables.map(|(name, value, _)| (format!("{PREFIX}{name}"), value));
        let full = full.each_ref().map(|(name, value)| (&**name, *value));
        let shown = format!("{:?}", read(&full).unwrap());
        for (name, _, field) in variables {
            assert!(shown.contains(field), "{name}: {shown}");
        }
    }

    #[test]
    fn error_names_all_wrong_variables_unseen() {
        let error = read(&[("AMQP_DSN", "s3cret"), ("AMQP_DECLARE", "s3cret")]).unwrap_err();
        let shown = format!("{error} {error:#?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        for words in [
            "AMQP_DSN: the dsn is not of the form",
            "AMQP_DECLARE: expected one of declare, passive, none, python_compatible",
        ] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
    }
}
