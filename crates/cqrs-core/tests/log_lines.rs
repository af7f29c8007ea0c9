//! Tests of the bound on a subscription's log lines.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod support;

use std::convert::Infallible;
use std::time::Duration;

use cqrs_core::broker::connect_within;
use cqrs_core::consume::DeadLetterTarget;
use cqrs_core::service::per_delivery;
use cqrs_core::{
    EventHandler, EventMediator, HandlerError, Mediator, MemoryBroker, Message, MessageBrokerExt,
    NotificationEvent, Received, RequestHandler, Retry, Scope, Service, Subscription, each,
};
use cqrs_macros::{Command, DomainEvent, Notification};
use serde::{Deserialize, Serialize};
use support::{Lines, RecordingBroker};

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "Ordered", topic = "orders")]
struct Ordered;

#[tokio::test(start_paused = true)]
async fn repeats_are_counted_not_written() {
    const FAILING: usize = 200;
    const GARBAGE: usize = 300;
    let lines = Lines::default();
    let _guard = lines.record();
    let broker = MemoryBroker::new();
    let event = serde_json::to_vec(&NotificationEvent::new(Ordered)).unwrap();
    for n in 0..FAILING {
        let message = Message::new("orders", event.clone()).with_key(format!("{n}"));
        broker.publish(message).await.unwrap();
    }
    for n in 0..GARBAGE {
        let message = Message::new("orders", "garbage").with_key(format!("{n}"));
        broker.publish(message).await.unwrap();
    }
    let target = each(|_: NotificationEvent<Ordered>, _: Received| async {
        Err(HandlerError::from(std::io::Error::other("no route to the database")))
    });
    let retry = Retry::none().immediate([Duration::from_millis(50); 6]);
    let subscription = Subscription::to("orders").group("g").json::<Ordered>().retry(retry);
    let service = Service::builder(broker.clone()).subscribe(subscription, target).build().unwrap();
    let dead = async {
        while broker.messages("orders.g.dead").len() < FAILING + GARBAGE {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let started = tokio::time::Instant::now();
    drop(service.run_until(tokio::time::timeout(Duration::from_secs(3_600), dead)).await.unwrap());
    let periods = started.elapsed().as_secs() as usize / 10 + 1;
    assert_eq!(broker.messages("orders.g.dead").len(), FAILING + GARBAGE);

    let failed = lines.with("handling a message failed");
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].starts_with("WARN "), "{failed:?}");
    for part in ["offset=0", "no route to the database", "attempt=1 of 7", "next_attempt=in 50ms"] {
        assert!(failed[0].contains(part), "{part}: {}", failed[0]);
    }
    let dead = lines.with("becomes a dead letter");
    assert_eq!(dead.len(), 2, "one of each cause: {dead:?}");
    assert!(dead.iter().all(|line| line.starts_with("ERROR ")), "{dead:?}");
    let repeated = lines.with("repeated: ");
    assert!(repeated.len() <= 3 * (periods + 1), "{} in {periods} periods", repeated.len());
    let total = |what: &str, cause: &str| -> usize {
        let of_cause = repeated.iter().filter(|line| line.contains(what) && line.contains(cause));
        let count = |line: &String| {
            let count = line.split("repeats=").nth(1).unwrap().split(' ').next().unwrap();
            count.parse::<usize>().unwrap()
        };
        of_cause.map(count).sum()
    };
    // First lines and repeats add up to all failures.
    assert_eq!(failed.len() + total("failed attempts", "io::error::Error"), 7 * FAILING);
    assert_eq!(1 + total("dead letters", "DeserializeError"), GARBAGE);
    assert_eq!(1 + total("dead letters", "io::error::Error"), FAILING);
}

#[tokio::test(start_paused = true)]
async fn retried_publish_after_commit_is_counted() {
    struct EmitRefused;
    impl EventHandler<Ordered> for EmitRefused {
        async fn handle(&self, _: &Ordered, scope: &mut Scope) -> Result<(), HandlerError> {
            scope.emit(NotificationEvent::new(Ordered).with_topic("refused"));
            Ok(())
        }
    }
    for is_per_delivery in [false, true] {
        let lines = Lines::default();
        let _guard = lines.record();
        let broker = MemoryBroker::new();
        for n in 0..10 {
            let event = serde_json::to_vec(&NotificationEvent::new(Ordered)).unwrap();
            let message = Message::new("orders", event).with_key(format!("{n}"));
            broker.publish(message).await.unwrap();
        }
        let events = EventMediator::builder()
            .event::<Ordered, _>(EmitRefused)
            .broker(RecordingBroker::default())
            .build()
            .unwrap();
        let subscription = Subscription::to("orders").group("g").json::<Ordered>().concurrency(10);
        let builder = Service::builder(broker.clone()).drain_timeout(Duration::from_secs(1));
        let builder = match is_per_delivery {
            true => builder.subscribe(subscription, per_delivery(move |_| events.clone())),
            false => builder.subscribe(subscription, events),
        };
        let minute = tokio::time::sleep(Duration::from_secs(60));
        drop(builder.build().unwrap().run_until(minute).await.unwrap());
        let retried = lines.with("its event is not published");
        assert_eq!(retried.len(), 1, "{retried:?}");
        assert!(retried[0].starts_with("WARN ") && retried[0].contains("refused"), "{retried:?}");
        let repeated = lines.with("events that are not published");
        assert!((1..=8).contains(&repeated.len()), "one per 10 s: {repeated:?}");
    }
}

struct Ignore;

impl EventHandler<Ordered> for Ignore {
    async fn handle(&self, _: &Ordered, _: &mut Scope) -> Result<(), HandlerError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn start_is_one_line_with_all_settings() {
    let lines = Lines::default();
    let _guard = lines.record();
    let events = EventMediator::builder().event::<Ordered, _>(Ignore).build().unwrap();
    let to = || Subscription::to("orders").group("g").json::<Ordered>();
    let function = each(|_: NotificationEvent<Ordered>, _: Received| async { Ok(()) });
    let service = Service::builder(MemoryBroker::new())
        .subscribe(to().concurrency(4), events)
        .subscribe(
            to().group("h").retry(Retry::none()).dead_letter(DeadLetterTarget::Discard),
            function,
        )
        .build()
        .unwrap();
    let report = service.run_until(tokio::time::sleep(Duration::from_secs(60))).await.unwrap();
    let started = lines.with("subscription starts");
    assert_eq!(started.len(), 2, "{started:?}");
    let line = |name: &str| started.iter().find(|line| line.contains(name)).unwrap();
    for part in [
        "INFO ",
        "topics=orders ",
        "group=g ",
        "Ordered: log_lines::Ignore",
        "concurrency=4 ",
        "retries=50ms, 100ms, 250ms, later: 10s, 60s, 300s ",
        "orders.g.dead",
    ] {
        assert!(line("g@orders").contains(part), "{part}: {started:?}");
    }
    for part in ["Ordered: a function", "concurrency=1 ", "retries=none ", "discarded"] {
        assert!(line("h@orders").contains(part), "{part}: {started:?}");
    }
    let bad: Vec<_> = ["WARN ", "ERROR "].iter().flat_map(|level| lines.with(level)).collect();
    assert!(bad.is_empty(), "a clean run is quiet: {bad:?}");
    assert_eq!(report.to_string(), "g@orders: 0 received\nh@orders: 0 received");
}

#[tokio::test]
async fn handler_that_blocks_beyond_its_timeout_is_a_warning() {
    let lines = Lines::default();
    let _guard = lines.record();
    let broker = MemoryBroker::new();
    let event = serde_json::to_vec(&NotificationEvent::new(Ordered)).unwrap();
    broker.publish(Message::new("orders", event).with_name("Ordered")).await.unwrap();
    let blocks = each(|_: NotificationEvent<Ordered>, _: Received| async {
        std::thread::sleep(Duration::from_millis(60)); // blocking is the subject
        Ok(())
    });
    let subscription = Subscription::to("orders").group("g").json::<Ordered>();
    let service = Service::builder(broker.clone())
        .subscribe(subscription.timeout(Duration::from_millis(20)), blocks)
        .build()
        .unwrap();
    let settled = async {
        while broker.unsettled("orders", "g") > 0 || lines.with("blocked its thread").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limited = tokio::time::timeout(Duration::from_secs(30), settled);
    let report = service.run_until(async { limited.await.unwrap() }).await.unwrap();
    let blocked = lines.with("blocked its thread");
    for part in ["WARN ", "event=\"Ordered\"", "timeout of 20ms", "spawn_blocking"] {
        assert!(blocked[0].contains(part), "{part}: {blocked:?}");
    }
    assert_eq!(report.to_string(), "g@orders: 1 received, 1 handled");
}

#[derive(DomainEvent)]
#[cqrs(crate = "cqrs_core")]
struct Counted;

#[derive(Command)]
#[cqrs(crate = "cqrs_core", response = ())]
struct Count;

struct EmitCounted;

impl RequestHandler<Count> for EmitCounted {
    async fn handle(&self, _: Count, scope: &mut Scope) -> Result<(), Infallible> {
        scope.emit(Counted);
        Ok(())
    }
}

#[tokio::test]
async fn domain_event_without_handler_is_a_warning_once() {
    for is_meant in [false, true] {
        let lines = Lines::default();
        let _guard = lines.record();
        let builder = Mediator::builder().handle::<Count, _>(EmitCounted);
        let builder = if is_meant { builder.may_be_unhandled::<Counted>() } else { builder };
        let mediator = builder.build().unwrap();
        for _ in 0..3 {
            mediator.send(Count).await.unwrap();
        }
        let warned = lines.with("may_be_unhandled");
        assert_eq!(warned.len(), usize::from(!is_meant), "{warned:?}");
        assert!(
            warned.iter().all(|line| line.starts_with("WARN ") && line.contains("\"Counted\"")),
            "{warned:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_server_is_logged_every_5_seconds() {
    let lines = Lines::default();
    let _guard = lines.record();
    let limit = Duration::from_secs(12);
    let cause = || Some("connection refused".to_owned());
    let never = connect_within("h:1", limit, std::future::pending::<()>(), cause).await;
    assert_eq!(never, None);
    let logged = lines.with("no contact yet");
    assert_eq!(logged.len(), 2, "{logged:?}");
    for part in ["INFO ", "server=\"h:1\"", "connection refused", "after 5 of 12 s"] {
        assert!(logged[0].contains(part), "{part}: {logged:?}");
    }
    let at_once = connect_within("h:1", limit, std::future::ready(7), || None).await;
    assert_eq!((at_once, lines.with("no contact yet").len()), (Some(7), 2));
}
