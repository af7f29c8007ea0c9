//! Publishes the events of committed work in order, for the end of a scope.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;

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

/// Publishes events of committed work again: awaits the confirm of each before the next one of its topic and
/// key. Returns the errors of unconfirmed events, in order.
///
/// After an unconfirmed event the later ones of its topic and key are not sent, except after one that can never
/// be published.
pub(crate) async fn publish_each_confirmed(
    broker: &(impl MessageBroker + ?Sized),
    messages: Vec<Message>,
) -> Vec<PublishError> {
    let mut lanes: Vec<Vec<(usize, Message)>> = Vec::new();
    let mut of_key = HashMap::new();
    for numbered in messages.into_iter().enumerate() {
        let message = &numbered.1;
        let known = match &message.key {
            Some(key) => {
                *of_key.entry((Arc::clone(&message.topic), key.clone())).or_insert(lanes.len())
            }
            None => lanes.len(),
        };
        match lanes.get_mut(known) {
            Some(lane) => lane.push(numbered),
            None => lanes.push(vec![numbered]),
        }
    }
    let lanes = lanes.into_iter().map(|lane| publish_lane(broker, lane));
    let mut undelivered: Vec<_> = join_all(lanes).await.into_iter().flatten().collect();
    undelivered.sort_by_key(|(number, _)| *number);
    undelivered.into_iter().map(|(_, error)| error.after_commit()).collect()
}

async fn publish_lane(
    broker: &(impl MessageBroker + ?Sized),
    lane: Vec<(usize, Message)>,
) -> Vec<(usize, PublishError)> {
    let mut undelivered: Vec<(usize, PublishError)> = Vec::new();
    for (number, message) in lane {
        let published = match undelivered.iter().any(|(_, earlier)| earlier.precedes(&message)) {
            true => Err(behind_its_key(message)),
            false => publish_one(broker, message).await,
        };
        undelivered.extend(published.err().map(|error| (number, error)));
    }
    undelivered
}

/// Publishes one event of committed work. A broker that panics may have it: the outcome is unknown.
pub(crate) async fn publish_one(
    broker: &(impl MessageBroker + ?Sized),
    message: Message,
) -> Result<(), PublishError> {
    let kept = message.clone();
    match AssertUnwindSafe(async { broker.enqueue(message).await }).catch_unwind().await {
        Ok(accepted) => confirmed(accepted?).await,
        Err(panic) => Err(panicked(kept, panic_message(panic))),
    }
}

fn behind_its_key(message: Message) -> PublishError {
    let detail = "an earlier event of its topic and key is not published";
    PublishError::new(PublishErrorKind::NotSent, message, detail)
}

struct PublishInOrder<'b, B: ?Sized> {
    broker: &'b B,
    is_stuck: bool,
    /// Topics and keys of messages that were not accepted.
    held: Vec<(Arc<str>, Bytes)>,
}

impl<B: MessageBroker + ?Sized> PublishInOrder<'_, B> {
    async fn enqueue(&mut self, message: Message) -> Result<Receipt, PublishError> {
        let holds = |(topic, key): &(Arc<str>, Bytes)| {
            message.key.as_ref() == Some(key) && message.topic == *topic
        };
        if self.held.iter().any(holds) {
            return Err(behind_its_key(message));
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
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(panic) => Err(panicked(kept.clone(), panic_message(panic))),
        };
        if let Err(error) = &accepted {
            self.is_stuck |= error.kind() == PublishErrorKind::NotSent;
            self.held.extend(kept.key.map(|key| (kept.topic, key)));
        }
        accepted
    }
}

async fn confirmed(receipt: Receipt) -> Result<(), PublishError> {
    let message = receipt.shared_message();
    match AssertUnwindSafe(receipt).catch_unwind().await {
        Ok(confirmed) => confirmed.map(drop),
        Err(panic) => Err(panicked(Message::clone(&message), panic_message(panic))),
    }
}

fn panicked(message: Message, panic: String) -> PublishError {
    let detail = format!("the broker panicked: {panic}");
    PublishError::new(PublishErrorKind::Unknown, message, detail)
}
