//! Declares exchanges, queues and bindings; used by the connector and the consumer.

use std::sync::{Arc, PoisonError};

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError};
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
        .map_err(|error| undeclared(passive, &format!("exchange {name:?}"), &error))
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
        .map_err(|error| undeclared(passive, &format!("queue {:?}", queue.name), &error))
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
        let doing = format!("declaring binding of queue {queue:?} to {exchange:?}");
        refused(doing, ErrorKind::Topology, &error)
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

fn undeclared(passive: bool, what: &str, error: &lapin::Error) -> AmqpError {
    let (doing, not_found) = match passive {
        true => ("passive declare of", ErrorKind::Topology),
        // Only the home node of a durable queue that is down has this answer.
        false => ("declaring", ErrorKind::ChannelClosed),
    };
    refused(format!("{doing} {what}"), not_found, error)
}

/// `not_found` is the kind of a 404.
fn refused(doing: String, not_found: ErrorKind, error: &lapin::Error) -> AmqpError {
    let kind = match error.kind() {
        lapin::ErrorKind::ProtocolError(reply) if reply.get_id() == 404 => not_found,
        lapin::ErrorKind::ProtocolError(reply) if is_refusal(reply) => ErrorKind::Topology,
        _ => ErrorKind::ConnectionLost,
    };
    let hint = match error.kind() {
        // The limit of queues is a 406, too.
        lapin::ErrorKind::ProtocolError(reply)
            if reply.get_id() == 406 && reply.get_message().as_str().contains("inequivalent") =>
        {
            " (it exists on the server with other properties: use the same here, or another declare mode)"
        }
        _ => "",
    };
    from_lapin(kind, format!("{doing}{hint}"), error)
}

/// True if the server refuses the request itself. The other replies that close a connection tell of a server that
/// stops or has failed.
fn is_refusal(reply: &AMQPError) -> bool {
    match reply.kind() {
        AMQPErrorKind::Soft(_) => true,
        AMQPErrorKind::Hard(hard) => matches!(
            hard,
            AMQPHardError::COMMANDINVALID
                | AMQPHardError::NOTALLOWED
                | AMQPHardError::NOTIMPLEMENTED
        ),
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPSoftError;

    use super::*;

    fn kind(passive: bool, reply: AMQPErrorKind) -> ErrorKind {
        let error = lapin::ErrorKind::ProtocolError(AMQPError::new(reply, "no".into()));
        undeclared(passive, "queue \"q\"", &error.into()).kind()
    }

    #[test]
    fn reply_of_a_failing_server_is_no_refusal() {
        use AMQPHardError::{CONNECTIONFORCED, INTERNALERROR, NOTALLOWED, NOTIMPLEMENTED};
        for (reply, expected) in [
            (AMQPErrorKind::Hard(CONNECTIONFORCED), ErrorKind::ConnectionLost),
            (AMQPErrorKind::Hard(INTERNALERROR), ErrorKind::ConnectionLost),
            (AMQPErrorKind::Hard(NOTALLOWED), ErrorKind::Topology),
            (AMQPErrorKind::Hard(NOTIMPLEMENTED), ErrorKind::Topology),
            (AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED), ErrorKind::Topology),
        ] {
            assert_eq!(kind(false, reply.clone()), expected, "{reply:?}");
        }
        let not_found = || AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND);
        assert_eq!(kind(true, not_found()), ErrorKind::Topology);
        assert_eq!(kind(false, not_found()), ErrorKind::ChannelClosed, "its node is down");
    }
}
