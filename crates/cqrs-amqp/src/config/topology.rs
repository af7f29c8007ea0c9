//! Exchanges, queues and bindings in the settings, which are declared on a new connection.

use std::collections::BTreeMap;

use cqrs_config::text_enum;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde::Deserialize;

text_enum! {
    /// The routing of an exchange ([RabbitMQ: exchanges](https://www.rabbitmq.com/docs/exchanges)).
    #[derive(Default)]
    pub enum ExchangeKind {
        /// To the queues whose binding key equals the routing key; used by FastStream and python-cqrs.
        #[default]
        Direct = "direct",
        /// To the queues whose binding pattern (`*`, `#`) matches the routing key.
        Topic = "topic",
        /// To all bound queues.
        Fanout = "fanout",
        /// By the message's headers.
        Headers = "headers",
    }
}

impl ExchangeKind {
    pub(crate) fn lapin(self) -> lapin::ExchangeKind {
        match self {
            Self::Direct => lapin::ExchangeKind::Direct,
            Self::Topic => lapin::ExchangeKind::Topic,
            Self::Fanout => lapin::ExchangeKind::Fanout,
            Self::Headers => lapin::ExchangeKind::Headers,
        }
    }
}

/// The exchange that messages are published to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ExchangeConfig {
    /// Its name; `events` by default. The empty name is the default exchange, which routes to the queue
    /// named like the routing key (the message's topic) and is never declared.
    pub name: String,
    /// Its routing; direct by default.
    pub kind: ExchangeKind,
    /// True, the default: it survives a restart of the server.
    pub durable: bool,
    /// True: it is deleted with its last binding. False by default.
    pub auto_delete: bool,
}

impl Default for ExchangeConfig {
    fn default() -> Self {
        Self {
            name: "events".into(),
            kind: ExchangeKind::Direct,
            durable: true,
            auto_delete: false,
        }
    }
}

text_enum! {
    /// The declarations on a new connection (never per publish). A declaration that differs from the
    /// server's is an error ([`ErrorKind::Topology`](crate::ErrorKind::Topology), reply
    /// code 406), tried again with the connection's backoff.
    #[derive(Default)]
    pub enum DeclareMode {
        /// Declares the exchange, the queues and the bindings as configured.
        #[default]
        Declare = "declare",
        /// Only checks that the exchange and the queues exist. Binds nothing.
        Passive = "passive",
        /// Declares and checks nothing. Publishing to a missing exchange ends as `Unroutable`, and
        /// each such message costs a channel.
        None = "none",
        /// Declares what python-cqrs declares: the exchange direct, not durable, auto-delete (whatever
        /// [`ExchangeConfig`] says beside the name); and for every topic, when it is first published to on
        /// a connection, a queue of that name (not durable, not exclusive, no arguments), bound with the
        /// topic as routing key. Such a queue loses its messages when the server restarts.
        PythonCompatible = "python_compatible",
    }
}

/// A queue to declare.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct QueueConfig {
    /// Its name.
    pub name: String,
    /// True, the default: it survives a restart of the server.
    #[serde(default = "yes")]
    pub durable: bool,
    /// True: it is deleted with its last consumer. False by default.
    #[serde(default)]
    pub auto_delete: bool,
    /// True: only the declaring connection may use it. False by default.
    #[serde(default)]
    pub exclusive: bool,
    /// Further arguments, such as `x-queue-type`.
    #[serde(default)]
    pub arguments: BTreeMap<String, Argument>,
}

impl QueueConfig {
    /// A durable queue without arguments.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            durable: true,
            auto_delete: false,
            exclusive: false,
            arguments: BTreeMap::new(),
        }
    }

    /// Sets an argument.
    #[must_use]
    pub fn with_argument(mut self, name: impl Into<String>, value: impl Into<Argument>) -> Self {
        self.arguments.insert(name.into(), value.into());
        self
    }

    pub(crate) fn table(&self) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in &self.arguments {
            if let Ok(name) = ShortString::try_new(name.as_str()) {
                table.insert(name, value.lapin());
            }
        }
        table
    }
}

/// The value of a queue's argument.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Argument {
    /// True or false.
    Flag(bool),
    /// A whole number.
    Number(i64),
    /// Text.
    Text(String),
}

impl Argument {
    fn lapin(&self) -> AMQPValue {
        match self {
            Self::Flag(flag) => AMQPValue::Boolean(*flag),
            Self::Number(number) => AMQPValue::LongLongInt(*number),
            Self::Text(text) => AMQPValue::LongString(text.as_str().into()),
        }
    }
}

cqrs_core::from_values! { Argument:
    bool = |flag| Self::Flag(flag),
    i64 = |number| Self::Number(number),
    String = |text| Self::Text(text),
    &String = |text| Self::Text(text.clone()),
    &str = |text| Self::Text(text.into()),
}

/// A binding of a queue to declare.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct BindingConfig {
    /// The queue.
    pub queue: String,
    /// The exchange; `None` is the one that messages are published to.
    #[serde(default)]
    pub exchange: Option<String>,
    /// The routing key, or the pattern of a topic exchange.
    pub routing_key: String,
}

impl BindingConfig {
    /// Binds `queue` to the exchange that messages are published to.
    pub fn new(queue: impl Into<String>, routing_key: impl Into<String>) -> Self {
        Self { queue: queue.into(), exchange: None, routing_key: routing_key.into() }
    }
}

fn yes() -> bool {
    true
}
