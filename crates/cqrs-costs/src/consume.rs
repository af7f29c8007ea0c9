//! Consuming in process: a full queue of the memory broker, decoded, handled and acked.

use std::borrow::Cow;
use std::hint::black_box;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cqrs_core::codec::{DeserializeError, DeserializeErrorKind, Deserializer, JsonDeserializer};
use cqrs_core::consume::Incoming;
use cqrs_core::event::Timestamp;
use cqrs_core::mediator::BuildError;
use cqrs_core::message::content_type;
use cqrs_core::scope::{CommitError, UnitOfWorkFactory};
use cqrs_core::{
    DevnullMessageBroker, Event as _, EventHandler, EventMediator, HandlerError, MemoryBroker,
    Message, MessageBrokerExt, Notification, NotificationEvent, Scope, Service, StartAt, Subscribe,
    Subscription, UnitOfWork,
};
use cqrs_protobuf::{ProtobufDeserializer, ProtobufSerializer};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::measured::{block_on, measured, runtime};

pub(crate) const TOPIC: &str = "costs";
const GROUP: &str = "costs";
const KEYS: usize = 100;

/// An event, its deserializer and its bytes.
pub(crate) trait Body: Notification + Clone {
    type Deserializer: Deserializer<Self> + Default;

    fn bytes() -> Vec<u8>;

    /// Names the event in the frame, if its bytes do not.
    fn name(message: Message) -> Message {
        message
    }

    /// Decodes `body` without a message around it, as a loop on the raw client does.
    #[cfg(feature = "servers")]
    fn decode(body: &[u8]) -> Self;
}

/// 256 bytes of JSON, with the envelope of python-cqrs.
#[derive(Clone, Serialize, Deserialize, cqrs_macros::Notification)]
#[cqrs(crate = "cqrs_core", topic = "costs")]
pub(crate) struct Text {
    pub(crate) user_id: String,
    pub(crate) filling: String,
}

impl Text {
    pub(crate) fn event() -> NotificationEvent<Self> {
        let of_filling = |filling: usize| {
            let filling = "x".repeat(filling);
            NotificationEvent::new(Self { user_id: "1234".to_owned(), filling })
                .with_timestamp("2024-01-02T03:04:05.678901Z".parse().expect("a timestamp"))
        };
        let bare = serde_json::to_vec(&of_filling(0)).expect("JSON").len();
        of_filling(256 - bare)
    }
}

impl Body for Text {
    type Deserializer = JsonDeserializer;

    fn bytes() -> Vec<u8> {
        serde_json::to_vec(&Self::event()).expect("JSON")
    }

    #[cfg(feature = "servers")]
    fn decode(body: &[u8]) -> Self {
        let event: NotificationEvent<Self> = serde_json::from_slice(body).expect("an event");
        black_box(event).payload
    }
}

/// A Protobuf message of `SIZE` bytes.
#[derive(Clone, PartialEq, prost::Message, cqrs_macros::Notification)]
#[cqrs(crate = "cqrs_core", topic = "costs", serializer = ProtobufSerializer)]
pub(crate) struct Binary<const SIZE: usize> {
    #[prost(string, tag = "1")]
    user_id: String,
    #[prost(string, tag = "2")]
    filling: String,
}

impl<const SIZE: usize> Body for Binary<SIZE> {
    type Deserializer = ProtobufDeserializer;

    fn bytes() -> Vec<u8> {
        let of_filling = |filling: usize| {
            let filling = "x".repeat(filling);
            Self { user_id: "1234".to_owned(), filling }.encode_to_vec()
        };
        let bare = of_filling(128).len() - 128;
        of_filling(SIZE - bare)
    }

    fn name(message: Message) -> Message {
        message.with_name(Self::NAME).with_content_type(content_type::PROTOBUF)
    }

    #[cfg(feature = "servers")]
    fn decode(body: &[u8]) -> Self {
        <Self as prost::Message>::decode(body).expect("an event")
    }
}

/// A body of two integers, without an envelope: nothing of it has to be allocated.
#[derive(Clone, Serialize, Deserialize, cqrs_macros::Notification)]
#[cqrs(crate = "cqrs_core", topic = "costs")]
pub(crate) struct Integers {
    user_id: u64,
    amount: u64,
}

impl Body for Integers {
    type Deserializer = Bare;

    fn bytes() -> Vec<u8> {
        serde_json::to_vec(&Self { user_id: 1234, amount: 567 }).expect("JSON")
    }

    #[cfg(feature = "servers")]
    fn decode(body: &[u8]) -> Self {
        serde_json::from_slice(body).expect("a payload")
    }
}

/// Reads the payload alone.
#[derive(Default)]
pub(crate) struct Bare;

impl Deserializer<Integers> for Bare {
    fn deserialize(
        &self,
        message: &Incoming,
    ) -> Result<NotificationEvent<Integers>, DeserializeError> {
        let epoch = Timestamp::from_unix_micros(0);
        let body = message.body.as_deref().unwrap_or_default();
        let payload = serde_json::from_slice(body).map_err(|error| {
            let kind = DeserializeErrorKind::Syntax;
            DeserializeError::new(kind, error.to_string(), message.bytes())
        })?;
        Ok(NotificationEvent::from_parts(payload, Uuid::nil(), epoch, "Integers", TOPIC))
    }

    fn event_name<'m>(&self, _message: &'m Incoming) -> Option<Cow<'m, str>> {
        Some(Cow::Borrowed("Integers"))
    }
}

pub(crate) fn decode<B: Body>(messages: usize) {
    let message = Incoming::from(&message::<B>(TOPIC, &B::bytes(), 0));
    let deserializer = B::Deserializer::default();
    measured(|| {
        for _ in 0..messages {
            black_box(deserializer.deserialize(black_box(&message)).expect("an event"));
        }
    });
}

/// A full queue of the memory broker, consumed.
pub(crate) fn memory<B: Body>(messages: usize, concurrency: usize) {
    let (runtime, broker) = full_queue::<B>(messages);
    let subscription = Subscription::to(TOPIC).concurrency(concurrency).max_unsettled(1_000);
    // The messages are still kept at the end: their drop is not counted.
    service::<B>(&runtime, broker.clone(), subscription, messages);
}

/// The same with handlers that write in a unit of work, and emit an event.
pub(crate) fn committing(messages: usize) {
    let (runtime, broker) = full_queue::<Text>(messages);
    let to = Subscription::to(TOPIC).max_unsettled(1_000);
    let (handler, done) = Count::<Text>::new(messages);
    let events = EventMediator::builder()
        .broker(DevnullMessageBroker::new())
        .unit_of_work(NoUnits)
        .event::<NotificationEvent<Text>, _>(Committing { handler, event: Text::event() })
        .build();
    run(&runtime, broker.clone(), to.decode::<Text>(JsonDeserializer), events, &done, messages);
}

fn full_queue<B: Body>(messages: usize) -> (Runtime, MemoryBroker) {
    let (runtime, broker) = (runtime(), MemoryBroker::builder().capacity(messages).build());
    // The group is there before the messages: it is not counted.
    broker.create_group(TOPIC, GROUP, StartAt::Earliest);
    runtime.block_on(async {
        let body = B::bytes();
        for index in 0..messages {
            broker.publish(message::<B>(TOPIC, &body, index)).await.expect("room");
        }
    });
    (runtime, broker)
}

pub(crate) fn message<B: Body>(topic: &str, body: &[u8], index: usize) -> Message {
    B::name(Message::new(topic, body.to_vec()).with_key(format!("key-{}", index % KEYS)))
}

/// Counts a service that handles `messages`.
pub(crate) fn service<B: Body>(
    runtime: &Runtime,
    broker: impl Subscribe,
    subscription: Subscription,
    messages: usize,
) {
    let (handler, done) = Count::<B>::new(messages);
    let events = EventMediator::builder().event::<NotificationEvent<B>, _>(handler).build();
    let subscription = subscription.decode::<B>(B::Deserializer::default());
    run(runtime, broker, subscription, events, &done, messages);
}

fn run(
    runtime: &Runtime,
    broker: impl Subscribe,
    subscription: Subscription,
    events: Result<EventMediator, BuildError>,
    done: &Notify,
    messages: usize,
) {
    let service = Service::builder(broker)
        .subscribe(subscription.group(GROUP), events.expect("a mediator"))
        .build()
        .expect("a service");
    let report = block_on(runtime, service.run_until(done.notified())).expect("it ends well");
    assert_eq!(usize::try_from(report.subscriptions[0].counts.handled), Ok(messages));
}

struct Count<B> {
    seen: Arc<AtomicUsize>,
    messages: usize,
    done: Arc<Notify>,
    event: PhantomData<fn() -> B>,
}

impl<B> Count<B> {
    fn new(messages: usize) -> (Self, Arc<Notify>) {
        let (seen, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        (Self { seen, messages, done: Arc::clone(&done), event: PhantomData }, done)
    }
}

impl<B: Body> EventHandler<NotificationEvent<B>> for Count<B> {
    async fn handle(
        &self,
        event: &NotificationEvent<B>,
        _scope: &mut Scope,
    ) -> Result<(), HandlerError> {
        black_box(event);
        if self.seen.fetch_add(1, Ordering::Relaxed) + 1 == self.messages {
            self.done.notify_one();
        }
        Ok(())
    }
}

struct Committing {
    handler: Count<Text>,
    event: NotificationEvent<Text>,
}

impl EventHandler<NotificationEvent<Text>> for Committing {
    async fn handle(
        &self,
        event: &NotificationEvent<Text>,
        scope: &mut Scope,
    ) -> Result<(), HandlerError> {
        black_box(scope.unit_of_work::<NoUnit>().await?);
        scope.emit(self.event.clone());
        self.handler.handle(event, scope).await
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A unit of work that costs nothing itself.
struct NoUnit;

struct NoUnits;

impl UnitOfWork for NoUnit {
    async fn commit(self) -> Result<(), CommitError> {
        Ok(())
    }

    async fn rollback(self) -> Result<(), BoxError> {
        Ok(())
    }
}

impl UnitOfWorkFactory for NoUnits {
    type Unit = NoUnit;

    async fn begin(&self) -> Result<NoUnit, BoxError> {
        Ok(NoUnit)
    }
}
