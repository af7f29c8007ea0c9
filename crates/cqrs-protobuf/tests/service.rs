//! Tests of Protobuf from the mediator over the broker to a subscription.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Plain, UserJoined};
use cqrs_core::mediator::EventEmitter;
use cqrs_core::service::Undecodable;
use cqrs_core::{
    Mediator, MemoryBroker, Message, MessageBrokerExt as _, NotificationEvent, OnDecodeError,
    Received, Service, Subscription, each,
};
use cqrs_protobuf::{ProtobufDeserializer, json_or_protobuf};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A running subscription and its records.
struct Fixture {
    broker: MemoryBroker,
    emitter: EventEmitter,
    seen: UnboundedReceiver<String>,
    running: tokio::task::JoinHandle<()>,
}

impl Fixture {
    /// Subscribes with the result of `subscription`. Events are recorded as `shown`.
    async fn new<P: cqrs_core::Notification>(
        topic: &str,
        subscription: impl FnOnce(Subscription) -> Subscription,
        shown: impl Fn(NotificationEvent<P>) -> String + Clone + Send + Sync + 'static,
    ) -> Self {
        let broker = MemoryBroker::new();
        let (tell, seen) = unbounded_channel();
        let told = tell.clone();
        let plain = Subscription::to(topic)
            .group("g")
            .on_decode_error(OnDecodeError::Handle)
            .on_unknown_event(OnDecodeError::Handle)
            .on_empty(OnDecodeError::Handle)
            .undecodable(move |case: Undecodable, _: Received| {
                told.send(case.to_string()).unwrap();
                async { Ok(()) }
            });
        let target = each(move |event: NotificationEvent<P>, _: Received| {
            tell.send(shown(event)).unwrap();
            async { Ok(()) }
        });
        let service = Service::builder(broker.clone()).subscribe(subscription(plain), target);
        let service = service.build().unwrap();
        let mediator = Mediator::builder().broker(broker.clone()).build().unwrap();
        let running = tokio::spawn(async move {
            service.run().await.unwrap();
        });
        Self { broker, emitter: mediator.emitter(), seen, running }
    }

    async fn next(&mut self) -> String {
        tokio::time::timeout(Duration::from_secs(10), self.seen.recv()).await.unwrap().unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.running.abort();
    }
}

#[tokio::test]
async fn message_of_defaults_is_an_event() {
    let mut fixture = Fixture::new(
        "plain",
        |plain| plain.decode::<Plain>(ProtobufDeserializer::new()),
        |event: NotificationEvent<Plain>| format!("{} {}", event.event_name, event.payload.amount),
    )
    .await;
    for amount in [0, 7] {
        fixture.emitter.emit(Plain { amount, ..Plain::default() }).await.unwrap();
    }
    assert_eq!(fixture.next().await, "Plain 0");
    assert_eq!(fixture.next().await, "Plain 7");
    // The name decides, even if the bytes are those of another event.
    fixture.broker.publish(Message::new("plain", "").with_name("Other")).await.unwrap();
    assert_eq!(fixture.next().await, "no type of this subscription is named \"Other\"");
    fixture.broker.publish(Message::new("plain", vec![0xff])).await.unwrap();
    assert!(fixture.next().await.starts_with("malformed message: "));
}

#[tokio::test]
async fn a_topic_with_both_formats() {
    let mut fixture = Fixture::new(
        "users",
        |plain| plain.decode::<UserJoined>(json_or_protobuf::<UserJoined>()),
        |event: NotificationEvent<UserJoined>| event.payload.user_id,
    )
    .await;
    let joined = |user: &str| UserJoined { user_id: user.into(), meeting_id: "m".into() };
    fixture.emitter.emit(joined("protobuf")).await.unwrap();
    let json = serde_json::to_vec(&NotificationEvent::new(joined("json"))).unwrap();
    fixture.broker.publish(Message::new("users", json.clone())).await.unwrap();
    let named = Message::new("users", json.clone()).with_content_type("application/json");
    fixture.broker.publish(named).await.unwrap();
    for expected in ["protobuf", "json", "json"] {
        assert_eq!(fixture.next().await, expected);
    }
    let mistaken = Message::new("users", json).with_content_type("application/x-protobuf");
    fixture.broker.publish(mistaken).await.unwrap();
    assert!(fixture.next().await.starts_with("malformed message: "));
    fixture.broker.publish(Message::new("users", "")).await.unwrap();
    assert_eq!(fixture.next().await, "the message is empty");
}

/// Runs a subscription to both types, changed by `subscription`; records the names of events and
/// undecodable messages.
fn both(
    broker: &MemoryBroker,
    subscription: impl FnOnce(Subscription) -> Subscription,
) -> (UnboundedReceiver<String>, tokio::task::AbortHandle) {
    let (tell, seen) = unbounded_channel::<String>();
    let names = tell.clone();
    let events = cqrs_core::EventMediator::builder()
        .event::<Plain, _>(Tell(tell.clone()))
        .event::<UserJoined, _>(Tell(tell))
        .build()
        .unwrap();
    let plain = Subscription::to("both")
        .group("g")
        .on_decode_error(OnDecodeError::Handle)
        .on_unknown_event(OnDecodeError::Handle)
        .undecodable(move |case: Undecodable, _: Received| {
            names.send(case.to_string()).unwrap();
            async { Ok(()) }
        });
    let service = Service::builder(broker.clone()).subscribe(subscription(plain), events);
    (seen, tokio::spawn(service.build().unwrap().run()).abort_handle())
}

async fn next(seen: &mut UnboundedReceiver<String>) -> String {
    tokio::time::timeout(Duration::from_secs(10), seen.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn several_types_are_told_apart_by_the_frame() {
    let broker = MemoryBroker::new();
    let (mut seen, running) = both(&broker, |plain| {
        plain
            .decode::<Plain>(ProtobufDeserializer::new())
            .decode::<UserJoined>(ProtobufDeserializer::new())
    });
    let mediator = Mediator::builder().broker(broker.clone()).build().unwrap();
    let joined = UserJoined { user_id: "u".into(), meeting_id: "m".into() };
    let emitter = mediator.emitter();
    emitter.emit(NotificationEvent::new(joined).with_topic("both")).await.unwrap();
    emitter.emit(NotificationEvent::new(Plain::default()).with_topic("both")).await.unwrap();
    broker.publish(Message::new("both", "\u{a}\u{1}x")).await.unwrap();
    // In Protobuf an event of defaults, but its type is unknown.
    broker.publish(Message::new("both", "")).await.unwrap();
    let nameless = "malformed message: the name of its event cannot be read";
    for expected in ["UserJoined", "Plain", nameless, nameless] {
        assert_eq!(next(&mut seen).await, expected);
    }
    running.abort();
}

#[tokio::test]
async fn known_name_wins_over_unknown_one() {
    let broker = MemoryBroker::new();
    let (mut seen, running) = both(&broker, |plain| {
        plain.decode::<Plain>(ProtobufDeserializer::new()).json::<UserJoined>()
    });
    let joined = UserJoined { user_id: "u".into(), meeting_id: "m".into() };
    let json = serde_json::to_vec(&NotificationEvent::new(joined)).unwrap();
    // RabbitMQ's `type` has other uses, too.
    broker.publish(Message::new("both", json).with_name("order.v1")).await.unwrap();
    assert_eq!(next(&mut seen).await, "UserJoined");
    running.abort();
}

struct Tell(tokio::sync::mpsc::UnboundedSender<String>);

impl<P: cqrs_core::Notification> cqrs_core::EventHandler<P> for Tell {
    async fn handle(&self, _: &P, _: &mut cqrs_core::Scope) -> Result<(), cqrs_core::HandlerError> {
        self.0.send(P::NAME.into()).unwrap();
        Ok(())
    }
}
