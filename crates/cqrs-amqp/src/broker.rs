//! The broker value for RabbitMQ: the producer and the subscriptions behind core's contracts.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Receipt, ShutdownReport, connect_within};
use cqrs_core::consume::support::error_chain;
use cqrs_core::consume::{Source, Subscribe, SubscribeError, SubscribeErrorKind, SubscribeRequest};
use cqrs_core::{Message, MessageBroker, PublishError};

use crate::config::{AmqpConfig, address};
use crate::consumer::Subscriber;
use crate::error::{AmqpError, ErrorKind};
use crate::producer::handle::ProducerHandle;

/// Publishes to RabbitMQ: persistent messages, publisher confirms, resent after a connection loss.
///
/// A [`MessageBroker`]; publish with [`MessageBrokerExt`](cqrs_core::MessageBrokerExt). And a [`Subscribe`]:
/// its subscriptions have connections of their own, and end by themselves. Clones share its
/// connections. When the last one is dropped without [`shutdown`](MessageBroker::shutdown), its tasks end
/// and messages in flight are abandoned.
///
/// ```no_run
/// use cqrs_amqp::{AmqpConfig, AmqpMessageBroker};
/// use cqrs_core::{Message, MessageBrokerExt};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = AmqpMessageBroker::connect(AmqpConfig::from_env()?).await?;
/// broker.publish(Message::new("user_events", r#"{"user_id":"1"}"#).with_key("1")).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct AmqpMessageBroker(Arc<SharedBroker>);

struct SharedBroker {
    producer: ProducerHandle,
    subscriber: Subscriber,
}

impl AmqpMessageBroker {
    /// Makes the broker value, even if the server is down; it connects in the background, forever.
    ///
    /// Must be called inside a tokio runtime with time and I/O enabled; its tasks run there.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config): a setting is wrong, or a certificate cannot be
    /// read.
    pub fn new(config: AmqpConfig) -> Result<Self, AmqpError> {
        config.validate()?;
        let subscriber = Subscriber::new(&config)?;
        let producer = ProducerHandle::new(&config)?;
        Ok(Self(Arc::new(SharedBroker { producer, subscriber })))
    }

    /// Makes the broker value and waits until it is connected and its topology is declared, for
    /// [`AmqpConfig::connect_timeout`] at most. While it waits, it logs the cause every 5 s, at `info`.
    ///
    /// For a server that may come up later, use [`new`](Self::new).
    ///
    /// # Errors
    /// As [`new`](Self::new). Failures that waiting cannot fix are returned at once: a refused login, a missing
    /// virtual host, an untrusted certificate, another protocol, a topology that the server refuses. Other
    /// failures are tried again, and the last one is the cause when the time is over.
    pub async fn connect(config: AmqpConfig) -> Result<Self, AmqpError> {
        let (timeout, address) = (config.connect_timeout, address(&config.dsn.parse()?));
        let broker = Self::new(config)?;
        let status = &broker.0.producer.status;
        let cause = || status.cause().map(|cause| error_chain(&cause));
        match connect_within(&address, timeout, status.connected(), cause).await {
            Some(Ok(())) => Ok(broker),
            Some(Err(error)) => Err(error),
            None => {
                let text = format!("no contact with rabbitmq at {address} within {timeout:?}");
                Err(match status.cause() {
                    Some(cause) => AmqpError::new(cause.kind(), text).with_source(cause),
                    None => AmqpError::new(ErrorKind::Connection, text),
                })
            }
        }
    }

    /// Messages that are queued or in flight, without an outcome.
    pub fn in_flight(&self) -> usize {
        self.0.producer.in_flight()
    }
}

impl MessageBroker for AmqpMessageBroker {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(self.0.producer.enqueue(message))
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        self.0.producer.try_enqueue(message)
    }

    fn state(&self) -> BrokerState {
        self.0.producer.state()
    }

    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.0.producer.shutdown(deadline)
    }
}

impl Subscribe for AmqpMessageBroker {
    fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
        self.0.subscriber.check(requests)
    }

    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        if self.0.producer.is_closed() {
            let detail = format!("subscription {:?}: the broker value is shut down", request.name);
            let error = SubscribeError::new(SubscribeErrorKind::Closed, detail);
            return Box::pin(std::future::ready(Err(error)));
        }
        Box::pin(self.0.subscriber.subscribe(request))
    }
}

cqrs_core::debug_fields!(AmqpMessageBroker {}, |it| state: it.state(), in_flight: it.in_flight());
