//! The handlers of a subscription, as the engine runs them.

use std::any::TypeId;
use std::time::Duration;

use super::failure::AttemptFailure;
use super::monitor::Monitor;
use super::repeats::{Logged, log_first};
use super::undelivered::publish_again;
use crate::broker::BoxFuture;
use crate::consume::Received;
use crate::consume::support::error_chain;
use crate::event::EventSlot;
use crate::mediator::{Consumed, EventMediator, EventSendError, SendError};
use crate::scope::{Scope, SubscriptionInbox, UnitOfWorkError};
use crate::service::delivery::Delivery;

/// A handler's function without its types: called with a message's event and what else it takes.
pub(crate) type Erased<Input, Output> =
    Box<dyn Fn(Input) -> BoxFuture<'static, Output> + Send + Sync>;
pub(crate) type Attempted = Result<(), AttemptFailure>;
/// The problem of a subscription with an inbox whose mediator publishes directly: a message that is redelivered
/// while its events are not published yet is a duplicate, and acked.
pub(crate) const INBOX_WITHOUT_OUTBOX: &str = "with an inbox, events that its handlers emit could be lost: use \
     `outbox(..)` of the mediator's builder instead of `broker(..)`";
pub(crate) type Events = Vec<(Box<dyn EventSlot>, Received)>;

pub(crate) enum HandlerKind {
    Each(EachHandler),
    /// With the type of its payload.
    Manual(TypeId, Erased<(Box<dyn EventSlot>, Delivery), ()>),
    Batch {
        /// Handles a batch of one.
        alone: EachHandler,
        together: Erased<Events, Attempted>,
        limits: BatchLimits,
    },
}

pub(crate) enum EachHandler {
    Mediator(EventMediator),
    PerDelivery(Box<dyn Fn(&Received) -> EventMediator + Send + Sync>),
    /// With the type of its payload.
    Function(TypeId, Erased<(Box<dyn EventSlot>, Received), Attempted>),
}

impl HandlerKind {
    /// `true` if it handles events of one of these types.
    pub(crate) fn handles(&self, types: [TypeId; 2]) -> bool {
        match self {
            Self::Each(handler) | Self::Batch { alone: handler, .. } => handler.handles(types),
            Self::Manual(payload, _) => types.contains(payload),
        }
    }

    /// `true` if it handles events in a unit of work of this type, as far as that is known before it runs.
    pub(crate) fn has_unit(&self, unit: TypeId) -> bool {
        matches!(self, Self::Each(handler) if handler.has_unit(unit))
    }

    /// `true` if notifications of its handlers go to a broker, not to an outbox, as far as that is known before it
    /// runs.
    pub(crate) fn publishes_directly(&self) -> bool {
        matches!(self, Self::Each(EachHandler::Mediator(mediator)) if mediator.broker().is_some())
    }

    /// The names of the handlers of events of these types.
    pub(crate) fn names(&self, types: [TypeId; 2]) -> String {
        match self {
            Self::Each(EachHandler::Mediator(mediator)) => {
                mediator.handler_names(types).join(" and ")
            }
            Self::Each(EachHandler::PerDelivery(_)) => "a mediator per delivery".to_owned(),
            Self::Each(EachHandler::Function(..)) => "a function".to_owned(),
            Self::Manual(..) => "a function that settles".to_owned(),
            Self::Batch { limits, .. } => format!("a function, in batches of {}", limits.size),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLimits {
    pub(crate) size: usize,
    pub(crate) wait: Duration,
}

impl EachHandler {
    fn handles(&self, types: [TypeId; 2]) -> bool {
        match self {
            Self::Mediator(mediator) => mediator.handles(types),
            // Its types are known only when it is built; an event without a handler becomes a dead letter.
            Self::PerDelivery(_) => true,
            Self::Function(payload, _) => types.contains(payload),
        }
    }

    /// See [`HandlerKind::has_unit`].
    fn has_unit(&self, unit: TypeId) -> bool {
        match self {
            Self::Mediator(mediator) => mediator.has_unit(unit),
            Self::PerDelivery(_) => true,
            Self::Function(..) => false,
        }
    }

    pub(super) async fn handle(
        &self,
        event: Box<dyn EventSlot>,
        received: &Received,
        scope: Scope,
        monitor: &Monitor,
    ) -> Attempted {
        match self {
            Self::Mediator(mediator) => match mediator.send_any(scope, event).await {
                Ok(Consumed::Handled) => Ok(()),
                sent => Box::pin(after_send(mediator, sent, monitor)).await,
            },
            Self::PerDelivery(build) => {
                let mediator = build(received);
                if !mediator.handles_event(&*event) {
                    let text = format!("the mediator has no handler of {}", event.name());
                    return Err(AttemptFailure::permanent("NoHandler", text));
                }
                if scope.get::<SubscriptionInbox>().is_some() && mediator.broker().is_some() {
                    return Err(AttemptFailure::permanent("Inbox", INBOX_WITHOUT_OUTBOX));
                }
                let sent = Box::pin(mediator.send_any(scope, event)).await;
                Box::pin(after_send(&mediator, sent, monitor)).await
            }
            Self::Function(_, run) => run((event, received.clone())).await,
        }
    }
}

/// The result of an attempt whose event was sent to its handlers.
pub(super) async fn after_send(
    mediator: &EventMediator,
    sent: Result<Consumed, EventSendError>,
    monitor: &Monitor,
) -> Attempted {
    match sent {
        Ok(Consumed::Handled) => Ok(()),
        Ok(Consumed::Duplicate) => {
            monitor.counters.duplicates.one();
            Ok(())
        }
        Err(SendError::UnitOfWork(UnitOfWorkError::Inbox(source))) => {
            let error = error_chain(&*source);
            log_first!(
                monitor.repeats.is_first(Logged::NotMarkedNow, "inbox"),
                warn,
                subscription = %monitor.name,
                error,
                "the inbox cannot mark a message now: it waits"
            );
            Err(AttemptFailure::not_tried("UnitOfWorkError", error))
        }
        Err(SendError::Undelivered(undelivered)) => {
            publish_again(mediator.broker(), undelivered.events, monitor).await
        }
        Err(error) => Err(AttemptFailure::of_mediator(&error)),
    }
}
