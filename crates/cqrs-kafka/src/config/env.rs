use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use cqrs_config::Secret;

use super::{KafkaConfig, Pem, duration};
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
    /// | `KAFKA_BATCH_SIZE`, `KAFKA_MESSAGE_MAX_BYTES` | [`batch_size`](Self::batch_size), [`message_max_bytes`](Self::message_max_bytes) | bytes |
    /// | `KAFKA_ALLOW_AUTO_CREATE_TOPICS` | [`allow_auto_create_topics`](Self::allow_auto_create_topics) | `true`, `false` |
    /// | `KAFKA_CONTENT_TYPE_HEADER`, `KAFKA_IDENTITY_HEADERS` | [`record_headers`](Self::record_headers) | `true`, `false`; `auto`, `always`, `never` |
    /// | `KAFKA_LOG_LEVEL` | [`log_level`](Self::log_level) | `critical`, `error`, `warning`, `info`, `debug` |
    /// | `KAFKA_PUBLISH_TIMEOUT`, `KAFKA_REQUEST_TIMEOUT` | [`publish_timeout`](Self::publish_timeout), [`request_timeout`](Self::request_timeout) | duration |
    /// | `KAFKA_WINDOW_MESSAGES`, `KAFKA_WINDOW_BYTES` | [`window_messages`](Self::window_messages), [`window_bytes`](Self::window_bytes) | number |
    /// | `KAFKA_RECONNECT_BACKOFF`, `KAFKA_RECONNECT_BACKOFF_MAX` | [`reconnect_backoff`](Self::reconnect_backoff), [`reconnect_backoff_max`](Self::reconnect_backoff_max) | duration |
    /// | `KAFKA_RAW_<OPTION>` | [`raw`](Self::raw) | text; `KAFKA_RAW_SOCKET_KEEPALIVE_ENABLE` is `socket.keepalive.enable` |
    ///
    /// A duration is milliseconds (`250`) or has a unit (`5ms`, `30s`, `2m`). A variable that is empty
    /// counts as not set; one that is not listed is ignored, with a warning when its name is close to a listed
    /// one.
    ///
    /// # Errors
    /// When a variable is missing or malformed. The error names it, and shows its value unless that may
    /// be a secret.
    pub fn from_env() -> Result<Self, KafkaError> {
        Self::from_vars(std::env::vars_os())
    }

    fn from_vars(vars: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, KafkaError> {
        let vars = Vars::collect(vars)?;
        for (name, known) in vars.misspelt() {
            tracing::warn!("{PREFIX}{name} is not known and ignored; {PREFIX}{known} is");
        }
        let servers: String = vars.get("BOOTSTRAP_SERVERS")?.ok_or_else(|| {
            KafkaError::config("KAFKA_BOOTSTRAP_SERVERS is not set; it lists brokers as host:port")
        })?;
        let mut config = Self::new(servers.split(',').map(str::trim));
        vars.read("CLIENT_ID", &mut config.client_id)?;
        vars.read("ACKS", &mut config.acks)?;
        vars.read("ENABLE_IDEMPOTENCE", &mut config.enable_idempotence)?;
        vars.read(
            "MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION",
            &mut config.max_in_flight_requests_per_connection,
        )?;
        config.retries = vars.get("RETRIES")?;
        vars.duration("RETRY_DELAY", &mut config.retry_delay)?;
        vars.duration("RETRY_DELAY_MAX", &mut config.retry_delay_max)?;
        vars.read("SECURITY_PROTOCOL", &mut config.security_protocol)?;
        config.sasl.mechanism = vars.get("SASL_MECHANISM")?;
        config.sasl.username = vars.get("SASL_USERNAME")?;
        config.sasl.password = vars.secret("SASL_PASSWORD");
        config.tls.ca = vars.text("TLS_CA").map(Pem::from);
        config.tls.client_certificate = vars.text("TLS_CLIENT_CERTIFICATE").map(Pem::from);
        config.tls.client_key = vars.text("TLS_CLIENT_KEY").map(Pem::from);
        config.tls.client_key_password = vars.secret("TLS_CLIENT_KEY_PASSWORD");
        vars.read("DANGER_ACCEPT_ANY_CERTIFICATE", &mut config.danger_accept_any_certificate)?;
        vars.read("DANGER_ACCEPT_ANY_HOSTNAME", &mut config.danger_accept_any_hostname)?;
        vars.read("COMPRESSION", &mut config.compression)?;
        vars.duration("LINGER", &mut config.linger)?;
        vars.read("BATCH_SIZE", &mut config.batch_size)?;
        vars.read("MESSAGE_MAX_BYTES", &mut config.message_max_bytes)?;
        vars.read("ALLOW_AUTO_CREATE_TOPICS", &mut config.allow_auto_create_topics)?;
        vars.read("CONTENT_TYPE_HEADER", &mut config.record_headers.content_type)?;
        vars.read("IDENTITY_HEADERS", &mut config.record_headers.identity)?;
        vars.read("LOG_LEVEL", &mut config.log_level)?;
        vars.duration("PUBLISH_TIMEOUT", &mut config.publish_timeout)?;
        vars.duration("REQUEST_TIMEOUT", &mut config.request_timeout)?;
        vars.read("WINDOW_MESSAGES", &mut config.window_messages)?;
        vars.read("WINDOW_BYTES", &mut config.window_bytes)?;
        vars.duration("RECONNECT_BACKOFF", &mut config.reconnect_backoff)?;
        vars.duration("RECONNECT_BACKOFF_MAX", &mut config.reconnect_backoff_max)?;
        config.raw = vars.raw();
        Ok(config)
    }
}

/// The names that are read, without the prefix.
const KNOWN: [&str; 33] = [
    "BOOTSTRAP_SERVERS",
    "CLIENT_ID",
    "ACKS",
    "ENABLE_IDEMPOTENCE",
    "MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION",
    "RETRIES",
    "RETRY_DELAY",
    "RETRY_DELAY_MAX",
    "SECURITY_PROTOCOL",
    "SASL_MECHANISM",
    "SASL_USERNAME",
    "SASL_PASSWORD",
    "TLS_CA",
    "TLS_CLIENT_CERTIFICATE",
    "TLS_CLIENT_KEY",
    "TLS_CLIENT_KEY_PASSWORD",
    "DANGER_ACCEPT_ANY_CERTIFICATE",
    "DANGER_ACCEPT_ANY_HOSTNAME",
    "COMPRESSION",
    "LINGER",
    "BATCH_SIZE",
    "MESSAGE_MAX_BYTES",
    "ALLOW_AUTO_CREATE_TOPICS",
    "CONTENT_TYPE_HEADER",
    "IDENTITY_HEADERS",
    "LOG_LEVEL",
    "PUBLISH_TIMEOUT",
    "REQUEST_TIMEOUT",
    "WINDOW_MESSAGES",
    "WINDOW_BYTES",
    "RECONNECT_BACKOFF",
    "RECONNECT_BACKOFF_MAX",
    "RAW_",
];

/// The known name that `name` is probably meant to be, if it is not known itself.
fn near(name: &str) -> Option<&'static str> {
    if name.starts_with("RAW_") || KNOWN.contains(&name) {
        return None;
    }
    // A cut or continued name, or up to two letters of difference, a third of the name at most.
    let is_part = |known: &str| {
        let (short, long) = if name.len() < known.len() { (name, known) } else { (known, name) };
        short.len() >= 8 && long.starts_with(short)
    };
    let distance = |known: &str| edits(name.as_bytes(), known.as_bytes());
    let close = KNOWN.into_iter().min_by_key(|known| distance(known))?;
    let limit = 2.min(close.len() / 3);
    match distance(close) <= limit {
        true => Some(close),
        false => KNOWN.into_iter().find(|known| is_part(known)),
    }
}

/// How many letters are to be put in, taken out or changed.
fn edits(one: &[u8], other: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, known) in other.iter().enumerate() {
            let change = diagonal + usize::from(letter != known);
            diagonal = row[column + 1];
            row[column + 1] = change.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

/// The variables with our prefix, without it. Empty ones are left out.
struct Vars(BTreeMap<String, String>);

impl Vars {
    fn collect(vars: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, KafkaError> {
        let mut ours = BTreeMap::new();
        for (name, value) in vars {
            let Some(name) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
                continue;
            };
            let value = value
                .into_string()
                .map_err(|_not_shown| KafkaError::config(format!("{PREFIX}{name} is not UTF-8")))?;
            if !value.is_empty() {
                ours.insert(name.to_owned(), value);
            }
        }
        Ok(Self(ours))
    }

    /// Names that are not known, each with the one it is probably meant to be.
    fn misspelt(&self) -> Vec<(&str, &'static str)> {
        self.0.keys().filter_map(|name| Some((&**name, near(name)?))).collect()
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn secret(&self, name: &str) -> Option<Secret> {
        self.text(name).map(Secret::from)
    }

    /// For values that may be shown.
    fn get<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, KafkaError> {
        let parse = |text: &str| text.parse().map_err(|error| wrong(name, text, error));
        self.text(name).map(parse).transpose()
    }

    fn read<T: FromStr<Err: Display>>(&self, name: &str, into: &mut T) -> Result<(), KafkaError> {
        if let Some(value) = self.get(name)? {
            *into = value;
        }
        Ok(())
    }

    fn duration(&self, name: &str, into: &mut Duration) -> Result<(), KafkaError> {
        if let Some(text) = self.text(name) {
            *into = duration::parse(text).map_err(|error| wrong(name, text, error))?;
        }
        Ok(())
    }

    fn raw(&self) -> BTreeMap<String, Secret> {
        let option =
            |name: &String| Some(name.strip_prefix("RAW_")?.to_lowercase().replace('_', "."));
        self.0
            .iter()
            .filter_map(|(name, value)| Some((option(name)?, value.as_str().into())))
            .collect()
    }
}

fn wrong(name: &str, text: &str, error: impl Display) -> KafkaError {
    KafkaError::config(format!("{PREFIX}{name} is {text:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Acks, Compression, ErrorKind, IdentityHeaders, SaslMechanism, SecurityProtocol};

    fn read(vars: &[(&str, &str)]) -> Result<KafkaConfig, KafkaError> {
        KafkaConfig::from_vars(vars.iter().map(|&(name, value)| (name.into(), value.into())))
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
            ("KAFKA_RETRY_DELAY", "200"),
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
            ("KAFKA_MESSAGE_MAX_BYTES", "2000"),
            ("KAFKA_ALLOW_AUTO_CREATE_TOPICS", "false"),
            ("KAFKA_CONTENT_TYPE_HEADER", "true"),
            ("KAFKA_IDENTITY_HEADERS", "always"),
            ("KAFKA_LOG_LEVEL", "debug"),
            ("KAFKA_PUBLISH_TIMEOUT", "1m"),
            ("KAFKA_REQUEST_TIMEOUT", "2s"),
            ("KAFKA_WINDOW_MESSAGES", "5"),
            ("KAFKA_WINDOW_BYTES", "6"),
            ("KAFKA_RECONNECT_BACKOFF", "7"),
            ("KAFKA_RECONNECT_BACKOFF_MAX", "8"),
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
        assert_eq!((config.batch_size, config.message_max_bytes), (1000, 2000));
        assert!(!config.allow_auto_create_topics && config.record_headers.content_type);
        assert_eq!(config.record_headers.identity, IdentityHeaders::Always);
        assert_eq!(config.log_level, crate::LogLevel::Debug);
        assert_eq!((config.publish_timeout.as_secs(), config.request_timeout.as_secs()), (60, 2));
        assert_eq!((config.window_messages, config.window_bytes), (5, 6));
        assert_eq!(config.reconnect_backoff.as_millis(), 7);
        assert_eq!(config.reconnect_backoff_max.as_millis(), 8);
        assert_eq!(config.raw.len(), 1);
        assert_eq!(config.raw["socket.keepalive.enable"].expose(), "true");
    }

    #[test]
    fn near_names_are_found_and_foreign_ones_are_not() {
        for (name, known) in [
            ("SECURTY_PROTOCOL", "SECURITY_PROTOCOL"),
            ("SECURITY_PROTOCOLS", "SECURITY_PROTOCOL"),
            ("SECURITYPROTOCOL", "SECURITY_PROTOCOL"),
            ("SASL_USER", "SASL_USERNAME"),
            ("SASL_PASWORD", "SASL_PASSWORD"),
            ("ACK", "ACKS"),
            ("TLS_CLIENT_CERT", "TLS_CLIENT_CERTIFICATE"),
        ] {
            assert_eq!(near(name), Some(known), "{name}");
        }
        // What Kubernetes sets for a service of this name, and others.
        for name in ["PORT", "SERVICE_HOST", "PORT_9092_TCP_ADDR", "HEAP_OPTS", "OPTS", "HOME"] {
            assert_eq!(near(name), None, "{name}");
        }
        let read_names = KNOWN.iter().filter(|name| **name != "RAW_").count();
        let vars = KNOWN.map(|name| (format!("{PREFIX}{name}").into(), "x".into()));
        assert_eq!(Vars::collect(vars).unwrap().0.len(), read_names + 1);
        let misspelt = [("KAFKA_LOGLEVEL".into(), "x".into())];
        assert_eq!(Vars::collect(misspelt).unwrap().misspelt(), [("LOGLEVEL", "LOG_LEVEL")]);
    }

    #[test]
    fn an_error_names_the_variable_and_what_is_wrong() {
        for (vars, text) in [
            (&[][..], "KAFKA_BOOTSTRAP_SERVERS is not set"),
            (&[("KAFKA_BOOTSTRAP_SERVERS", "")], "KAFKA_BOOTSTRAP_SERVERS is not set"),
            (
                &[("KAFKA_BOOTSTRAP_SERVERS", "a"), ("KAFKA_LINGER", "soon")],
                "KAFKA_LINGER is \"soon\"",
            ),
            (&[("KAFKA_BOOTSTRAP_SERVERS", "a"), ("KAFKA_ACKS", "2")], "KAFKA_ACKS is \"2\""),
            (&[("KAFKA_BOOTSTRAP_SERVERS", "a"), ("KAFKA_RETRIES", "-1")], "KAFKA_RETRIES"),
        ] {
            let error = read(vars).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Configuration);
            assert!(error.to_string().starts_with(text), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_secret_that_is_not_utf_8_is_not_shown() {
        use std::os::unix::ffi::OsStringExt;
        let password = OsString::from_vec(b"hush\xff".to_vec());
        let error = KafkaConfig::from_vars([("KAFKA_SASL_PASSWORD".into(), password)]).unwrap_err();
        assert_eq!(error.to_string(), "KAFKA_SASL_PASSWORD is not UTF-8");
    }
}
