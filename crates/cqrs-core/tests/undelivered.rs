//! Tests of events that the broker does not confirm after the work that caused them is committed.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod support;

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::consume::support::error_chain;
use cqrs_core::mediator::Undelivered;
use cqrs_core::service::{ServiceReport, SubscriptionState};
use cqrs_core::{
    EventHandler, EventMediator, HandlerError, Mediator, MemoryBroker, Message, MessageBroker,
    MessageBrokerExt, NotificationEvent, PublishError, PublishErrorKind, RequestHandler, Scope,
    SendError, Service, StartAt, Subscription,
};
use cqrs_macros::{Command, Notification};
use serde::{Deserialize, Serialize};
use support::{Lines, Log};

#[derive(Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "shipped", key = "number")]
struct Shipped {
    number: u32,
    part: u32,
    note: String,
}

#[derive(Clone, Command)]
#[cqrs(crate = "cqrs_core", response = u32)]
struct Ship {
    parts: u32,
}

struct ShipParts;

impl RequestHandler<Ship> for ShipParts {
    async fn handle(&self, command: Ship, scope: &mut Scope) -> Result<u32, Infallible> {
        (1..=command.parts)
            .for_each(|part| scope.emit(Shipped { number: 1, part, note: String::new() }));
        Ok(command.parts)
    }
}

/// As on RabbitMQ: an event without a queue is unroutable.
fn strict() -> MemoryBroker {
    MemoryBroker::builder().require_subscriber(true).build()
}

async fn ship(broker: &MemoryBroker, parts: u32) -> (Mediator, Undelivered<u32>) {
    let builder = Mediator::builder().handle::<Ship, _>(ShipParts).broker(broker.clone());
    let mediator = builder.build().unwrap();
    match mediator.send(Ship { parts }).await {
        Err(SendError::Undelivered(undelivered)) => (mediator, *undelivered),
        other => panic!("{other:?}"),
    }
}

fn parts(broker: &MemoryBroker) -> Vec<u32> {
    let part = |message: &Message| {
        let event: NotificationEvent<Shipped> = serde_json::from_slice(&message.body).unwrap();
        event.payload.part
    };
    broker.messages("shipped").iter().map(part).collect()
}

#[tokio::test]
async fn error_names_its_first_cause() {
    let (_, undelivered) = ship(&strict(), 2).await;
    let first = undelivered.events[0].to_string();
    let error = SendError::<u32, Infallible>::from(undelivered);
    assert!(first.contains("Shipped") && first.contains("unroutable"), "{first}");
    let text = error.to_string();
    assert!(text.contains("2 of its events") && text.ends_with(&first), "{text}");
    let source = error.source().unwrap().downcast_ref::<PublishError>().unwrap();
    assert_eq!(source.kind(), PublishErrorKind::Unroutable);
    assert_eq!(error_chain(&error).matches("unroutable").count(), 1, "not said twice");
}

#[tokio::test]
async fn each_undelivered_event_is_an_error_line() {
    let lines = Lines::default();
    let _guard = lines.record();
    let (_, undelivered) = ship(&strict(), 2).await;
    let logged = lines.with("an event of committed work is not published");
    assert_eq!(logged.len(), 2, "{logged:?}");
    for (line, error) in logged.iter().zip(&undelivered.events) {
        let id = format!("id={} ", error.message().id);
        for part in ["ERROR ", "Shipped", "shipped", "kind=Unroutable", "start its consumer", &id] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}

#[tokio::test]
async fn publish_again_keeps_order_and_ids() {
    let broker = strict();
    let (mediator, undelivered) = ship(&broker, 3).await;
    let ids: Vec<_> = undelivered.events.iter().map(|error| error.message().id).collect();
    let undelivered = undelivered.publish_again(&mediator).await.unwrap_err();
    assert_eq!(undelivered.events.len(), 3, "still unroutable");
    broker.create_group("shipped", "g", StartAt::Earliest);
    broker.faults().refuse_messages(1);
    let rest = undelivered.publish_again(&mediator).await.unwrap_err();
    assert_eq!(rest.events.len(), 3, "the later ones of its key wait for the refused one");
    let to: Arc<dyn MessageBroker> = Arc::new(broker.clone());
    assert_eq!(rest.publish_again(&to).await.unwrap(), 3, "the response");
    assert_eq!(parts(&broker), [1, 2, 3]);
    let published: Vec<_> = broker.messages("shipped").iter().map(|sent| sent.id).collect();
    assert_eq!(published, ids);
}

#[derive(Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "paid", key = "number")]
struct Paid {
    number: u32,
}

/// Ships what is paid, with a note of so many bytes. Number 1 ships to a topic of its own.
struct ShipPaid(Log, usize);

impl EventHandler<Paid> for ShipPaid {
    async fn handle(&self, event: &Paid, scope: &mut Scope) -> Result<(), HandlerError> {
        self.0.add(format!("ship {}", event.number));
        let shipped = NotificationEvent::new(Shipped {
            number: event.number,
            part: 1,
            note: "x".repeat(self.1),
        });
        scope.emit(match event.number {
            1 => shipped.with_topic("elsewhere"),
            _ => shipped,
        });
        Ok(())
    }
}

/// Consumes payments 1 and 2 until `done`, which gets the service's health.
async fn consume(
    broker: &MemoryBroker,
    log: &Log,
    note: usize,
    done: impl AsyncFnOnce(cqrs_core::service::ServiceHealth),
) -> ServiceReport {
    let events = EventMediator::builder()
        .event::<Paid, _>(ShipPaid(log.clone(), note))
        .broker(broker.clone())
        .build()
        .unwrap();
    broker.create_group("paid", "g", StartAt::Earliest);
    for number in [1, 2] {
        broker.publish_event(Paid { number }).await.unwrap();
    }
    let subscription = Subscription::to("paid").group("g").json::<Paid>();
    let service = Service::builder(broker.clone()).subscribe(subscription, events).build().unwrap();
    let health = service.health();
    let limited = tokio::time::timeout(Duration::from_secs(600), done(health));
    service.run_until(async { limited.await.expect("it is done in time") }).await.unwrap()
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn unroutable_event_holds_message_until_routed() {
    let lines = Lines::default();
    let _guard = lines.record();
    let (broker, log) = (strict(), Log::default());
    broker.create_group("shipped", "g", StartAt::Earliest);
    let report = consume(&broker, &log, 0, async |health| {
        let state = || health.subscriptions().remove(0).state;
        until(|| broker.messages("shipped").len() == 1).await;
        until(|| matches!(state(), SubscriptionState::Stuck { .. })).await;
        let SubscriptionState::Stuck { reason } = state() else { unreachable!() };
        assert!(reason.starts_with("paid: ") && reason.contains("unroutable"), "{reason}");
        assert!(health.is_ready(), "the other key goes on");
        // Longer than all retries of a failed handler.
        tokio::time::sleep(Duration::from_secs(400)).await;
        assert_eq!(broker.unsettled("paid", "g"), 1, "not acked before its event is out");
        broker.create_group("elsewhere", "g", StartAt::Earliest);
        until(|| state() == SubscriptionState::Consuming).await;
        until(|| broker.unsettled("paid", "g") == 0).await;
    })
    .await;
    assert_eq!(broker.messages("elsewhere").len(), 1);
    assert_eq!(log.lines(), ["ship 1", "ship 2"], "committed work is not repeated");
    let counts = report.subscriptions[0].counts;
    assert_eq!((counts.handled, counts.dead_lettered, counts.failed_attempts), (2, 0, 0));
    let held = lines.with("the broker refuses the handler's event");
    assert!(held[0].starts_with("ERROR ") && held[0].contains("start its consumer"), "{held:?}");
}

#[tokio::test(start_paused = true)]
async fn stop_gives_back_message_with_unroutable_event() {
    let (broker, log) = (strict(), Log::default());
    broker.create_group("shipped", "g", StartAt::Earliest);
    let started = tokio::time::Instant::now();
    let report = consume(&broker, &log, 0, async |health| {
        until(|| matches!(health.subscriptions()[0].state, SubscriptionState::Stuck { .. })).await;
        until(|| log.count("ship 2") == 1).await;
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(5), "no wait for the drain timeout");
    assert_eq!(report.subscriptions[0].counts.given_back, 1);
    assert_eq!(broker.unsettled("paid", "g"), 1);
}

#[tokio::test(start_paused = true)]
async fn oversized_event_dead_letters_its_message() {
    let broker = MemoryBroker::builder().max_message_size(4_096).build();
    let log = Log::default();
    let report = consume(&broker, &log, 4_096, async |_| {
        until(|| broker.messages("paid.g.dead").len() == 2).await;
    })
    .await;
    assert_eq!(report.subscriptions[0].counts.dead_lettered, 2);
    assert_eq!(log.lines(), ["ship 1", "ship 2"]);
    let letter = &broker.messages("paid.g.dead")[0];
    let error = letter.headers.get("cqrs-dead-letter-error").unwrap_or_default();
    assert!(error.contains("can never be published") && error.contains("too large"), "{letter:?}");
}
