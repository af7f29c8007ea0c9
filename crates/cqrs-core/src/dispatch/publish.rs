//! Publishes the events of committed work in order, for the end of a scope.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;

use super::panics::panic_message;
use crate::broker::{MessageBroker, PublishError, PublishErrorKind, Receipt};
use crate::message::Message;

/// Publishes the events of committed work: enqueues all in order, then waits for all. Returns the errors of
/// unconfirmed events, in order.
///
/// * After a message that was not accepted, the later ones of its topic and key are not sent, so that
///   publishing them again keeps their order. A message refused at its confirm has no such effect: the
///   later ones are sent already.
/// * Once a message got no slot before its deadline, the others do not wait for one: all of them end within
///   two publish deadlines.
/// * A broker that panics may have the message: the outcome is unknown.
pub(crate) async fn publish_all(
    broker: &(impl MessageBroker + ?Sized),
    messages: Vec<Message>,
) -> Vec<PublishError> {
    let mut publishing = PublishInOrder { broker, is_stuck: false, held: Vec::new() };
    let mut results = Vec::with_capacity(messages.len());
    for message in messages {
        results.push(publishing.enqueue(message).await);
    }
    let mut undelivered = Vec::new();
    for result in results {
        undelivered.extend(match result {
            Ok(receipt) => confirmed(receipt).await.err(),
            Err(error) => Some(error),
        });
    }
    undelivered.into_iter().map(PublishError::after_commit).collect()
}

struct PublishInOrder<'b, B: ?Sized> {
    broker: &'b B,
    is_stuck: bool,
    /// Topics and keys of messages that were not accepted.
    held: Vec<(Arc<str>, Bytes)>,
}

impl<B: MessageBroker + ?Sized> PublishInOrder<'_, B> {
    async fn enqueue(&mut self, message: Message) -> Result<Receipt, PublishError> {
        let lane = message.key.clone().map(|key| (Arc::clone(&message.topic), key));
        if lane.as_ref().is_some_and(|lane| self.held.contains(lane)) {
            let detail = "an earlier event with its key was not sent";
            return Err(PublishError::new(PublishErrorKind::NotSent, message, detail));
        }
        let kept = message.clone();
        let accepted = match self.is_stuck {
            true => {
                AssertUnwindSafe(async { self.broker.try_enqueue(message) }).catch_unwind().await
            }
            false => {
                AssertUnwindSafe(async { self.broker.enqueue(message).await }).catch_unwind().await
            }
        };
        let accepted = accepted.unwrap_or_else(|panic| Err(panicked(kept, panic_message(panic))));
        if let Err(error) = &accepted {
            self.is_stuck |= error.kind() == PublishErrorKind::NotSent;
            self.held.extend(lane);
        }
        accepted
    }
}

async fn confirmed(receipt: Receipt) -> Result<(), PublishError> {
    let message = receipt.shared_message();
    match AssertUnwindSafe(receipt).catch_unwind().await {
        Ok(confirmed) => confirmed.map(drop),
        Err(panic) => Err(panicked(message, panic_message(panic))),
    }
}

fn panicked(message: impl Into<Arc<Message>>, panic: String) -> PublishError {
    let detail = format!("the broker panicked: {panic}");
    PublishError::new(PublishErrorKind::Unknown, message, detail)
}
