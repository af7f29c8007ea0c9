//! Publishes the events of a handler's committed work again until the broker confirms them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::failure::AttemptFailure;
use super::monitor::Monitor;
use super::repeats::{Logged, log_first};
use crate::broker::{MessageBroker, PublishError};
use crate::consume::support::error_chain;
use crate::dispatch::{publish_each_confirmed, publish_one};

/// The time for which a message is held at most.
const MOST_HELD: Duration = Duration::from_secs(10 * 60);

/// Events of a handler's committed work that the broker takes only after somebody acts: declares a queue, say.
///
/// The handler must not run again, and its message must not be acked before they are confirmed. The message is
/// held for 10 minutes at most, and beside fewer than half of `max_unsettled` other held ones. Beyond these bounds,
/// or once one of the events can never be published, it becomes a dead letter that names all of them.
#[derive(Debug)]
pub(crate) struct HeldEvents {
    broker: Arc<dyn MessageBroker>,
    events: Vec<PublishError>,
    /// The time of the last try.
    pub(super) deadline: Instant,
}

impl HeldEvents {
    /// Publishes them once more; in order, those of one topic and key. `true` if all are confirmed.
    pub(super) async fn publish(&mut self) -> bool {
        let messages = std::mem::take(&mut self.events).into_iter().map(PublishError::into_message);
        self.events = publish_each_confirmed(&*self.broker, messages.collect()).await;
        self.events.is_empty()
    }

    /// The first one and its error.
    pub(super) fn cause(&self) -> String {
        self.events.first().map_or_else(String::new, |error| error_chain(error))
    }

    /// The failure if the message must not be held any longer.
    ///
    /// An outage at the deadline prolongs the hold: the dead letter could not be stored either.
    pub(super) fn expired(&self) -> Option<AttemptFailure> {
        if let Some(lost) = self.events.iter().find(|error| error.kind().is_final()) {
            let why = format!("an event can never be published: {}", error_chain(lost));
            return Some(self.failure(&why));
        }
        let is_refused = self.events.iter().any(|error| !error.is_retryable());
        (is_refused && Instant::now() >= self.deadline).then(|| {
            let minutes = MOST_HELD.as_secs() / 60;
            self.failure(&format!("not published within {minutes} min: {}", self.cause()))
        })
    }

    /// The failure that dead-letters the message; names all events.
    pub(super) fn failure(&self, why: &str) -> AttemptFailure {
        let events = self.events.iter().map(|error| {
            let message = error.message();
            format!("{} {} for {:?} ({:?})", message.name, message.id, message.topic, error.kind())
        });
        let events = events.collect::<Vec<_>>().join(", ");
        let text = format!("handled and committed, but {why}; not published: {events}");
        AttemptFailure::permanent("Undelivered", text)
    }
}

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
        return Err(AttemptFailure::permanent("Undelivered", "the mediator has no broker"));
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
    let deadline = Instant::now() + MOST_HELD;
    Err(AttemptFailure::held(HeldEvents { broker: Arc::clone(broker), events, deadline }))
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
