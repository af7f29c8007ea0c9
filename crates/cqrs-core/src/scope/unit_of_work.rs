//! The unit of work of a scope: begun on first use, committed or rolled back once.

use std::any::{Any, TypeId, type_name};
use std::error::Error;
use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::outbox::{OutboxUnit, Put, put};
use crate::broker::BoxFuture;
use crate::dispatch::caught;
use crate::message::Message;

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// A transaction of any kind: the writes of one `send` become visible together or not at all.
///
/// After a successful `send` it is committed exactly once, after a failed one rolled back exactly once.
/// Both run in a task that a dropped `send` does not cancel. Without a tokio runtime (the `send` was
/// dropped outside of one) it is dropped, so dropping must roll back, too.
pub trait UnitOfWork: Send + Sized + 'static {
    /// Makes all writes visible.
    ///
    /// # Errors
    /// `send` returns the error and publishes nothing. `?` makes any error one with an
    /// [unknown](CommitError::unknown) outcome, as after a connection lost during a `COMMIT`; use
    /// [`CommitError::failed`] if nothing was made visible for certain.
    fn commit(self) -> impl Future<Output = Result<(), CommitError>> + Send;

    /// Undoes all writes.
    ///
    /// # Errors
    /// They are logged: the caller gets the error that caused the rollback.
    fn rollback(self) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// Begins a unit of work for a scope, on first use.
#[diagnostic::on_unimplemented(
    message = "`{Self}` begins no unit of work: write `impl UnitOfWorkFactory for {Self}`",
    label = "not a factory of units of work"
)]
pub trait UnitOfWorkFactory: Send + Sync + 'static {
    /// The type that handlers request from the scope.
    type Unit: UnitOfWork;

    /// Begins a unit of work.
    ///
    /// # Errors
    /// They are returned to the handler that requested the unit of work.
    ///
    /// # Cancel safety
    /// A dropped future must leave nothing begun.
    fn begin(&self) -> impl Future<Output = Result<Self::Unit, BoxError>> + Send;
}

/// The error of a scope that has no unit of work, or could not finish it.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum UnitOfWorkError {
    /// The mediator was built without one.
    #[error("no unit of work: give the mediator's builder one with `unit_of_work(factory)`")]
    NotConfigured,
    /// The mediator's unit of work is of another type.
    #[error("the scope's unit of work is a {configured}, not a {asked}")]
    WrongType {
        /// The type the handler asked for.
        asked: &'static str,
        /// The type the mediator's factory makes.
        configured: &'static str,
    },
    /// Event handlers that run in parallel share no transaction.
    #[error("event handlers that run in parallel have no unit of work: set the concurrency to 1")]
    Parallel,
    /// Beginning it failed.
    #[error("the unit of work could not be begun")]
    Begin(#[source] BoxError),
    /// Committing it failed: nothing was made visible, and nothing was published.
    #[error("the unit of work could not be committed")]
    Commit(#[source] BoxError),
    /// Committing it failed, and its writes may be visible. Nothing was published.
    #[error("the unit of work may or may not be committed; look before sending the request again")]
    CommitUnknown(#[source] BoxError),
    /// The notifications could not be stored in it: it is rolled back.
    #[error("the events could not be stored in the outbox; the unit of work is rolled back")]
    Outbox(#[source] BoxError),
    /// The consumed message could not be marked in it: it is rolled back.
    #[error("the inbox could not mark the message; the unit of work is rolled back")]
    Inbox(#[source] BoxError),
}

crate::error_debug!(UnitOfWorkError);

/// The error of a commit, with a certain or an unknown outcome.
///
/// `?` converts any error into one with an unknown outcome. Like `anyhow::Error` it does not implement
/// `std::error::Error`.
#[derive(Debug)]
pub struct CommitError {
    is_certain: bool,
    source: BoxError,
}

impl CommitError {
    /// Nothing was made visible.
    pub fn failed(source: impl Into<BoxError>) -> Self {
        Self { is_certain: true, source: source.into() }
    }

    /// The writes may be visible.
    pub fn unknown(source: impl Into<BoxError>) -> Self {
        Self { is_certain: false, source: source.into() }
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for CommitError {
    fn from(error: E) -> Self {
        Self::unknown(error)
    }
}

/// The dyn-safe twin of [`UnitOfWork`].
pub(crate) trait ErasedUnit: Send {
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn type_name(&self) -> &'static str;
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<(), UnitOfWorkError>>;
    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<(), BoxError>>;
}

impl<U: UnitOfWork> ErasedUnit for U {
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn type_name(&self) -> &'static str {
        type_name::<U>()
    }

    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<(), UnitOfWorkError>> {
        Box::pin(async {
            UnitOfWork::commit(*self).await.map_err(|error| match error.is_certain {
                true => UnitOfWorkError::Commit(error.source),
                false => UnitOfWorkError::CommitUnknown(error.source),
            })
        })
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<(), BoxError>> {
        Box::pin(UnitOfWork::rollback(*self))
    }
}

/// The dyn-safe twin of [`UnitOfWorkFactory`].
trait ErasedFactory: Send + Sync {
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn ErasedUnit>, BoxError>>;
}

impl<F: UnitOfWorkFactory> ErasedFactory for F {
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn ErasedUnit>, BoxError>> {
        Box::pin(async {
            let unit = UnitOfWorkFactory::begin(self).await?;
            Ok(Box::new(unit) as Box<dyn ErasedUnit>)
        })
    }
}

/// A mediator's factory, and the tracker of the tasks that finish its units.
pub(crate) struct UnitSource {
    factory: Box<dyn ErasedFactory>,
    tasks: TaskTracker,
    unit: TypeId,
    /// `Some` if its units store the notifications.
    put: Option<Put>,
}

impl UnitSource {
    pub(crate) fn new<F: UnitOfWorkFactory>(factory: F, tasks: TaskTracker) -> Self {
        Self { factory: Box::new(factory), tasks, unit: TypeId::of::<F::Unit>(), put: None }
    }

    pub(crate) fn with_outbox<F>(factory: F, tasks: TaskTracker) -> Self
    where
        F: UnitOfWorkFactory<Unit: OutboxUnit>,
    {
        Self { put: Some(put::<F::Unit>), ..Self::new(factory, tasks) }
    }

    pub(crate) fn unit_type(&self) -> TypeId {
        self.unit
    }

    pub(crate) fn has_outbox(&self) -> bool {
        self.put.is_some()
    }

    /// Stores `messages` in `unit`, or in a new one, and returns it. A unit that cannot store them is rolled
    /// back.
    pub(crate) async fn store(
        &self,
        unit: Option<Box<dyn ErasedUnit>>,
        messages: &[Message],
    ) -> Result<Option<Box<dyn ErasedUnit>>, UnitOfWorkError> {
        let put = match self.put {
            Some(put) if !messages.is_empty() => put,
            _ => return Ok(unit),
        };
        let panicked = |panic| format!("panicked: {panic}").into();
        let mut unit = match unit {
            Some(unit) => unit,
            None => match caught(|| self.factory.begin()).await {
                Ok(begun) => begun.map_err(UnitOfWorkError::Begin)?,
                Err(panic) => return Err(UnitOfWorkError::Begin(panicked(panic))),
            },
        };
        let error = match caught(|| put(&mut *unit, messages)).await {
            Ok(Ok(())) => return Ok(Some(unit)),
            Ok(Err(error)) => error,
            Err(panic) => panicked(panic),
        };
        roll_back(unit).await;
        Err(UnitOfWorkError::Outbox(error))
    }
}

/// A unit of work that was begun and is neither committed nor rolled back.
///
/// Invariant: `unit` is `Some` until it is taken to be finished; dropping it before that rolls back.
pub(super) struct OpenUnit {
    unit: Option<Box<dyn ErasedUnit>>,
    source: Arc<UnitSource>,
    /// Set once it holds the inbox's mark of the consumed message.
    pub(super) is_marked: bool,
}

impl OpenUnit {
    pub(super) async fn begin(source: Arc<UnitSource>) -> Result<Self, UnitOfWorkError> {
        let unit = source.factory.begin().await.map_err(UnitOfWorkError::Begin)?;
        Ok(Self { unit: Some(unit), source, is_marked: false })
    }

    pub(super) fn downcast<U: UnitOfWork>(&mut self) -> Result<&mut U, UnitOfWorkError> {
        let Some(unit) = &mut self.unit else { return Err(UnitOfWorkError::NotConfigured) };
        let unit: &mut dyn ErasedUnit = &mut **unit;
        let configured = unit.type_name();
        let wrong = UnitOfWorkError::WrongType { asked: type_name::<U>(), configured };
        unit.as_any_mut().downcast_mut().ok_or(wrong)
    }

    pub(super) fn into_inner(mut self) -> Option<Box<dyn ErasedUnit>> {
        self.unit.take()
    }
}

impl Drop for OpenUnit {
    fn drop(&mut self) {
        let Some(unit) = self.unit.take() else { return };
        // Outside of a runtime the unit is dropped here, which rolls back by contract.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        self.source.tasks.spawn_on(roll_back(unit), &runtime);
    }
}

/// Rolls back and logs errors: the caller has the error that caused the rollback.
pub(crate) async fn roll_back(unit: Box<dyn ErasedUnit>) {
    match caught(|| unit.rollback()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(error = &*error as &dyn Error, "rollback failed"),
        Err(panic) => tracing::error!(panic, "rollback panicked"),
    }
}
