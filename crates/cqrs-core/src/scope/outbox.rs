//! The contracts of the transactional outbox and inbox: what a unit of work stores beside the handler's
//! writes. Used by the end of a scope and by the consumer of events.

use std::any::{TypeId, type_name};
use std::sync::Arc;

use uuid::Uuid;

use super::Scope;
use super::unit_of_work::{BoxError, ErasedUnit, UnitOfWork, UnitOfWorkError};
use crate::broker::BoxFuture;
use crate::message::Message;

/// A unit of work that stores notifications in its own transaction (the transactional outbox).
///
/// Given to a mediator's builder with `outbox(factory)`. Notifications are stored then instead of published,
/// and a relay publishes what is committed.
pub trait OutboxUnit: UnitOfWork {
    /// Stores `messages`, in their order. A mediator calls it at most once, after all writes of the handlers
    /// and before [`commit`](UnitOfWork::commit).
    ///
    /// # Errors
    /// The unit of work is rolled back, and `send` returns the error. [`TransactionEnded`](super::TransactionEnded) tells
    /// that it cannot be rolled back.
    ///
    /// # Cancel safety
    /// Dropped, the messages may be in the transaction, which is then dropped as well.
    fn put(&mut self, messages: &[Message]) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// [`OutboxUnit::put`] of a unit whose type is erased.
pub(crate) type Put =
    for<'a> fn(&'a mut dyn ErasedUnit, &'a [Message]) -> BoxFuture<'a, Result<(), BoxError>>;

pub(crate) fn put<'a, U: OutboxUnit>(
    unit: &'a mut dyn ErasedUnit,
    messages: &'a [Message],
) -> BoxFuture<'a, Result<(), BoxError>> {
    Box::pin(async move {
        let Some(unit) = unit.as_any_mut().downcast_mut::<U>() else {
            return Err(format!("the unit of work is no {}", type_name::<U>()).into());
        };
        unit.put(messages).await
    })
}

/// Remembers the messages whose handling is committed, in the transaction of the handler (the inbox).
///
/// Given to a subscription with [`Subscription::inbox`](crate::Subscription::inbox).
pub trait Inbox: Send + Sync + 'static {
    /// The unit of work of the subscription's mediator.
    type Unit: UnitOfWork;

    /// Stores the mark of a message in `unit`, before the handler runs. `false` if a committed transaction
    /// stored the same mark before. Waits for the end of a concurrent one that did. Called again, with a new
    /// unit, before the commit of a middleware that recovered from a failure.
    ///
    /// # Errors
    /// The unit of work is rolled back, and the message is handled later. No failed attempt is counted.
    ///
    /// # Cancel safety
    /// Dropped, the mark may be in the transaction, which is then dropped as well.
    fn mark(
        &self,
        unit: &mut Self::Unit,
        consumer: &str,
        message_id: Uuid,
    ) -> impl Future<Output = Result<bool, BoxError>> + Send;
}

/// The dyn-safe twin of [`Inbox`].
pub(crate) trait ErasedInbox: Send + Sync {
    fn unit_type(&self) -> TypeId;
    /// Begins the scope's unit of work and stores the mark in it.
    fn mark<'a>(
        &'a self,
        scope: &'a mut Scope,
        consumer: &'a str,
        message_id: Uuid,
    ) -> BoxFuture<'a, Result<bool, UnitOfWorkError>>;
}

impl<I: Inbox> ErasedInbox for I {
    fn unit_type(&self) -> TypeId {
        TypeId::of::<I::Unit>()
    }

    fn mark<'a>(
        &'a self,
        scope: &'a mut Scope,
        consumer: &'a str,
        message_id: Uuid,
    ) -> BoxFuture<'a, Result<bool, UnitOfWorkError>> {
        Box::pin(async move {
            let unit = scope.unit_of_work::<I::Unit>().await.map_err(|error| match error {
                UnitOfWorkError::Begin(source) => UnitOfWorkError::Inbox(source),
                wrong => wrong,
            })?;
            let marked = Inbox::mark(self, unit, consumer, message_id).await;
            scope.set_marked();
            marked.map_err(UnitOfWorkError::Inbox)
        })
    }
}

/// The inbox of a subscription, and its name there. The service runtime puts it into the scope as a value.
#[derive(Clone)]
pub(crate) struct SubscriptionInbox {
    pub(crate) inbox: Arc<dyn ErasedInbox>,
    pub(crate) consumer: Arc<str>,
}
