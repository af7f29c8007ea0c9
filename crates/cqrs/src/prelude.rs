//! What most files of an application need: `use cqrs::prelude::*;`.
//!
//! The traits come with their derives of the same names.

pub use crate::{
    Command, DomainEvent, Event, EventHandler, EventMediator, HandlerError, HandlerResultExt,
    Invocation, Mediator, MessageBroker, MessageBrokerExt, Middleware, Next, Notification,
    NotificationEvent, Outcome, Query, Request, RequestHandler, Scope, SendError,
};
