//! What most files of an application need: `use cqrs::prelude::*;`.
//!
//! The traits come with their derives of the same names.

pub use crate::{
    Command, Delivery, DomainEvent, Event, EventHandler, EventMediator, HandlerError,
    HandlerResultExt, Invocation, Mediator, MessageBroker, MessageBrokerExt, Middleware, Next,
    Notification, NotificationEvent, OnDecodeError, Outcome, Query, Received, Request,
    RequestHandler, Retry, Scope, SendError, Service, Subscribe, Subscription, batch, each, manual,
};
#[cfg(feature = "derive")]
pub use cqrs_macros::IntoHandlerError;
