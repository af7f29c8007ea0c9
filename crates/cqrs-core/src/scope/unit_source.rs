//! The source of a mediator's units of work, and the open unit of a scope.

use std::any::{TypeId, type_name};
use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::outbox::{OutboxUnit, Put, put};
use super::unit_of_work::{
    BoxError, ErasedUnit, UnitOfWork, UnitOfWorkError, UnitOfWorkFactory, roll_back,
};
use crate::broker::BoxFuture;
use crate::dispatch::caught;
use crate::message::Message;

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
        Err(UnitOfWorkError::ended_or(error, UnitOfWorkError::Outbox))
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
