//! Settles the deliveries of a memory source for the service runtime.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::fault_plan::Fault;
use super::options::{MemoryRetry, MemorySubscription};
use super::source_state::SourceState;
use super::subscriber::MemoryDelivery;
use crate::broker::{BoxFuture, MessageBrokerExt};
use crate::consume::{DeadLetter, Delayed, RETRY_HEADERS, RetryState, Settle, SettleError};
use crate::message::Message;

/// Settles one delivery of a source.
pub(super) struct MemorySettle {
    /// `None` once it is settled.
    delivery: Option<MemoryDelivery>,
    state: Arc<SourceState>,
}

impl MemorySettle {
    pub(super) fn new(delivery: MemoryDelivery, state: Arc<SourceState>) -> Self {
        Self { delivery: Some(delivery), state }
    }

    /// Gives the message back, unless it is settled.
    fn end(&mut self) {
        // Before the source is woken, so that it finds the message.
        if self.delivery.take().is_some() {
            self.state.end_in_flight();
        }
    }
}

fn ready<T: Send + 'static>(
    result: Result<T, SettleError>,
) -> BoxFuture<'static, Result<T, SettleError>> {
    Box::pin(std::future::ready(result))
}

impl Settle for MemorySettle {
    fn begin(&mut self) -> bool {
        !self.is_revoked()
    }

    /// Nothing depends on running deliveries.
    fn postpone(&mut self) {}

    fn note_attempt(&mut self, state: &RetryState) {
        if let Some(delivery) = &self.delivery {
            delivery.set_retry(*state);
        }
    }

    fn is_revoked(&self) -> bool {
        !self.delivery.as_ref().is_some_and(MemoryDelivery::is_in_flight)
    }

    fn poll_ack(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SettleError>> {
        let Some(delivery) = &mut self.delivery else { return Poll::Ready(Ok(())) };
        if self.state.broker.fault_plan().occurs(Fault::FailedAck) {
            return Poll::Ready(Err(SettleError::new("an injected fault lost the ack")));
        }
        if !delivery.settle() {
            let error = SettleError::new("the delivery was revoked; it is redelivered");
            return Poll::Ready(Err(error));
        }
        self.end();
        Poll::Ready(Ok(()))
    }

    fn retry_later(
        &mut self,
        delay: Duration,
        state: &RetryState,
    ) -> BoxFuture<'_, Result<Delayed, SettleError>> {
        if self.state.broker.fault_plan().occurs(Fault::FailedRetry) {
            return ready(Err(SettleError::new("an injected fault did not confirm the retry")));
        }
        let Some(delivery) = &self.delivery else { return ready(Ok(Delayed::Scheduled)) };
        let options = self.state.request.options.get::<MemorySubscription>();
        ready(Ok(match options.copied().unwrap_or_default().retry {
            MemoryRetry::Hold => {
                delivery.set_retry(*state);
                Delayed::Hold
            }
            MemoryRetry::Scheduled => {
                delivery.schedule(delay, *state);
                Delayed::Scheduled
            }
        }))
    }

    fn dead_letter(&mut self, letter: &DeadLetter) -> BoxFuture<'_, Result<(), SettleError>> {
        let Some(delivery) = &self.delivery else { return ready(Ok(())) };
        if self.state.broker.fault_plan().occurs(Fault::FailedDeadLetter) {
            return ready(Err(SettleError::new(
                "an injected fault did not confirm the dead letter",
            )));
        }
        let message = delivery.message();
        let Some(topic) = self.state.request.dead_letter_topic(&message.topic) else {
            return ready(Ok(()));
        };
        let message = match dead(message, topic, letter) {
            Ok(message) => message,
            Err(error) => return ready(Err(error)),
        };
        Box::pin(async move {
            let published = self.state.broker.publish(message).await;
            published.map_err(|error| SettleError::new("not published").with_source(error))?;
            Ok(())
        })
    }
}

/// `message` as a dead letter.
fn dead(message: &Message, topic: String, letter: &DeadLetter) -> Result<Message, SettleError> {
    let mut message = message.clone();
    message.topic = topic.into();
    // A topic of dead letters may have no group.
    message.mandatory = false;
    for name in RETRY_HEADERS {
        message.headers.remove(name);
    }
    for (name, value) in letter.to_headers() {
        let set = message.headers.insert(name, value);
        set.map_err(|error| SettleError::new("a header is invalid").with_source(error))?;
    }
    Ok(message)
}

impl Drop for MemorySettle {
    fn drop(&mut self) {
        self.end();
    }
}
