//! The number of allocations of a `send` and of a consumed message.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

use std::sync::Arc;

use cqrs_core::{
    EventHandler, EventMediator, HandlerError, Mediator, MemoryBroker, MessageBrokerExt,
    Notification, NotificationEvent, RequestHandler, Scope, Service, StartAt, Subscription,
};
use cqrs_macros::{Command, Notification};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

#[derive(Command)]
#[cqrs(crate = "cqrs_core", response = String, error = String)]
struct Greet {
    name: String,
    fail: bool,
}

struct Greeter;

impl RequestHandler<Greet> for Greeter {
    async fn handle(&self, command: Greet, _scope: &mut Scope) -> Result<String, String> {
        if command.fail { Err(command.name) } else { Ok(command.name) }
    }
}

#[test]
fn a_send_without_middlewares_allocates_at_most_twice() {
    let mediator = Mediator::builder().handle::<Greet, _>(Greeter).build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for fail in [false, true] {
        let command = Greet { name: "somebody".to_owned(), fail };
        let mut answered = None;
        let counted = allocation_counter::measure(|| {
            answered = Some(runtime.block_on(mediator.send(command)));
        });
        assert_eq!(answered.unwrap().is_err(), fail);
        let idle = allocation_counter::measure(|| runtime.block_on(async {}));
        let ours = counted.count_total - idle.count_total;
        assert!((1..=2).contains(&ours), "{ours} allocations for one send");
    }
}

#[derive(Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "numbers")]
struct Counted {
    number: u32,
}

/// Wakes at the last number.
struct Last(u32, Arc<Notify>);

impl EventHandler<Counted> for Last {
    async fn handle(&self, event: &Counted, _: &mut Scope) -> Result<(), HandlerError> {
        if event.number == self.0 {
            self.1.notify_one();
        }
        Ok(())
    }
}

/// The allocations of a service that consumes `messages`.
fn consumed(messages: u32) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (broker, last) = (MemoryBroker::new(), Arc::new(Notify::new()));
    broker.create_group(&Counted::topic(), "group", StartAt::Earliest);
    for number in 1..=messages {
        let event = NotificationEvent::new(Counted { number });
        runtime.block_on(broker.publish(event.to_message().unwrap())).unwrap();
    }
    let handler = Last(messages, Arc::clone(&last));
    let events = EventMediator::builder().event::<Counted, _>(handler).build().unwrap();
    let subscription = Subscription::to("numbers").group("group").json::<Counted>();
    let service = Service::builder(broker).subscribe(subscription, events).build().unwrap();
    let counted = allocation_counter::measure(|| {
        runtime.block_on(service.run_until(last.notified())).unwrap();
    });
    counted.count_total
}

#[test]
fn a_consumed_message_without_texts_allocates_nothing() {
    let (few, many) = (consumed(1_000), consumed(3_000));
    let each = (many as f64 - few as f64) / 2_000.0;
    assert!(each < 0.1, "{each} allocations for one message");
}
