//! What the consuming benchmarks share: the event, its bytes, and our side of the comparison.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cqrs_core::message::content_type;
use cqrs_core::{
    Event, EventHandler, EventMediator, HandlerError, Message, MessageBroker, NotificationEvent,
    Scope, Service, Subscribe, Subscription,
};
use cqrs_protobuf::ProtobufDeserializer;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::measure::Unit;

const KEYS: usize = 1_000;

/// What the bodies are: 256 bytes of either.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Codec {
    Json,
    Protobuf,
}

/// An event that is JSON or Protobuf.
#[derive(Clone, PartialEq, Serialize, Deserialize, prost::Message, cqrs_macros::Notification)]
#[cqrs(crate = "cqrs_core")]
pub(crate) struct Benched {
    #[prost(string, tag = "1")]
    pub(crate) user_id: String,
    #[prost(string, tag = "2")]
    filling: String,
}

impl Codec {
    /// The `index`th message for `topic`.
    pub(crate) fn message(self, topic: &str, index: usize) -> Message {
        let user_id = format!("{:04}", index % KEYS);
        let event = |filling: usize| {
            let filling = "x".repeat(filling);
            NotificationEvent::new(Benched { user_id: user_id.clone(), filling })
                .with_topic("bench")
                .with_timestamp("2024-01-02T03:04:05.678901Z".parse().expect("a timestamp"))
        };
        let encode = |filling| match self {
            Self::Json => serde_json::to_vec(&event(filling)).expect("JSON"),
            Self::Protobuf => event(filling).payload.encode_to_vec(),
        };
        // A length beyond 127 has two bytes, in Protobuf.
        let bare = encode(200).len() - 200;
        let body = encode(256 - bare);
        assert_eq!(body.len(), 256);
        let message = Message::new(topic, body).with_key(user_id.clone());
        match self {
            Self::Json => message,
            Self::Protobuf => {
                message.with_name(Benched::NAME).with_content_type(content_type::PROTOBUF)
            }
        }
    }

    /// `count` messages, made once.
    pub(crate) fn messages(self, topic: &str, count: usize) -> Vec<Message> {
        (0..count).map(|index| self.message(topic, index)).collect()
    }

    /// The raw side's decoding: the same bytes into the same type.
    pub(crate) fn decode(self, body: &[u8]) -> Benched {
        match self {
            Self::Json => {
                let event: NotificationEvent<Benched> =
                    serde_json::from_slice(body).expect("an event");
                event.payload
            }
            Self::Protobuf => Benched::decode(body).expect("a message"),
        }
    }

    pub(crate) fn subscribe(self, subscription: Subscription) -> Subscription {
        match self {
            Self::Json => subscription.json::<Benched>(),
            Self::Protobuf => subscription.decode::<Benched>(ProtobufDeserializer::new()),
        }
    }
}

/// Publishes `count` messages.
pub(crate) async fn fill(broker: &impl MessageBroker, topic: &str, count: usize, codec: Codec) {
    let mut receipts = Vec::with_capacity(count);
    for index in 0..count {
        receipts.push(broker.enqueue(codec.message(topic, index)).await.expect("a place"));
    }
    for receipt in receipts {
        receipt.await.expect("confirmed");
    }
}

/// Counts handled messages; the clock runs from the first to the last.
#[derive(Clone)]
pub(crate) struct Meter(Arc<State>);

struct State {
    messages: usize,
    seen: AtomicUsize,
    first: OnceLock<Instant>,
    last: OnceLock<Instant>,
    done: Notify,
}

impl Meter {
    pub(crate) fn new(messages: usize) -> Self {
        let state = State {
            messages,
            seen: AtomicUsize::new(0),
            first: OnceLock::new(),
            last: OnceLock::new(),
            done: Notify::new(),
        };
        Self(Arc::new(state))
    }

    /// One more; `true` for the last.
    pub(crate) fn count(&self, event: &Benched) -> bool {
        assert_eq!(event.user_id.len(), 4);
        let seen = self.0.seen.fetch_add(1, Ordering::Relaxed) + 1;
        if seen == 1 {
            self.0.first.get_or_init(Instant::now);
        }
        if seen == self.0.messages {
            self.0.last.get_or_init(Instant::now);
            self.0.done.notify_one();
        }
        seen == self.0.messages
    }

    pub(crate) async fn done(&self) {
        let limit = Duration::from_secs(300);
        tokio::time::timeout(limit, self.0.done.notified()).await.unwrap_or_else(|_| {
            let seen = self.0.seen.load(Ordering::Relaxed);
            panic!("{seen} of {} messages after {limit:?}", self.0.messages)
        });
    }

    pub(crate) fn rate(&self) -> f64 {
        let (first, last) = (self.0.first.get(), self.0.last.get());
        let (Some(first), Some(last)) = (first, last) else { return f64::NAN };
        Unit::MessagesPerSecond.of(self.0.messages - 1, *last - *first)
    }
}

struct Count(Meter);

impl EventHandler<Benched> for Count {
    async fn handle(&self, _: &Benched, _: &mut Scope) -> Result<(), HandlerError> {
        Ok(())
    }
}

impl EventHandler<NotificationEvent<Benched>> for Count {
    async fn handle(
        &self,
        event: &NotificationEvent<Benched>,
        _: &mut Scope,
    ) -> Result<(), HandlerError> {
        self.0.count(&event.payload);
        Ok(())
    }
}

/// Our side: a service with an event mediator, until all messages are handled. The subscription decodes
/// them.
pub(crate) async fn ours(
    broker: impl Subscribe,
    subscription: Subscription,
    messages: usize,
) -> f64 {
    let meter = Meter::new(messages);
    let events = EventMediator::builder()
        .event::<NotificationEvent<Benched>, _>(Count(meter.clone()))
        .build()
        .expect("a mediator");
    let service =
        Service::builder(broker).subscribe(subscription, events).build().expect("a service");
    let report = service.run_until(meter.done()).await.expect("it ends well");
    assert_eq!(report.subscriptions[0].counts.handled as usize, messages);
    meter.rate()
}
