//! Publishes unconfirmed events of committed work again until the broker confirms them.

use std::sync::Arc;
use std::time::Duration;

use super::backoff::Backoff;
use super::failure::AttemptFailure;
use super::monitor::Monitor;
use super::repeats::{Logged, log_first};
use crate::broker::{MessageBroker, MessageBrokerExt, PublishError, PublishErrorKind};
use crate::consume::support::error_chain;
use crate::dispatch::caught;

/// Publishes the events of a handler's committed work again, for as long as it takes: the handler must not
/// run again, and its delivery must not be acked before.
///
/// In order. A message that the broker never accepts is an error, and the later ones are still published.
pub(super) async fn publish_again(
    broker: Option<&Arc<dyn MessageBroker>>,
    undelivered: Vec<PublishError>,
    monitor: &Monitor,
) -> Result<(), AttemptFailure> {
    let Some(broker) = broker else {
        return Err(AttemptFailure::permanent("Undelivered", "the mediator has no broker"));
    };
    let mut lost = Vec::new();
    for error in undelivered {
        lost.extend(
            publish_one(broker, error, monitor).await.err().map(|error| error_chain(&error)),
        );
    }
    match lost.is_empty() {
        true => Ok(()),
        false => {
            let text = format!(
                "handled and committed, but its events cannot be published: {}",
                lost.join("; ")
            );
            Err(AttemptFailure::permanent("Undelivered", text))
        }
    }
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
