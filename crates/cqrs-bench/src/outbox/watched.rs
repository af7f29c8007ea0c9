//! [`Watched`]: a Kafka broker that counts what is sent, and may tell when each message is confirmed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cqrs_core::broker::{BoxFuture, BrokerState, Intake, Receipt, ShutdownReport};
use cqrs_core::{Message, MessageBroker, PublishError};
use cqrs_kafka::KafkaMessageBroker;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use uuid::Uuid;

/// The id of a message and the time of its confirm.
pub(super) type Confirmed = (Uuid, Instant);

#[derive(Debug, Clone)]
pub(super) struct Watched {
    kafka: KafkaMessageBroker,
    sent: Arc<AtomicUsize>,
    confirms: Option<(Intake, UnboundedSender<Confirmed>)>,
}

impl Watched {
    pub(super) fn new(kafka: KafkaMessageBroker) -> Self {
        Self { kafka, sent: Arc::default(), confirms: None }
    }

    /// Reports each confirm. Costs a task per message.
    pub(super) fn with_confirms(mut self) -> (Self, UnboundedReceiver<Confirmed>) {
        let (sender, receiver) = unbounded_channel();
        self.confirms = Some((Intake::default(), sender));
        (self, receiver)
    }

    /// Messages that were given to Kafka's client.
    pub(super) fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    fn count(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }
}

impl MessageBroker for Watched {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(async move {
            self.count();
            self.kafka.enqueue(message).await
        })
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        let Some((intake, confirms)) = &self.confirms else {
            let receipt = self.kafka.try_enqueue(message)?;
            self.count();
            return Ok(receipt);
        };
        let (pending, receipt) = intake.try_admit(message)?;
        let inner = self.kafka.try_enqueue(pending.message().clone())?;
        self.count();
        let confirms = confirms.clone();
        tokio::spawn(async move {
            match inner.await {
                Ok(confirmation) => {
                    let _scenario_ended = confirms.send((pending.message().id, Instant::now()));
                    pending.confirm(confirmation);
                }
                Err(error) => pending.fail(error.kind(), error.detail().to_owned(), None),
            }
        });
        Ok(receipt)
    }

    fn state(&self) -> BrokerState {
        self.kafka.state()
    }

    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.kafka.shutdown(deadline)
    }
}
