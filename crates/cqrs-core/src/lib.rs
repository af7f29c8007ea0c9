//! Contracts and dispatch of the `cqrs` framework: requests, events, mediators, middlewares, codecs,
//! and the broker contract. No broker client: those are crates of their own.

pub mod broker;
pub mod codec;
pub mod consume;
mod dispatch;
mod event;
mod mediator;
pub mod memory;
pub mod message;
mod middleware;
mod request;
mod scope;
mod service;
mod type_map;

pub use broker::{
    DevnullMessageBroker, MessageBroker, MessageBrokerExt, PublishError, PublishErrorKind,
};
pub use codec::{ByContentType, Deserializer, JsonDeserializer, JsonSerializer, Serializer};
pub use consume::{
    DeadLetter, DeadLetterReason, DeadLetterTarget, Incoming, Retry, RetryState, StartAt, Subscribe,
};
pub use dispatch::{EventFailure, EventsError, OnEventFailure, Undelivered};
pub use event::{
    DEFAULT_OUTPUT_TOPIC, DomainEvent, Emission, Event, EventHandler, EventMap, EventRoute,
    HandlerError, HandlerResultExt, InvalidTimestamp, Notification, NotificationEvent, Timestamp,
    default_topic,
};
pub use mediator::{
    Bootstrap, BuildError, BuildProblem, EventEmitter, EventMediator, EventSendError, Mediator,
    MediatorShutdown, SendError,
};
pub use memory::MemoryBroker;
pub use message::{CorrelationId, Headers, Message, TraceContext};
pub use middleware::{Failure, Invocation, InvocationKind, Middleware, Next, Outcome};
pub use request::{Command, Query, Request, RequestHandler, RequestKind, RequestMap};
pub use scope::{CommitError, Scope, UnitOfWork, UnitOfWorkError, UnitOfWorkFactory};
pub use service::{
    Batch, DecodeError, Decoded, Delivery, Each, Manual, NotSettled, OnDecodeError, PerDelivery,
    Received, Service, ServiceBuildError, ServiceBuilder, ServiceError, ServiceHealth,
    ServiceProblem, ServiceReport, StopHandle, Subscription, SubscriptionCounts,
    SubscriptionHealth, SubscriptionReport, SubscriptionState, Target, Undecodable, batch, each,
    manual, per_delivery, shutdown_signal,
};

/// Items that the derives refer to. Not part of the public interface: they may change in any release.
#[doc(hidden)]
pub mod __private {
    pub use bytes::Bytes;
    pub use serde::Serialize;

    pub use crate::event::message_key;
}
