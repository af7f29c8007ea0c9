//! The end of a scope: encode, store, commit and publish, or roll back; used by both mediators.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use uuid::Uuid;

use super::events::EventsError;
use super::panics::panic_message;
use super::publish::publish_all;
use super::undelivered::log_undelivered;
use crate::broker::{MessageBroker, PublishError};
use crate::codec::SerializeError;
use crate::consume::support::error_chain;
use crate::event::OutgoingEvent;
use crate::message::{CorrelationId, Message, TraceContext};
use crate::scope::{ErasedUnit, Scope, UnitOfWorkError, UnitSource, roll_back};
use crate::type_map::TypeIdMap;

/// Ends a scope: encodes its notifications, commits or rolls back, and publishes. With an outbox it stores
/// them before the commit instead of publishing them.
///
/// Invariant: once a unit of work is taken out of its scope, a tracked task owns it and finishes it;
/// dropping the future that waits for the task changes nothing. Errors of a task whose waiter was dropped
/// are logged and counted.
#[derive(Default)]
pub(crate) struct Finisher {
    pub(crate) broker: Option<Arc<dyn MessageBroker>>,
    pub(crate) topics: TypeIdMap<Box<str>>,
    pub(crate) tasks: TaskTracker,
    /// The number of unconfirmed events whose send was dropped.
    pub(crate) abandoned: Arc<AtomicUsize>,
}

/// The error of a scope that was not committed although its handlers succeeded.
#[derive(Debug)]
pub(crate) enum FinishError {
    Events(EventsError),
    ShutDown,
    NoBroker { event: String },
    Serialize(SerializeError),
    Panicked(String),
    UnitOfWork(UnitOfWorkError),
    NoRuntime,
    Interrupted,
}

type Finished = Result<Vec<PublishError>, FinishError>;

impl Finisher {
    /// Encodes `outgoing` before the commit: an event that cannot be encoded or has no destination rolls the
    /// work back. Serializers are user code, so a panic is an error here.
    fn encode(
        &self,
        outgoing: Vec<Box<dyn OutgoingEvent>>,
        scope: &Scope,
        has_outbox: bool,
    ) -> Result<Vec<Message>, FinishError> {
        let Some(first) = outgoing.first() else { return Ok(Vec::new()) };
        if self.broker.is_none() && !has_outbox {
            return Err(FinishError::NoBroker { event: first.name().to_owned() });
        }
        let correlation: Box<str> = match scope.get::<CorrelationId>() {
            Some(id) => id.as_str().into(),
            None => Uuid::now_v7().to_string().into(),
        };
        let trace = scope.get::<TraceContext>();
        let encode = |mut event: Box<dyn OutgoingEvent>| {
            if let Some(topic) = self.topics.get(&event.payload_type()) {
                event.set_topic_if_default(topic);
            }
            let mut message = event.encode().map_err(FinishError::Serialize)?;
            message.headers.set_correlation_id(correlation.clone());
            if let Some(trace) = trace {
                message.headers.set_trace_context(trace);
            }
            Ok(message)
        };
        catch_unwind(AssertUnwindSafe(|| outgoing.into_iter().map(encode).collect()))
            .unwrap_or_else(|panic| Err(FinishError::Panicked(panic_message(panic))))
    }

    /// Encodes, commits and publishes. Returns the errors of unconfirmed events.
    pub(crate) async fn succeed(
        &self,
        scope: &mut Scope,
        outgoing: Vec<Box<dyn OutgoingEvent>>,
    ) -> Finished {
        let outbox = scope.outbox();
        let messages = match self.encode(outgoing, scope, outbox.is_some()) {
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
        let (broker, abandoned) = (self.broker.clone(), Arc::clone(&self.abandoned));
        let (sender, outcome) = oneshot::channel();
        let mut listener = Listener { outcome, abandoned: Arc::clone(&self.abandoned) };
        let finish = async move {
            let finished = match outbox {
                Some(outbox) => store_and_commit(unit, &outbox, &messages).await,
                None => commit_and_publish(unit, broker, messages).await,
            };
            if let Err(unread) = sender.send(finished) {
                log_unread(unread, &abandoned);
            }
        };
        self.tasks.spawn_on(finish.in_current_span(), &runtime);
        (&mut listener.outcome).await.unwrap_or(Err(FinishError::Interrupted))
    }

    /// Rolls back the scope's unit of work and drops its events.
    pub(crate) async fn fail(&self, scope: &mut Scope) {
        scope.truncate_emitted(0);
        let Some(unit) = scope.take_unit() else { return };
        // Without a runtime the unit is dropped here, which rolls back by contract.
        let Ok(runtime) = Handle::try_current() else { return };
        // The caller gets the error that caused the rollback; the task logs its own.
        let task = self.tasks.spawn_on(roll_back(unit).in_current_span(), &runtime);
        if let Err(error) = task.await {
            tracing::error!(%error, "rollback did not end");
        }
    }
}

async fn store_and_commit(
    unit: Option<Box<dyn ErasedUnit>>,
    outbox: &UnitSource,
    messages: &[Message],
) -> Finished {
    let unit = outbox.store(unit, messages).await.map_err(FinishError::UnitOfWork)?;
    commit(unit).await?;
    Ok(Vec::new())
}

async fn commit(unit: Option<Box<dyn ErasedUnit>>) -> Result<(), FinishError> {
    let Some(unit) = unit else { return Ok(()) };
    let committed = AssertUnwindSafe(async { unit.commit().await }).catch_unwind().await;
    let committed = committed.unwrap_or_else(|panic| {
        let text = format!("commit panicked: {}", panic_message(panic));
        Err(UnitOfWorkError::CommitUnknown(text.into()))
    });
    committed.map_err(FinishError::UnitOfWork)
}

async fn commit_and_publish(
    unit: Option<Box<dyn ErasedUnit>>,
    broker: Option<Arc<dyn MessageBroker>>,
    messages: Vec<Message>,
) -> Finished {
    commit(unit).await?;
    Ok(match broker {
        Some(broker) => publish_all(&*broker, messages).await,
        None => Vec::new(),
    })
}

/// Waits for the outcome of a task. If it is dropped before that is read, it logs the outcome.
struct Listener {
    outcome: oneshot::Receiver<Finished>,
    abandoned: Arc<AtomicUsize>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.outcome.close();
        if let Ok(unread) = self.outcome.try_recv() {
            log_unread(unread, &self.abandoned);
        }
    }
}

/// Logs the outcome of a `send` that was dropped after its commit began.
fn log_unread(finished: Finished, abandoned: &AtomicUsize) {
    match finished {
        Ok(events) => {
            abandoned.fetch_add(events.len(), Ordering::Relaxed);
            events.iter().for_each(log_undelivered);
        }
        Err(error) => {
            // `Debug` of an error may have several lines.
            let error = match error {
                FinishError::Serialize(error) => error_chain(&error),
                FinishError::UnitOfWork(error) => error_chain(&error),
                other => format!("{other:?}"),
            };
            tracing::error!(error, "a send that was dropped could not be finished");
        }
    }
}
