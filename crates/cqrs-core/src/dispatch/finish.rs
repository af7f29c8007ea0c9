use std::fmt;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::panic_message;
use crate::broker::{MessageBroker, PublishError, PublishErrorKind, Receipt};
use crate::codec::SerializeError;
use crate::event::OutgoingEvent;
use crate::message::{Message, TraceContext};
use crate::scope::roll_back;
use crate::type_map::TypeIdMap;
use crate::{CorrelationId, Scope, UnitOfWorkError};

/// Ends a scope: encodes what goes out, commits or rolls back, publishes.
///
/// Invariant: from the moment a unit of work is taken out of its scope, a tracked task owns it and
/// finishes it; dropping the future that waits for the task changes nothing.
#[derive(Default)]
pub(crate) struct Finisher {
    pub(crate) broker: Option<Arc<dyn MessageBroker>>,
    pub(crate) topics: TypeIdMap<Box<str>>,
    pub(crate) tasks: TaskTracker,
}

/// Why a scope whose handlers succeeded did not end well.
#[derive(Debug)]
pub(crate) enum FinishError {
    NoBroker { event: String },
    Serialize(SerializeError),
    Commit(UnitOfWorkError),
    NoRuntime,
    Interrupted,
}

/// Events that the broker did not confirm, after the work that caused them was committed.
///
/// `Display` names the first; [`events`](Self::events) has all, with their messages, to be published
/// again. Do not send the command again: it was done.
#[derive(Debug)]
#[non_exhaustive]
pub struct Undelivered<T> {
    /// What the handler returned.
    pub response: T,
    /// What was not confirmed, in order of emission.
    pub events: Vec<UndeliveredEvent>,
}

/// One event that the broker did not confirm; the error says what is known and has the message.
pub type UndeliveredEvent = PublishError;

impl<T> fmt::Display for Undelivered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "done and committed, but {} events were not confirmed", self.events.len())?;
        match self.events.first() {
            Some(first) => write!(f, ", first: {first}"),
            None => Ok(()),
        }
    }
}

impl Finisher {
    /// The messages of `outgoing`, before anything is committed: what cannot be encoded or has no
    /// broker must roll the work back.
    fn encode(
        &self,
        outgoing: Vec<Box<dyn OutgoingEvent>>,
        scope: &Scope,
    ) -> Result<Vec<Message>, FinishError> {
        let Some(first) = outgoing.first() else { return Ok(Vec::new()) };
        if self.broker.is_none() {
            return Err(FinishError::NoBroker { event: first.name().to_owned() });
        }
        let correlation: Box<str> = match scope.get::<CorrelationId>() {
            Some(id) => id.as_str().into(),
            None => Uuid::now_v7().to_string().into(),
        };
        let trace = scope.get::<TraceContext>();
        outgoing
            .into_iter()
            .map(|mut event| {
                if let Some(topic) = self.topics.get(&event.payload_type()) {
                    event.override_topic(topic);
                }
                let mut message = event.encode().map_err(FinishError::Serialize)?;
                message.headers.set_correlation_id(correlation.clone());
                if let Some(trace) = trace {
                    message.headers.set_trace_context(trace);
                }
                Ok(message)
            })
            .collect()
    }

    /// Encodes, commits, publishes. Returns what was not confirmed.
    pub(crate) async fn succeed(
        &self,
        scope: &mut Scope,
        outgoing: Vec<Box<dyn OutgoingEvent>>,
    ) -> Result<Vec<UndeliveredEvent>, FinishError> {
        let messages = match self.encode(outgoing, scope) {
            Ok(messages) => messages,
            Err(error) => {
                self.fail(scope).await;
                return Err(error);
            }
        };
        let unit = scope.take_unit();
        if unit.is_none() && messages.is_empty() {
            return Ok(Vec::new());
        }
        let Ok(runtime) = Handle::try_current() else { return Err(FinishError::NoRuntime) };
        let broker = self.broker.clone();
        let finish = async move {
            if let Some(unit) = unit {
                unit.commit().await.map_err(UnitOfWorkError::Commit)?;
            }
            Ok(match broker {
                Some(broker) => publish_all(&*broker, messages).await,
                None => Vec::new(),
            })
        };
        match self.tasks.spawn_on(finish, &runtime).await {
            Ok(finished) => finished.map_err(FinishError::Commit),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => {
                    let text = format!("panicked: {}", panic_message(panic));
                    Err(FinishError::Commit(UnitOfWorkError::Commit(text.into())))
                }
                Err(_cancelled) => Err(FinishError::Interrupted),
            },
        }
    }

    /// Rolls back what the scope has open and forgets what it emitted.
    pub(crate) async fn fail(&self, scope: &mut Scope) {
        scope.truncate_emitted(0);
        let Some(unit) = scope.take_unit() else { return };
        // Without a runtime the unit is dropped here, which rolls back by contract.
        let Ok(runtime) = Handle::try_current() else { return };
        // The caller gets the error that caused the rollback; the task logs its own.
        if let Err(error) = self.tasks.spawn_on(roll_back(unit), &runtime).await {
            tracing::error!(%error, "rollback did not end");
        }
    }
}

/// Enqueues all in order, then waits for all. A message that was not accepted holds back the later
/// ones of its topic and key, so that publishing them again keeps their order.
async fn publish_all(broker: &dyn MessageBroker, messages: Vec<Message>) -> Vec<UndeliveredEvent> {
    let mut results: Vec<Result<Receipt, PublishError>> = Vec::with_capacity(messages.len());
    for message in messages {
        let behind_failed = message.key.is_some()
            && results.iter().filter_map(|result| result.as_ref().err()).any(|failed| {
                let failed = failed.message();
                (&failed.topic, &failed.key) == (&message.topic, &message.key)
            });
        results.push(match behind_failed {
            true => {
                let detail = "an earlier event with its key was not sent";
                Err(PublishError::new(PublishErrorKind::NotSent, message, detail))
            }
            false => broker.enqueue(message).await,
        });
    }
    let mut undelivered = Vec::new();
    for result in results {
        let error = match result {
            Ok(receipt) => receipt.await.err(),
            Err(error) => Some(error),
        };
        undelivered.extend(error);
    }
    undelivered
}
