use std::env::VarError;
use std::str::FromStr;

use super::{AmqpConfig, DeclareMode, ExchangeKind, Pem, seconds};
use crate::AmqpError;

impl AmqpConfig {
    /// Reads the settings from environment variables; what is not set has its default.
    ///
    /// | variable | setting |
    /// |---|---|
    /// | `AMQP_DSN` | `dsn` |
    /// | `AMQP_EXCHANGE` | `exchange.name` |
    /// | `AMQP_EXCHANGE_KIND` | `exchange.kind`: `direct`, `topic`, `fanout`, `headers` |
    /// | `AMQP_EXCHANGE_DURABLE`, `AMQP_EXCHANGE_AUTO_DELETE` | `true` or `false` |
    /// | `AMQP_DECLARE` | `declare`: `declare`, `passive`, `none`, `python_compatible` |
    /// | `AMQP_POOL_SIZE`, `AMQP_CHANNELS_PER_CONNECTION` | the same |
    /// | `AMQP_PUBLISH_TIMEOUT`, `AMQP_CONNECT_TIMEOUT`, `AMQP_HEARTBEAT` | seconds |
    /// | `AMQP_WINDOW_MESSAGES`, `AMQP_WINDOW_BYTES`, `AMQP_MAX_MESSAGE_BYTES` | the same |
    /// | `AMQP_RECONNECT_INITIAL`, `AMQP_RECONNECT_MAX` | seconds |
    /// | `AMQP_PERSISTENT` | `true` or `false` |
    /// | `AMQP_APP_ID`, `AMQP_CONNECTION_NAME` | the same |
    /// | `AMQP_TLS_CA`, `AMQP_TLS_CLIENT_CERTIFICATE`, `AMQP_TLS_CLIENT_KEY` | a file, or PEM text |
    /// | `AMQP_TLS_CLIENT_KEY_PASSWORD` | text |
    ///
    /// An empty variable counts as not set, but for `AMQP_EXCHANGE`, where empty is the default
    /// exchange. Queues and bindings are set in code.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) naming the variable and what is wrong with it,
    /// never its value.
    pub fn from_env() -> Result<Self, AmqpError> {
        Self::from_lookup(|name| std::env::var(name))
    }

    fn from_lookup(lookup: impl Fn(&str) -> Result<String, VarError>) -> Result<Self, AmqpError> {
        let vars = Vars(lookup);
        let mut config = Self::default();
        vars.set("AMQP_DSN", &mut config.dsn, |text| Ok(text.into()))?;
        if let Some(name) = vars.get("AMQP_EXCHANGE")? {
            config.exchange.name = name;
        }
        vars.set("AMQP_EXCHANGE_KIND", &mut config.exchange.kind, exchange_kind)?;
        vars.set("AMQP_EXCHANGE_DURABLE", &mut config.exchange.durable, flag)?;
        vars.set("AMQP_EXCHANGE_AUTO_DELETE", &mut config.exchange.auto_delete, flag)?;
        vars.set("AMQP_DECLARE", &mut config.declare, declare_mode)?;
        vars.set("AMQP_POOL_SIZE", &mut config.pool_size, number)?;
        let channels = &mut config.channels_per_connection;
        vars.set("AMQP_CHANNELS_PER_CONNECTION", channels, number)?;
        vars.set("AMQP_PUBLISH_TIMEOUT", &mut config.publish_timeout, seconds::parse)?;
        vars.set("AMQP_CONNECT_TIMEOUT", &mut config.connect_timeout, seconds::parse)?;
        vars.set("AMQP_HEARTBEAT", &mut config.heartbeat, seconds::parse)?;
        vars.set("AMQP_WINDOW_MESSAGES", &mut config.window_messages, number)?;
        vars.set("AMQP_WINDOW_BYTES", &mut config.window_bytes, number)?;
        vars.set("AMQP_MAX_MESSAGE_BYTES", &mut config.max_message_bytes, number)?;
        vars.set("AMQP_RECONNECT_INITIAL", &mut config.reconnect.initial, seconds::parse)?;
        vars.set("AMQP_RECONNECT_MAX", &mut config.reconnect.max, seconds::parse)?;
        vars.set("AMQP_PERSISTENT", &mut config.persistent, flag)?;
        vars.set("AMQP_APP_ID", &mut config.app_id, |text| Ok(Some(text.into())))?;
        vars.set("AMQP_CONNECTION_NAME", &mut config.connection_name, |text| Ok(text.into()))?;
        vars.set("AMQP_TLS_CA", &mut config.tls.ca, pem)?;
        vars.set("AMQP_TLS_CLIENT_CERTIFICATE", &mut config.tls.client_certificate, pem)?;
        vars.set("AMQP_TLS_CLIENT_KEY", &mut config.tls.client_key, pem)?;
        let password = &mut config.tls.client_key_password;
        vars.set("AMQP_TLS_CLIENT_KEY_PASSWORD", password, |text| Ok(Some(text.into())))?;
        config.dsn.parse().map_err(|error| AmqpError::config(format!("AMQP_DSN: {error}")))?;
        config.validate()?;
        Ok(config)
    }
}

struct Vars<F>(F);

impl<F: Fn(&str) -> Result<String, VarError>> Vars<F> {
    fn get(&self, name: &str) -> Result<Option<String>, AmqpError> {
        match (self.0)(name) {
            Ok(value) => Ok(Some(value)),
            Err(VarError::NotPresent) => Ok(None),
            Err(VarError::NotUnicode(_)) => Err(AmqpError::config(format!("{name}: not UTF-8"))),
        }
    }

    fn set<T>(
        &self,
        name: &str,
        field: &mut T,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Result<(), AmqpError> {
        if let Some(text) = self.get(name)?.filter(|text| !text.is_empty()) {
            *field = parse(&text).map_err(|wrong| AmqpError::config(format!("{name}: {wrong}")))?;
        }
        Ok(())
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "expected a whole number that fits")
}

fn flag(text: &str) -> Result<bool, &'static str> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("expected true or false"),
    }
}

fn exchange_kind(text: &str) -> Result<ExchangeKind, &'static str> {
    match text {
        "direct" => Ok(ExchangeKind::Direct),
        "topic" => Ok(ExchangeKind::Topic),
        "fanout" => Ok(ExchangeKind::Fanout),
        "headers" => Ok(ExchangeKind::Headers),
        _ => Err("expected direct, topic, fanout or headers"),
    }
}

fn declare_mode(text: &str) -> Result<DeclareMode, &'static str> {
    match text {
        "declare" => Ok(DeclareMode::Declare),
        "passive" => Ok(DeclareMode::Passive),
        "none" => Ok(DeclareMode::None),
        "python_compatible" => Ok(DeclareMode::PythonCompatible),
        _ => Err("expected declare, passive, none or python_compatible"),
    }
}

fn pem(text: &str) -> Result<Option<Pem>, &'static str> {
    Ok(Some(text.into()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<AmqpConfig, AmqpError> {
        AmqpConfig::from_lookup(|name| {
            let found = vars.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned()).ok_or(VarError::NotPresent)
        })
    }

    #[test]
    fn nothing_set_is_the_default() {
        assert_eq!(read(&[]).unwrap(), AmqpConfig::default());
        assert_eq!(read(&[("AMQP_POOL_SIZE", "")]).unwrap(), AmqpConfig::default());
    }

    #[test]
    fn every_kind_of_value_is_read() {
        let config = read(&[
            ("AMQP_DSN", "amqps://u:p@h/v"),
            ("AMQP_EXCHANGE", ""),
            ("AMQP_EXCHANGE_KIND", "topic"),
            ("AMQP_DECLARE", "passive"),
            ("AMQP_POOL_SIZE", "3"),
            ("AMQP_PUBLISH_TIMEOUT", "0.5"),
            ("AMQP_PERSISTENT", "false"),
            ("AMQP_APP_ID", "shop"),
            ("AMQP_TLS_CA", "/etc/ca.pem"),
        ])
        .unwrap();
        assert_eq!(config.exchange.name, "");
        assert_eq!(config.declare, DeclareMode::Passive);
        assert_eq!((config.pool_size, config.persistent), (3, false));
        assert_eq!(config.publish_timeout, Duration::from_millis(500));
        assert_eq!(config.app_id.as_deref(), Some("shop"));
        assert_eq!(config.tls.ca, Some(Pem::Path("/etc/ca.pem".into())));
    }

    #[test]
    fn errors_name_the_variable_and_never_the_value() {
        for (name, value) in [
            ("AMQP_DSN", "s3cret"),
            ("AMQP_POOL_SIZE", "s3cret"),
            ("AMQP_PUBLISH_TIMEOUT", "-1"),
            ("AMQP_DECLARE", "s3cret"),
            ("AMQP_PERSISTENT", "s3cret"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.starts_with(name) && !shown.contains("s3cret"), "{shown}");
        }
    }
}
