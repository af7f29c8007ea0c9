//! The Kafka broker value: publishes messages and opens subscriptions. Used by applications.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::Message;
use cqrs_core::broker::{
    BoxFuture, BrokerState, MessageBroker, PublishError, Receipt, ShutdownReport, connect_within,
};
use cqrs_core::consume::{Source, Subscribe, SubscribeError, SubscribeErrorKind, SubscribeRequest};

use crate::config::KafkaConfig;
use crate::consumer::{self, CopyProducers};
use crate::error::{ErrorKind, KafkaError};
use crate::health::Phase;
use crate::producer::{self, ProducerHandle};

/// Publishes messages to Kafka and consumes them. Clones share one producer.
///
/// See the [crate's documentation](crate) for the guarantees. One thread serves the producer; no async thread is ever
/// blocked.
///
/// Dropping the last clone refuses messages that wait for the window. Messages in flight are delivered in the
/// background until their deadline, as long as the process lives. Call [`shutdown`](MessageBroker::shutdown) to wait
/// for them and to get a report.
#[derive(Clone)]
pub struct KafkaMessageBroker(Arc<Inner>);

struct Inner {
    config: KafkaConfig,
    producer: Arc<ProducerHandle>,
    /// Write retry copies and dead letters of the subscriptions.
    copies: Arc<CopyProducers>,
}

impl KafkaMessageBroker {
    /// Makes the value. It connects in the background and reconnects forever. Messages published before the first
    /// connection wait for it until their deadline.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when options are missing, wrong or contradict each other, or a
    /// certificate or key cannot be read.
    pub fn new(config: KafkaConfig) -> Result<Self, KafkaError> {
        let producer = producer::start(&config)?;
        for weakness in config.weaknesses() {
            tracing::warn!(servers = config.bootstrap_servers.join(","), "{weakness}");
        }
        let copies = Arc::new(CopyProducers::new(&config));
        Ok(Self(Arc::new(Inner { config, producer, copies })))
    }

    /// Makes the value and waits until the cluster answers, for [`KafkaConfig::connect_timeout`] at most. While it
    /// waits, it logs the cause every 5 s, at `info`.
    ///
    /// Cancel safe: dropped before it resolves, it leaves nothing behind.
    ///
    /// # Errors
    /// As [`new`](Self::new). [`ErrorKind::Authentication`], [`ErrorKind::Tls`] and [`ErrorKind::Protocol`] as soon
    /// as every broker refused; other failures are tried again, and the last one is the cause when the time is over.
    pub async fn connect(config: KafkaConfig) -> Result<Self, KafkaError> {
        let broker = Self::new(config)?;
        let config = &broker.0.config;
        let servers = config.bootstrap_servers.join(",");
        let health = &broker.0.producer.health;
        let mut status = health.subscribe();
        let settled = status.wait_for(|status| status.phase == Phase::Up || status.is_refused());
        let is_up = async { settled.await.is_ok_and(|status| status.phase == Phase::Up) };
        let cause = || health.cause().map(|cause| cause.to_string());
        let text = match connect_within(&servers, config.connect_timeout, is_up, cause).await {
            Some(true) => return Ok(broker),
            Some(false) => format!("no contact with kafka at {servers}"),
            None => {
                format!("no contact with kafka at {servers} within {:?}", config.connect_timeout)
            }
        };
        Err(match health.cause() {
            Some(cause) => KafkaError::new(cause.kind(), text).with_source(cause),
            None => KafkaError::new(ErrorKind::Connection, text),
        })
    }
}

impl MessageBroker for KafkaMessageBroker {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(async move {
            let producer = &*self.0.producer;
            let (pending, receipt) = producer.admit(message).await?;
            producer.send(pending, receipt)
        })
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        let producer = &*self.0.producer;
        let (pending, receipt) = producer.try_admit(message)?;
        producer.send(pending, receipt)
    }

    fn state(&self) -> BrokerState {
        match self.0.producer.intake.is_closed() {
            true => BrokerState::Closed,
            false => self.0.producer.health.state(),
        }
    }

    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.0.producer.close(deadline);
        Box::pin(self.0.producer.ended())
    }
}

/// Options that only Kafka knows are a [`KafkaSubscription`](crate::KafkaSubscription).
///
/// A subscription has its own connections and two threads. It does not end with the broker value, but when its source
/// is closed.
impl Subscribe for KafkaMessageBroker {
    fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
        consumer::check(&self.0.config, requests)
    }

    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        Box::pin(async move {
            if self.0.producer.intake.is_closed() {
                let text = format!("subscription {}: the broker is shut down", request.name);
                return Err(SubscribeError::new(SubscribeErrorKind::Closed, text));
            }
            consumer::subscribe(&self.0.config, &self.0.copies, request).await
        })
    }
}

cqrs_core::debug_fields!(KafkaMessageBroker {}, |it|
    bootstrap_servers: it.0.config.bootstrap_servers,
    client_id: it.0.config.client_id,
    state: it.state(),
    in_flight: it.0.producer.intake.in_flight());

impl Drop for Inner {
    fn drop(&mut self) {
        self.producer.close(self.config.publish_timeout);
    }
}
