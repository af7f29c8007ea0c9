//! The events of a handler's committed work that the broker refuses for now; held by the settling of their message.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::{MessageBroker, PublishError};
use crate::consume::support::error_chain;
use crate::dispatch::publish_each_confirmed;

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
    pub(super) fn new(broker: Arc<dyn MessageBroker>, events: Vec<PublishError>) -> Self {
        Self { broker, events, deadline: Instant::now() + MOST_HELD }
    }

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

    /// The error of the message if it must not be held any longer.
    ///
    /// An outage at the deadline prolongs the hold: the dead letter could not be stored either.
    pub(super) fn expired(&self) -> Option<String> {
        if let Some(lost) = self.events.iter().find(|error| error.kind().is_final()) {
            let why = format!("an event can never be published: {}", error_chain(lost));
            return Some(self.error(&why));
        }
        let is_refused = self.events.iter().any(|error| !error.is_retryable());
        (is_refused && Instant::now() >= self.deadline).then(|| {
            let minutes = MOST_HELD.as_secs() / 60;
            self.error(&format!("not published within {minutes} min: {}", self.cause()))
        })
    }

    /// The error of the dead letter; names all events.
    pub(super) fn error(&self, why: &str) -> String {
        let events = self.events.iter().map(|error| {
            let message = error.message();
            format!("{} {} for {:?} ({:?})", message.name, message.id, message.topic, error.kind())
        });
        let events = events.collect::<Vec<_>>().join(", ");
        format!("handled and committed, but {why}; not published: {events}")
    }
}
