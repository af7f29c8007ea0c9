//! Publishes the events of a handler's committed work again until the broker confirms them.

use std::sync::Arc;
use std::time::Duration;

use super::backoff::Backoff;
use super::failure::AttemptFailure;
use super::held_events::HeldEvents;
use super::monitor::Monitor;
use super::repeats::{Logged, log_first};
use crate::broker::{MessageBroker, PublishError};
use crate::consume::support::error_chain;
use crate::dispatch::publish_one;

/// Publishes the events of a handler's committed work again, in order, for as long as a passing error lasts.
///
/// # Errors
/// The other errors, with the events that wait behind them. An event that can never be published keeps no later
/// one waiting.
pub(super) async fn publish_again(
    broker: Option<&Arc<dyn MessageBroker>>,
    undelivered: Vec<PublishError>,
    monitor: &Monitor,
) -> Result<(), AttemptFailure> {
    let Some(broker) = broker else {
        return Err(AttemptFailure::undelivered("the mediator has no broker"));
    };
    let mut events: Vec<PublishError> = Vec::new();
    for error in undelivered {
        let waits = events.iter().any(|earlier| earlier.precedes(error.message()));
        events.extend(match waits {
            true => Some(error),
            false => publish_until_refused(broker, error, monitor).await.err(),
        });
    }
    if events.is_empty() {
        return Ok(());
    }
    Err(AttemptFailure::held(HeldEvents::new(Arc::clone(broker), events)))
}

async fn publish_until_refused(
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
        match publish_one(&**broker, error.into_message()).await {
            Ok(()) => return Ok(()),
            Err(again) => error = again,
        }
    }
    Err(error)
}
