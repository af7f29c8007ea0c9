//! Settles the deliveries of a memory source for the service runtime.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::fault_plan::Fault;
use super::group::Tag;
use super::options::{MemoryRetry, MemorySubscription};
use super::source_state::SourceState;
use super::topic::Topic;
use crate::broker::{BoxFuture, MessageBrokerExt};
use crate::consume::{DeadLetter, Delayed, RETRY_HEADERS, RetryState, Settle, SettleError};
use crate::message::Message;

/// One topic of a source, shared by its deliveries.
pub(super) struct SourceTopic {
    pub(super) topic: Arc<Topic>,
    pub(super) group: u64,
    pub(super) state: Arc<SourceState>,
}

/// Settles one delivery of a source.
pub(super) struct MemorySettle {
    of: Arc<SourceTopic>,
    /// `None` once it is settled.
    tag: Option<Tag>,
    /// The topic's revocations before it was taken.
    revocations: u64,
}

impl MemorySettle {
    /// The settlement of the delivery `tag`, in `spare` if there is one.
    #[inline]
    pub(super) fn boxed(
        spare: Option<Box<Self>>,
        of: &Arc<SourceTopic>,
        tag: Tag,
        revocations: u64,
    ) -> Box<Self> {
        match spare {
            Some(mut spare) if spare.tag.is_none() => {
                if !Arc::ptr_eq(&spare.of, of) {
                    spare.of = Arc::clone(of);
                }
                (spare.tag, spare.revocations) = (Some(tag), revocations);
                spare
            }
            _ => Box::new(Self { of: Arc::clone(of), tag: Some(tag), revocations }),
        }
    }
}

fn was_revoked() -> SettleError {
    SettleError::new("the delivery was revoked; it is redelivered")
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
        if let Some(tag) = self.tag {
            self.of.topic.set_retry(self.of.group, tag, *state);
        }
    }

    fn is_revoked(&self) -> bool {
        let SourceTopic { topic, group, .. } = &*self.of;
        self.tag.is_none_or(|tag| {
            topic.revocations() != self.revocations && !topic.is_in_flight(*group, tag)
        })
    }

    fn poll_ack(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SettleError>> {
        let SourceTopic { topic, group, state } = &*self.of;
        let Some(tag) = self.tag else { return Poll::Ready(Ok(())) };
        if state.broker.fault_plan().occurs(Fault::FailedAck) {
            return Poll::Ready(Err(SettleError::new("an injected fault lost the ack")));
        }
        if !topic.settle(*group, tag) {
            return Poll::Ready(Err(was_revoked()));
        }
        self.tag = None;
        state.end_in_flight();
        Poll::Ready(Ok(()))
    }

    fn retry_later(
        &mut self,
        delay: Duration,
        state: &RetryState,
    ) -> BoxFuture<'_, Result<Delayed, SettleError>> {
        let SourceTopic { topic, group, state: source } = &*self.of;
        if source.broker.fault_plan().occurs(Fault::FailedRetry) {
            return ready(Err(SettleError::new("an injected fault did not confirm the retry")));
        }
        let Some(tag) = self.tag else { return ready(Ok(Delayed::Scheduled)) };
        let options = source.request.options.get::<MemorySubscription>();
        ready(match options.copied().unwrap_or_default().retry {
            MemoryRetry::Hold => {
                topic.set_retry(*group, tag, *state);
                Ok(Delayed::Hold)
            }
            MemoryRetry::Scheduled if topic.schedule(*group, tag, *state, delay) => {
                Ok(Delayed::Scheduled)
            }
            MemoryRetry::Scheduled => Err(was_revoked()),
        })
    }

    fn dead_letter(&mut self, letter: &DeadLetter) -> BoxFuture<'_, Result<(), SettleError>> {
        let SourceTopic { topic, group, state: source } = &*self.of;
        let Some(tag) = self.tag else { return ready(Ok(())) };
        if source.broker.fault_plan().occurs(Fault::FailedDeadLetter) {
            return ready(Err(SettleError::new(
                "an injected fault did not confirm the dead letter",
            )));
        }
        let Some(stored) = topic.delivered(*group, tag) else {
            return ready(Err(was_revoked()));
        };
        let message = stored.message();
        let Some(target) = source.request.dead_letter_topic(&message.topic) else {
            return ready(Ok(()));
        };
        let message = match dead(message, target, letter) {
            Ok(message) => message,
            Err(error) => return ready(Err(error)),
        };
        Box::pin(async move {
            let published = source.broker.publish(message).await;
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
        if let Some(tag) = self.tag.take() {
            // Given back before the source is woken, so that it finds the message.
            self.of.topic.give_back(self.of.group, tag);
            self.of.state.end_in_flight();
        }
    }
}
