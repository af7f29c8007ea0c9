//! Checks that every public type of `cqrs-core` and `cqrs-schema-registry` can be logged and moved between threads.
//!
//! That it compiles is the test: nothing here runs.

use std::time::Duration;

use cqrs::app::{AppError, AppReport, Stopping};
use cqrs::broker::{
    BrokerState, Confirmation, Intake, PendingConfirm, Receipt, SharedMessage, ShutdownReport,
    Slot, Window,
};
use cqrs::codec::{
    ByContentType, DeserializeError, DeserializeErrorKind, Encoded, JsonDeserializer,
    JsonPayloadDeserializer, JsonPayloadSerializer, JsonSerializer, SerializeError,
};
use cqrs::consume::{
    BrokerOptions, DeadLetter, DeadLetterReason, DeadLetterTarget, Delayed, Fetch, Incoming,
    InvalidDeadLetter, Retry, RetryState, SettleError, Source, SourceDelivery, SourceError,
    SourceStatus, StartAt, StatusReporter, Subscribe, SubscribeError, SubscribeErrorKind,
    SubscribeRequest, TopicSet,
};
use cqrs::event::{Emission, EventRoute, InvalidTimestamp, Timestamp};
use cqrs::mediator::{
    Bootstrap, BuildError, BuildProblem, EventEmitter, EventFailure, EventSendError, EventsError,
    MediatorShutdown, Undelivered,
};
use cqrs::memory::{
    MemoryBroker, MemoryBrokerBuilder, MemoryDelivery, MemoryFaults, MemoryRetry, MemorySubscriber,
    MemorySubscription,
};
use cqrs::message::{CorrelationId, Headers, InvalidHeader, InvalidTraceContext, TraceContext};
use cqrs::middleware::{Failure, InvocationKind};
use cqrs::request::RequestKind;
use cqrs::scope::{CommitError, UnitOfWorkError};
use cqrs::service::{
    DecodeError, Handler, HealthReport, NotSettled, ServiceBuildError, ServiceBuilder,
    ServiceError, ServiceHealth, ServiceProblem, ServiceReport, StopHandle, SubscriptionCounts,
    SubscriptionHealth, SubscriptionReport, SubscriptionState, Undecodable,
};
use cqrs::{
    App, Delivery, DevnullMessageBroker, Event, EventMap, EventMediator, HandlerError, Invocation,
    Mediator, Message, MessageBroker, MessageBrokerExt, Next, NotificationEvent, OnDecodeError,
    OnEventFailure, Outcome, PublishError, PublishErrorKind, Received, Request, RequestMap, Scope,
    SendError, Service, Subscription,
};

const fn shared<T: Send + Sync + std::fmt::Debug>() {}
const fn sent<T: Send + std::fmt::Debug>() {}
const fn error<T: std::error::Error + Send + Sync + 'static>() {}

const _: () = {
    shared::<RequestKind>();
    shared::<RequestMap>();
    shared::<Mediator>();
    shared::<Bootstrap<Mediator>>();
    shared::<BuildProblem>();
    shared::<MediatorShutdown>();
    shared::<Undelivered<()>>();
    shared::<CommitError>();
    shared::<EventRoute>();
};

const _: () = {
    shared::<Emission>();
    shared::<EventMap>();
    shared::<EventEmitter>();
    shared::<EventMediator>();
    shared::<Bootstrap<EventMediator>>();
    shared::<ByContentType<()>>();
    shared::<NotificationEvent<()>>();
    shared::<Timestamp>();
    shared::<OnEventFailure>();
    shared::<EventFailure>();
    shared::<HandlerError>();
};

const _: () = {
    shared::<Failure>();
    shared::<InvocationKind>();
    shared::<Next<'_>>();
    shared::<Outcome>();
};

const _: () = {
    shared::<Message>();
    shared::<Headers>();
    shared::<CorrelationId>();
    shared::<TraceContext>();
    shared::<JsonSerializer>();
    shared::<JsonDeserializer>();
    shared::<JsonPayloadSerializer>();
    shared::<JsonPayloadDeserializer>();
    shared::<Encoded>();
    shared::<DeserializeErrorKind>();
};

const _: () = {
    shared::<Box<dyn MessageBroker>>();
    shared::<DevnullMessageBroker>();
    shared::<BrokerState>();
    shared::<Confirmation>();
    shared::<Intake>();
    shared::<PendingConfirm>();
    shared::<Receipt>();
    shared::<SharedMessage>();
    shared::<ShutdownReport>();
    shared::<Slot>();
    shared::<Window>();
    shared::<PublishErrorKind>();
};

const _: () = {
    shared::<MemoryBroker>();
    shared::<MemoryBrokerBuilder>();
    shared::<MemoryDelivery>();
    shared::<MemoryFaults>();
    shared::<MemoryRetry>();
    shared::<MemorySubscriber>();
    shared::<MemorySubscription>();
};

const _: () = {
    shared::<Box<dyn Subscribe>>();
    shared::<SubscribeRequest>();
    shared::<SubscribeErrorKind>();
    shared::<StatusReporter>();
    shared::<SourceStatus>();
    shared::<TopicSet>();
    shared::<StartAt>();
    shared::<BrokerOptions>();
    shared::<Retry>();
    shared::<RetryState>();
    shared::<Delayed>();
    shared::<DeadLetter>();
    shared::<DeadLetterReason>();
    shared::<DeadLetterTarget>();
    shared::<Incoming>();
};

const _: () = {
    shared::<Subscription>();
    shared::<Service>();
    shared::<ServiceBuilder>();
    shared::<ServiceHealth>();
    shared::<HealthReport>();
    shared::<AppReport>();
    shared::<ServiceProblem>();
    shared::<ServiceReport>();
    shared::<StopHandle>();
    shared::<SubscriptionHealth>();
    shared::<SubscriptionCounts>();
    shared::<SubscriptionReport>();
    shared::<SubscriptionState>();
    shared::<Received>();
    shared::<Fetch>();
    shared::<SourceDelivery>();
    shared::<Delivery>();
    shared::<OnDecodeError>();
    shared::<Undecodable>();
    shared::<DecodeError>();
    shared::<Handler>();
};

/// One task has them at a time: a transaction inside of them need not be `Sync`.
const _: () = {
    sent::<Scope>();
    sent::<Invocation<'_>>();
    sent::<Box<dyn Source>>();
    sent::<App>();
    sent::<Stopping>();
};

const _: () = {
    error::<BuildError>();
    error::<SendError<(), std::fmt::Error>>();
    error::<EventSendError>();
    error::<EventsError>();
    error::<UnitOfWorkError>();
    error::<PublishError>();
    error::<SerializeError>();
    error::<DeserializeError>();
    error::<InvalidHeader>();
    error::<InvalidDeadLetter>();
    error::<SettleError>();
    error::<SourceError>();
    error::<SubscribeError>();
    error::<ServiceBuildError>();
    error::<ServiceError>();
    error::<AppError>();
    error::<NotSettled>();
    error::<InvalidTimestamp>();
    error::<InvalidTraceContext>();
};

#[cfg(feature = "schema-registry")]
const _: () = {
    use cqrs::schema_registry::*;

    shared::<Frame>();
    shared::<FrameErrorKind>();
    shared::<MessagePath>();
    shared::<SchemaId>();
    shared::<SchemaType>();
    shared::<Framed<JsonDeserializer>>();
    shared::<FramedBroker<MemoryBroker>>();
    shared::<Framing>();
    shared::<FramingBuilder>();
    shared::<FrameForm>();
    shared::<EventSchema>();
    shared::<SchemaSource>();
    shared::<SubjectNaming>();
    shared::<Registration>();
    shared::<OnUnframed>();
    shared::<OnMissingSchema>();
    shared::<OnUnknownSchema>();
    shared::<RegistryDecoder>();
    shared::<SchemaRegistry>();
    shared::<RegistryConfig>();
    shared::<Credentials>();
    shared::<TlsConfig>();
    shared::<Pem>();
    shared::<Schema>();
    shared::<SchemaReference>();
    shared::<SchemaVersion>();
    shared::<RegisteredSchema>();
    shared::<Compatibility>();
    shared::<RegistryErrorKind>();
    error::<RegistryError>();
    error::<FrameError>();
};

/// The futures can be awaited in a spawned task.
fn _futures<R: Request, E: Event>(
    (mediator, request): (&Mediator, R),
    (events, event): (&EventMediator, E),
    (broker, message): (&dyn MessageBroker, Message),
) {
    fn sent(_: impl Send) {}
    sent(mediator.send(request));
    sent(mediator.shutdown(Duration::ZERO));
    sent(events.send(event));
    sent(broker.publish(message));
}

fn _running(app: App, service: Service) {
    fn sent(_: impl Send) {}
    sent(app.run());
    sent(service.run());
}

/// A pointer to a broker of any kind is a broker.
fn _pointers(publisher: Box<dyn MessageBroker>, consumer: Box<dyn Subscribe>) {
    let _ = Mediator::builder().broker(publisher);
    let _ = Service::builder(consumer);
}

#[cfg(feature = "schema-registry")]
fn _registry_futures(
    registry: &cqrs::schema_registry::SchemaRegistry,
    framing: cqrs::schema_registry::FramingBuilder,
    schema: &cqrs::schema_registry::Schema,
) {
    fn sent(_: impl Send) {}
    sent(registry.schema(1));
    sent(registry.register("s", schema));
    sent(framing.build());
}
