//! Declares exchanges, queues and bindings; used by the connector and the consumer.

use std::sync::{Arc, PoisonError};

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};

use super::connection::Connection;
use crate::config::AmqpConfig;
use crate::config::{BindingConfig, DeclareMode, ExchangeConfig, QueueConfig};
use crate::error::{AmqpError, ErrorKind, from_lapin};

/// The topology that publishing needs, declared once per connection.
///
/// Declarations run on a short-lived channel of their own, because the server closes the channel of one that it
/// refuses.
pub(crate) struct Topology {
    mode: DeclareMode,
    exchange: ExchangeConfig,
    queues: Vec<QueueConfig>,
    bindings: Vec<BindingConfig>,
}

impl Topology {
    pub(super) fn new(config: &AmqpConfig) -> Self {
        let mut exchange = config.exchange.clone();
        if config.declare == DeclareMode::PythonCompatible {
            exchange = as_python_declares(exchange);
        }
        Self {
            mode: config.declare,
            exchange,
            queues: config.queues.clone(),
            bindings: config.bindings.clone(),
        }
    }

    pub(super) async fn declare(&self, connection: &Connection) -> Result<(), AmqpError> {
        let passive = match self.mode {
            DeclareMode::None => return Ok(()),
            DeclareMode::Passive => true,
            DeclareMode::Declare | DeclareMode::PythonCompatible => false,
        };
        let channel = open(connection).await?;
        declare_exchange(&channel, &self.exchange, passive).await?;
        for queue in &self.queues {
            declare_queue(&channel, queue, passive).await?;
        }
        for binding in self.bindings.iter().filter(|_| !passive) {
            let exchange = binding.exchange.as_deref().unwrap_or(&self.exchange.name);
            bind(&channel, &binding.queue, exchange, &binding.routing_key).await?;
        }
        close(channel).await;
        Ok(())
    }

    /// True if the next declaration restores a missing exchange.
    pub(crate) fn declares(&self) -> bool {
        matches!(self.mode, DeclareMode::Declare | DeclareMode::PythonCompatible)
    }

    /// True if `topic` has to be declared on this connection before messages are published to it.
    pub(crate) fn is_missing(&self, connection: &Connection, topic: &str) -> bool {
        self.mode == DeclareMode::PythonCompatible
            && !connection.topics.lock().unwrap_or_else(PoisonError::into_inner).contains(topic)
    }

    /// Declares `topic` as python-cqrs does: its queue, and the binding to the exchange.
    pub(crate) async fn declare_topic(
        &self,
        connection: &Connection,
        topic: Arc<str>,
    ) -> Result<(), AmqpError> {
        let channel = open(connection).await?;
        let queue = QueueConfig { durable: false, ..QueueConfig::new(&*topic) };
        declare_queue(&channel, &queue, false).await?;
        bind(&channel, &topic, &self.exchange.name, &topic).await?;
        close(channel).await;
        connection.topics.lock().unwrap_or_else(PoisonError::into_inner).insert(topic);
        Ok(())
    }
}

/// The exchange as python-cqrs declares it: only its name is kept.
pub(crate) fn as_python_declares(exchange: ExchangeConfig) -> ExchangeConfig {
    ExchangeConfig {
        kind: crate::config::ExchangeKind::Direct,
        durable: false,
        auto_delete: true,
        ..exchange
    }
}

/// Declares `exchange`, or checks that it exists if `passive`. The default exchange always exists.
pub(crate) async fn declare_exchange(
    channel: &lapin::Channel,
    exchange: &ExchangeConfig,
    passive: bool,
) -> Result<(), AmqpError> {
    let ExchangeConfig { name, kind, durable, auto_delete } = exchange;
    if name.is_empty() {
        return Ok(());
    }
    let options = ExchangeDeclareOptions {
        passive,
        durable: *durable,
        auto_delete: *auto_delete,
        ..ExchangeDeclareOptions::default()
    };
    channel
        .exchange_declare(short(name)?, kind.lapin(), options, FieldTable::default())
        .await
        .map_err(|error| refused(passive, format!("exchange {name:?}"), &error))
}

/// Declares `queue`, or checks that it exists if `passive`.
pub(crate) async fn declare_queue(
    channel: &lapin::Channel,
    queue: &QueueConfig,
    passive: bool,
) -> Result<(), AmqpError> {
    let options = QueueDeclareOptions {
        passive,
        durable: queue.durable,
        exclusive: queue.exclusive,
        auto_delete: queue.auto_delete,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(short(&queue.name)?, options, queue.table())
        .await
        .map(drop)
        .map_err(|error| refused(passive, format!("queue {:?}", queue.name), &error))
}

/// Binds `queue` to `exchange`.
pub(crate) async fn bind(
    channel: &lapin::Channel,
    queue: &str,
    exchange: &str,
    routing_key: &str,
) -> Result<(), AmqpError> {
    let options = QueueBindOptions::default();
    let (to, from, key) = (short(queue)?, short(exchange)?, short(routing_key)?);
    channel.queue_bind(to, from, key, options, FieldTable::default()).await.map_err(|error| {
        refused(false, format!("binding of queue {queue:?} to {exchange:?}"), &error)
    })
}

/// A short-lived channel for declarations.
pub(crate) async fn open(connection: &Connection) -> Result<lapin::Channel, AmqpError> {
    connection.lapin().create_channel().await.map_err(|error| {
        let detail = format!("opening a channel on {}", connection.address());
        from_lapin(ErrorKind::ConnectionLost, detail, &error)
    })
}

/// Closes a channel of [`open`].
pub(crate) async fn close(channel: lapin::Channel) {
    let _closed_with_its_connection = channel.close(200, "OK".into()).await;
}

pub(crate) fn short(name: &str) -> Result<ShortString, AmqpError> {
    ShortString::try_new(name)
        .map_err(|_| AmqpError::new(ErrorKind::Topology, "a name is longer than 255 bytes"))
}

fn refused(passive: bool, what: String, error: &lapin::Error) -> AmqpError {
    let kind = match error.is_amqp_error() {
        true => ErrorKind::Topology,
        false => ErrorKind::ConnectionLost,
    };
    let doing = match passive {
        true => format!("passive declare of {what}"),
        false => format!("declaring {what}"),
    };
    let hint = match error.kind() {
        lapin::ErrorKind::ProtocolError(reply) if reply.get_id() == 406 => {
            " (it exists on the server with other properties: use the same here, or another declare mode)"
        }
        _ => "",
    };
    from_lapin(kind, format!("{doing}{hint}"), error)
}
