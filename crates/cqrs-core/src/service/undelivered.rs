//! Publishes the events of committed work that a broker did not confirm, again until it does.

use std::sync::Arc;
use std::time::Duration;

use super::backoff::Backoff;
use super::failure::Failure;
use super::repeats::{Logged, log_first};
use super::state::Watched;
use crate::broker::{MessageBroker, MessageBrokerExt, PublishError, PublishErrorKind};
use crate::causes::causes;
use crate::dispatch::caught;

/// Publishes what a handler's committed work owes the broker, for as long as it takes: the handler must
/// not run again for it, and its delivery must not be acked before.
///
/// In order; a message that nobody will ever take is an error, and those behind it are still published.
pub(super) async fn publish_again(
    broker: Option<&Arc<dyn MessageBroker>>,
    undelivered: Vec<PublishError>,
    watched: &Watched,
) -> Result<(), Failure> {
    let Some(broker) = broker else {
        return Err(Failure::permanent("Undelivered", "the mediator has no broker"));
    };
    let mut lost = Vec::new();
    for error in undelivered {
        lost.extend(publish_one(broker, error, watched).await.err().map(|error| causes(&error)));
    }
    match lost.is_empty() {
        true => Ok(()),
        false => {
            let text = format!(
                "handled and committed, but its events cannot be published: {}",
                lost.join("; ")
            );
            Err(Failure::permanent("Undelivered", text))
        }
    }
}

async fn publish_one(
    broker: &Arc<dyn MessageBroker>,
    mut error: PublishError,
    watched: &Watched,
) -> Result<(), PublishError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while error.is_retryable() {
        let cause = causes(&error);
        log_first!(
            watched.repeats.is_first(Logged::Unpublished, &error.message().topic),
            warn,
            subscription = %watched.name,
            error = cause,
            "handled, but its event is not published: trying again"
        );
        backoff.wait().await;
        let message = error.into_message();
        let kept = message.clone();
        error = match caught(|| Box::pin(broker.publish(message))).await {
            Ok(Ok(_confirmed)) => return Ok(()),
            Ok(Err(again)) => again,
            // As in a mediator: it may have the message.
            Err(panic) => {
                let detail = format!("the broker panicked: {panic}");
                PublishError::new(PublishErrorKind::Unknown, kept, detail)
            }
        };
    }
    Err(error)
}
