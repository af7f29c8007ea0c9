//! Publishes the events of a handler's committed work again until the broker confirms them.

use std::sync::Arc;
use std::time::Duration;

use super::backoff::Backoff;
use super::failure::AttemptFailure;
use super::monitor::Monitor;
use super::repeats::{Logged, log_first};
use crate::broker::{MessageBroker, MessageBrokerExt, PublishError, PublishErrorKind};
use crate::consume::support::error_chain;
use crate::dispatch::{caught, publish_each_confirmed};

/// Events of a handler's committed work that the broker takes only after somebody acts: declares a queue, say.
///
/// The handler must not run again, and its message must not be acked before they are confirmed.
#[derive(Debug)]
pub(crate) struct HeldEvents {
    broker: Arc<dyn MessageBroker>,
    events: Vec<PublishError>,
}

impl HeldEvents {
    /// Publishes them once more, in order. `true` if all are confirmed.
    pub(super) async fn publish(&mut self) -> bool {
        let messages = std::mem::take(&mut self.events).into_iter().map(PublishError::into_message);
        self.events = publish_each_confirmed(&*self.broker, messages.collect()).await;
        self.events.is_empty()
    }

    /// The first one and its error.
    pub(super) fn cause(&self) -> String {
        self.events.first().map_or_else(String::new, |error| error_chain(error))
    }
}

/// Publishes the events of a handler's committed work again, in order, for as long as a passing error lasts.
///
/// # Errors
/// Events that are unroutable, or whose broker is shut down, are to be held with their message. An event that
/// can never be published (too large, invalid) is a permanent failure; the later ones are still published.
pub(super) async fn publish_again(
    broker: Option<&Arc<dyn MessageBroker>>,
    undelivered: Vec<PublishError>,
    monitor: &Monitor,
) -> Result<(), AttemptFailure> {
    let Some(broker) = broker else {
        return Err(AttemptFailure::permanent("Undelivered", "the mediator has no broker"));
    };
    let mut events: Vec<PublishError> = Vec::new();
    for error in undelivered {
        let waits = events.iter().any(|earlier| is_same_lane(earlier, &error));
        events.extend(match waits {
            true => Some(error),
            false => publish_one(broker, error, monitor).await.err(),
        });
    }
    let lost: Vec<_> =
        events.iter().filter(|error| is_lost(error)).map(|e| error_chain(e)).collect();
    match (events.is_empty(), lost.is_empty()) {
        (true, _) => Ok(()),
        (false, true) => {
            let held = HeldEvents { broker: Arc::clone(broker), events };
            Err(AttemptFailure::held(held))
        }
        (false, false) => {
            let text = format!(
                "handled and committed, but its events can never be published: {}",
                lost.join("; ")
            );
            Err(AttemptFailure::permanent("Undelivered", text))
        }
    }
}

/// `true` if the events must keep their order.
fn is_same_lane(earlier: &PublishError, later: &PublishError) -> bool {
    let (earlier, later) = (earlier.message(), later.message());
    earlier.key.is_some() && earlier.key == later.key && earlier.topic == later.topic
}

/// `true` if the event can never be published as it is.
fn is_lost(error: &PublishError) -> bool {
    matches!(error.kind(), PublishErrorKind::TooLarge | PublishErrorKind::Invalid)
}

async fn publish_one(
    broker: &Arc<dyn MessageBroker>,
    mut error: PublishError,
    monitor: &Monitor,
) -> Result<(), PublishError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while error.is_retryable() {
        let cause = error_chain(&error);
        log_first!(
            monitor.repeats.is_first(Logged::Unpublished, &error.message().topic),
            warn,
            subscription = %monitor.name,
            error = cause,
            "handled, but its event is not published: trying again"
        );
        backoff.wait().await;
        let message = error.into_message();
        let kept = message.clone();
        error = match caught(|| Box::pin(broker.publish(message))).await {
            Ok(Ok(_confirmed)) => return Ok(()),
            Ok(Err(again)) => again,
            // As in a mediator: the broker may have the message.
            Err(panic) => {
                let detail = format!("the broker panicked: {panic}");
                PublishError::new(PublishErrorKind::Unknown, kept, detail)
            }
        };
    }
    Err(error)
}
