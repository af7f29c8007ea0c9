use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::Message;
use cqrs_core::broker::{
    BoxFuture, BrokerState, MessageBroker, PublishError, Receipt, ShutdownReport,
};
use cqrs_core::consume::{Source, Subscribe, SubscribeError, SubscribeErrorKind, SubscribeRequest};

use crate::config::KafkaConfig;
use crate::consumer::{self, CopyLink};
use crate::error::{ErrorKind, KafkaError};
use crate::health::Phase;
use crate::producer::{Driver, Link};

/// Publishes messages to Kafka. Clones share one producer.
///
/// See the [crate's documentation](crate) for what is promised. One thread serves the producer; no
/// async thread is ever blocked.
///
/// Dropping the last clone refuses what waits for the window and lets the messages in flight be
/// delivered in the background until their deadline, as long as the process lives. Call
/// [`shutdown`](MessageBroker::shutdown) to wait for that and to learn how it ended.
#[derive(Clone)]
pub struct KafkaMessageBroker(Arc<Handle>);

struct Handle {
    config: KafkaConfig,
    link: Arc<Link>,
    /// Writes retry copies and dead letters of the subscriptions.
    copies: Arc<CopyLink>,
}

impl KafkaMessageBroker {
    /// Makes the value; connects in the background, for ever. Messages published before there is a
    /// contact wait for it until their deadline.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`] when options are missing, wrong or contradict each other, or a
    /// certificate or key cannot be read.
    pub fn new(config: KafkaConfig) -> Result<Self, KafkaError> {
        let link = Driver::start(&config)?;
        for weakness in config.weaknesses() {
            tracing::warn!(servers = config.bootstrap_servers.join(","), "{weakness}");
        }
        let copies = Arc::new(CopyLink::new(&config));
        Ok(Self(Arc::new(Handle { config, link, copies })))
    }

    /// Makes the value and waits until the cluster answered, [`KafkaConfig::publish_timeout`] at most.
    ///
    /// Cancel safe: dropped before it resolves, it leaves nothing behind.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when the cluster does not answer in time; [`ErrorKind::Authentication`]
    /// and [`ErrorKind::Tls`] as soon as every broker refused.
    pub async fn connect(config: KafkaConfig) -> Result<Self, KafkaError> {
        let broker = Self::new(config)?;
        let mut status = broker.0.link.health.subscribe();
        let timeout = broker.0.config.publish_timeout;
        let settled = status.wait_for(|status| status.phase == Phase::Up || status.is_hopeless());
        let is_up = match tokio::time::timeout(timeout, settled).await {
            Ok(Ok(status)) => status.phase == Phase::Up,
            _ => false,
        };
        match is_up {
            true => Ok(broker),
            false => Err(broker.no_contact()),
        }
    }

    fn no_contact(&self) -> KafkaError {
        let servers = self.0.config.bootstrap_servers.join(",");
        let text = format!("no contact with kafka at {servers}");
        match self.0.link.health.cause() {
            Some(cause) => KafkaError::with_source(cause.kind(), text, cause),
            None => KafkaError::new(ErrorKind::Connection, text),
        }
    }
}

impl MessageBroker for KafkaMessageBroker {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(async move {
            let link = &*self.0.link;
            let (pending, receipt) = link.intake.admit(link.check(message)?).await?;
            link.send(pending, receipt)
        })
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        let link = &*self.0.link;
        let (pending, receipt) = link.intake.try_admit(link.check(message)?)?;
        link.send(pending, receipt)
    }

    fn state(&self) -> BrokerState {
        match self.0.link.intake.is_closed() {
            true => BrokerState::Closed,
            false => self.0.link.health.state(),
        }
    }

    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.0.link.close(deadline);
        Box::pin(self.0.link.ended())
    }
}

/// Options that only Kafka knows are a [`KafkaSubscription`](crate::KafkaSubscription).
///
/// A subscription has its own connections and two threads. It does not end with the broker value: close
/// its source.
impl Subscribe for KafkaMessageBroker {
    fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
        consumer::check(&self.0.config, requests)
    }

    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        Box::pin(async move {
            if self.0.link.intake.is_closed() {
                let text = format!("subscription {}: the broker is shut down", request.name);
                return Err(SubscribeError::new(SubscribeErrorKind::Closed, text));
            }
            consumer::subscribe(&self.0.config, &self.0.copies, request).await
        })
    }
}

impl fmt::Debug for KafkaMessageBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaMessageBroker")
            .field("bootstrap_servers", &self.0.config.bootstrap_servers)
            .field("client_id", &self.0.config.client_id)
            .field("state", &self.state())
            .field("in_flight", &self.0.link.intake.in_flight())
            .finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.link.close(self.config.publish_timeout);
    }
}
