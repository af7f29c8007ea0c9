//! The settings of an [`AmqpMessageBroker`](crate::AmqpMessageBroker), and their checks.

mod dsn;
mod env;
mod subscription;
mod tls;
mod topology;

use std::time::Duration;

use cqrs_config::{MIN_TIMEOUT, check_minimum};
use cqrs_core::broker::{Intake, Window};
use serde::Deserialize;

pub use cqrs_config::{Pem, Reconnect, Secret, TlsConfig};
pub use dsn::Dsn;
pub(crate) use dsn::address;
pub(crate) use subscription::Profile;
pub use subscription::{AmqpSubscription, QueueKind, StreamOffset};
pub(crate) use tls::connector;
pub use topology::{
    Argument, BindingConfig, DeclareMode, ExchangeConfig, ExchangeKind, QueueConfig,
};

use crate::error::AmqpError;

/// Settings of an [`AmqpMessageBroker`](crate::AmqpMessageBroker).
///
/// Start from [`AmqpConfig::new`], [`from_env`](Self::from_env) or a file read with serde, where
/// durations are texts such as `"30s"` or `"250ms"` and a missing setting has its default. `Debug` shows
/// no credentials.
///
/// ```
/// use cqrs_amqp::{AmqpConfig, BindingConfig, ExchangeKind, QueueConfig};
///
/// let mut config = AmqpConfig::new("amqp://user:password@localhost:5672/");
/// config.exchange.name = "shop".into();
/// config.exchange.kind = ExchangeKind::Topic;
/// config.queues.push(QueueConfig::new("mail").with_argument("x-queue-type", "quorum"));
/// config.bindings.push(BindingConfig::new("mail", "user.*"));
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AmqpConfig {
    /// The server's address and the login; `amqp://localhost:5672/%2f` by default.
    pub dsn: Dsn,
    /// The exchange that messages are published to. A message's topic is its routing key.
    pub exchange: ExchangeConfig,
    /// The declarations on a new connection.
    pub declare: DeclareMode,
    /// Queues to declare with the exchange; none by default.
    pub queues: Vec<QueueConfig>,
    /// Bindings to declare after the queues; none by default.
    pub bindings: Vec<BindingConfig>,
    /// Connections for publishing; 1 by default. Each has a thread of its own.
    pub pool_size: u16,
    /// Channels on each connection; 2 by default. Messages of one topic and key share a channel.
    pub channels_per_connection: u16,
    /// The deadline of a publish, from `enqueue` to the confirm; 30 s by default, at least 100 ms.
    #[serde(deserialize_with = "cqrs_config::deserialize_duration")]
    pub publish_timeout: Duration,
    /// The time for which [`connect`](crate::AmqpMessageBroker::connect) waits for the server; 30 s by
    /// default, at least 100 ms.
    #[serde(deserialize_with = "cqrs_config::deserialize_duration")]
    pub connect_timeout: Duration,
    /// The time limit of one attempt to connect, TLS and AMQP handshakes included; 5 s by default, at
    /// least 100 ms. At most half the publish timeout counts, so that the cause is known before a publish
    /// expires.
    #[serde(deserialize_with = "cqrs_config::deserialize_duration")]
    pub attempt_timeout: Duration,
    /// Messages in flight; 1,000 by default.
    pub window_messages: usize,
    /// Bytes in flight; 16 MiB by default.
    pub window_bytes: usize,
    /// The interval of the probes of a silent connection, in whole seconds; 10 s by default. The server
    /// may ask for less. A connection that is silent for twice this is closed. A `heartbeat` in the dsn
    /// wins.
    #[serde(deserialize_with = "cqrs_config::deserialize_duration")]
    pub heartbeat: Duration,
    /// The wait between attempts to reconnect; 100 ms to 2 s by default.
    pub reconnect: Reconnect,
    /// TLS; used with `amqps://` only.
    pub tls: TlsConfig,
    /// True, the default: messages survive a restart of the server in durable queues.
    /// [`DeclareMode::PythonCompatible`] does not change it.
    pub persistent: bool,
    /// The largest message that is published, in bytes of body, key and headers; 16 MiB by default.
    /// Larger ones are refused here, as `TooLarge`: a body above RabbitMQ's own `max_message_size` (16 MiB
    /// since 4.0, 128 MiB before) makes the server close the channel.
    pub max_message_size: usize,
    /// The `app_id` property of every message; not set by default. At most 255 bytes.
    pub app_id: Option<String>,
    /// The connection's name in RabbitMQ's management pages; `cqrs-amqp` by default.
    pub connection_name: String,
}

impl Default for AmqpConfig {
    fn default() -> Self {
        Self {
            dsn: Dsn::default(),
            exchange: ExchangeConfig::default(),
            declare: DeclareMode::default(),
            queues: Vec::new(),
            bindings: Vec::new(),
            pool_size: 1,
            channels_per_connection: 2,
            publish_timeout: Intake::DEFAULT_TIMEOUT,
            connect_timeout: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(5),
            window_messages: Window::DEFAULT_MESSAGES,
            window_bytes: Window::DEFAULT_BYTES,
            heartbeat: Duration::from_secs(10),
            reconnect: Reconnect::default(),
            tls: TlsConfig::default(),
            persistent: true,
            max_message_size: 16 * 1024 * 1024,
            app_id: None,
            connection_name: "cqrs-amqp".into(),
        }
    }
}

impl AmqpConfig {
    /// The defaults, for the server at `dsn`.
    pub fn new(dsn: impl Into<Dsn>) -> Self {
        Self { dsn: dsn.into(), ..Self::default() }
    }

    /// Refuses settings that cannot work, before anything connects.
    pub(crate) fn validate(&self) -> Result<(), AmqpError> {
        let refuse = |detail: &'static str| Err(AmqpError::config(detail));
        let uri = self.dsn.parse()?;
        let names = self.queues.iter().flat_map(|queue| {
            let arguments = queue.arguments.keys().map(String::as_str);
            arguments.chain([queue.name.as_str()])
        });
        let bindings = self.bindings.iter().flat_map(|binding| {
            let exchange = binding.exchange.as_deref().unwrap_or_default();
            [binding.queue.as_str(), exchange, binding.routing_key.as_str()]
        });
        let own = [self.exchange.name.as_str(), self.app_id.as_deref().unwrap_or_default()];
        if names.chain(bindings).chain(own).any(|name| name.len() > 255) {
            return refuse(
                "a name (exchange, queue, argument, routing key, app_id) is over 255 bytes",
            );
        }
        if self.pool_size == 0 || self.channels_per_connection == 0 {
            return refuse("pool_size and channels_per_connection must be at least 1");
        }
        let timeout = |setting, value| check_minimum(setting, value, MIN_TIMEOUT);
        timeout("publish_timeout", self.publish_timeout)
            .and_then(|()| timeout("connect_timeout", self.connect_timeout))
            .and_then(|()| timeout("attempt_timeout", self.attempt_timeout))
            .and_then(|()| self.reconnect.check())
            .map_err(AmqpError::config)?;
        if self.heartbeat < Duration::from_secs(1) || self.heartbeat > Duration::from_secs(65_535) {
            return refuse("heartbeat must be between 1 and 65,535 seconds");
        }
        if self.declare == DeclareMode::PythonCompatible && self.exchange.name.is_empty() {
            return refuse(
                "the python-compatible mode needs an exchange name: the default exchange \
                           cannot be bound to",
            );
        }
        if self.tls.is_used() && uri.scheme == lapin::uri::AMQPScheme::AMQP {
            return refuse(
                "tls is configured, but the dsn says amqp:// (not encrypted); use amqps://",
            );
        }
        Ok(())
    }

    /// The time limit of one attempt to connect.
    pub(crate) fn attempt_limit(&self) -> Duration {
        self.attempt_timeout.min(self.publish_timeout / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut AmqpConfig)) -> String {
        let mut config = AmqpConfig::default();
        config.validate().unwrap();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn contradictions_are_refused_in_words() {
        assert!(refused(|config| config.pool_size = 0).contains("pool_size"));
        assert!(refused(|config| config.heartbeat = Duration::ZERO).contains("heartbeat"));
        assert!(refused(|config| config.exchange.name = "x".repeat(256)).contains("255"));
        let short = refused(|config| config.publish_timeout = Duration::from_millis(30));
        assert_eq!(short, "publish_timeout is 30ms, which is below the minimum of 100ms");
        let short = refused(|config| config.connect_timeout = Duration::ZERO);
        assert!(short.starts_with("connect_timeout is 0ns"), "{short}");
        assert!(refused(|config| config.reconnect.max = Duration::ZERO).contains("reconnect.max"));
        let python = refused(|config| {
            config.declare = DeclareMode::PythonCompatible;
            config.exchange.name.clear();
        });
        assert!(python.contains("default exchange"), "{python}");
        let plain = refused(|config| config.tls.ca = Some(Pem::Text("x".into())));
        assert!(plain.contains("amqps://"), "{plain}");
    }

    #[test]
    fn a_file_names_only_what_differs() {
        let text = r#"{
            "dsn": "amqp://u:p@h/", "exchange": {"name": "shop", "kind": "topic"},
            "declare": "python_compatible", "publish_timeout": "2500ms",
            "reconnect": {"max": "5s"},
            "queues": [{"name": "q", "arguments": {"x-queue-type": "quorum", "x-max-length": 9}}],
            "bindings": [{"queue": "q", "routing_key": "user.*"}],
            "tls": {"ca": "/ca.pem"}
        }"#;
        let config: AmqpConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.publish_timeout, Duration::from_millis(2_500));
        assert_eq!(config.reconnect.max, Duration::from_secs(5));
        assert_eq!(config.exchange.kind, ExchangeKind::Topic);
        assert!(config.exchange.durable && config.queues[0].durable);
        assert_eq!(config.queues[0].arguments["x-max-length"], Argument::Number(9));
        assert_eq!(config.tls.ca, Some(Pem::Path("/ca.pem".into())));
        for (wrong, words) in [
            (r#"{"exchang": 1}"#, "exchang"),
            (r#"{"publish_timeout": 30}"#, "without a unit"),
            (r#"{"declare": "pasive"}"#, "expected one of declare, passive"),
        ] {
            let error = serde_json::from_str::<AmqpConfig>(wrong).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
