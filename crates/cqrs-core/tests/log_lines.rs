//! Tests of the bound on a subscription's log lines.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod support;

use std::time::Duration;

use cqrs_core::service::per_delivery;
use cqrs_core::{
    EventHandler, EventMediator, HandlerError, MemoryBroker, Message, MessageBrokerExt,
    NotificationEvent, Received, Retry, Scope, Service, Subscription, each,
};
use cqrs_macros::Notification;
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
    for part in ["offset=0", "no route to the database", "attempt=1", "next_attempt=in 50ms"] {
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
