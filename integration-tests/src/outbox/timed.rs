//! [`TimedBroker`]: a broker that keeps the time from the making of each message to its confirm.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Intake, Receipt, ShutdownReport};
use cqrs_core::{Message, MessageBroker, PublishError};
use cqrs_kafka::KafkaMessageBroker;

/// Messages that the broker refuses have no time.
#[derive(Debug, Clone)]
pub struct TimedBroker {
    kafka: KafkaMessageBroker,
    intake: Intake,
    times: Arc<Mutex<Vec<Duration>>>,
}

impl TimedBroker {
    /// A broker on top of `kafka`.
    pub fn new(kafka: KafkaMessageBroker) -> Self {
        Self { kafka, intake: Intake::default(), times: Arc::default() }
    }

    /// The time that 99 of 100 messages since the last call did not exceed.
    ///
    /// # Panics
    /// If there was no message.
    pub fn p99(&self) -> Duration {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let mut times = std::mem::take(&mut *times);
        times.sort_unstable();
        times[times.len() * 99 / 100]
    }
}

impl MessageBroker for TimedBroker {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        self.kafka.enqueue(message)
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        let (pending, receipt) = self.intake.try_admit(message)?;
        let inner = self.kafka.try_enqueue(pending.message().clone())?;
        let times = Arc::clone(&self.times);
        tokio::spawn(async move {
            match inner.await {
                Ok(confirmation) => {
                    let time = pending.message().timestamp.elapsed().unwrap_or_default();
                    times.lock().unwrap_or_else(PoisonError::into_inner).push(time);
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
