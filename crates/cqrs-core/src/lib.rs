//! Contracts and dispatch of the `cqrs` framework: requests, events, mediators, middlewares, codecs,
//! and the broker contract. No broker client: those are crates of their own.

pub mod app;
pub mod broker;
pub mod codec;
pub mod consume;
mod dispatch;
mod error;
pub mod event;
mod macros;
pub mod mediator;
pub mod memory;
pub mod message;
pub mod middleware;
pub mod request;
pub mod scope;
pub mod service;
mod type_map;

pub use app::App;
pub use broker::{
    DevnullMessageBroker, MessageBroker, MessageBrokerExt, PublishError, PublishErrorKind,
};
pub use consume::{Received, Retry, StartAt, Subscribe};
pub use error::{ClientError, ClientErrorKind};
pub use event::{
    DomainEvent, Event, EventHandler, EventMap, HandlerError, HandlerResultExt, Notification,
    NotificationEvent,
};
pub use mediator::{EventMediator, Mediator, OnEventFailure, SendError};
pub use memory::MemoryBroker;
pub use message::Message;
pub use middleware::{Invocation, Middleware, Next, Outcome};
pub use request::{Command, Query, Request, RequestHandler, RequestMap};
pub use scope::{Scope, UnitOfWork};
pub use service::{Delivery, OnDecodeError, Service, Subscription, batch, each, manual};

/// Items that the derives refer to. Not part of the public interface: they may change in any release.
#[doc(hidden)]
pub mod __private {
    pub use bytes::Bytes;
    pub use serde::Serialize;

    pub use crate::error::debug_error;
    pub use crate::event::message_key;
    pub use crate::mediator::classed;
}
