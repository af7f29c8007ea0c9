//! Tests of a service on the memory broker, through the public interface only.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod blocking;
mod counts;
mod functions;
mod handlers;
mod inbox;
mod lifecycle;
mod options;
mod order;
mod panics;
mod plain_json;
mod reading;
mod retries;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_core::consume::{DeadLetter, DeadLetterReason};
use cqrs_core::service::{ServiceHealth, ServiceReport, StopHandle, SubscriptionState, Target};
use cqrs_core::{
    Delivery, EventHandler, EventMediator, HandlerError, HandlerResultExt, MemoryBroker, Message,
    MessageBrokerExt, NotificationEvent, OnDecodeError, Received, Retry, Scope, Service,
    Subscription, batch, each, manual,
};
use cqrs_macros::Notification;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::Instant;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "UserCreated", topic = "users", key = "user_id")]
struct UserCreated {
    user_id: String,
    step: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "UserDeleted", topic = "users", key = "user_id")]
struct UserDeleted {
    user_id: String,
}

type Records = Arc<Mutex<Vec<String>>>;

fn record(seen: &Records, text: impl Into<String>) {
    seen.lock().unwrap().push(text.into());
}

fn records(seen: &Records) -> Vec<String> {
    seen.lock().unwrap().clone()
}

async fn publish(broker: &MemoryBroker, user_id: &str, step: u32) {
    let event = NotificationEvent::new(UserCreated { user_id: user_id.into(), step });
    let body = serde_json::to_vec(&event).unwrap();
    broker.publish(Message::new("users", body).with_key(user_id.to_owned())).await.unwrap();
}

async fn publish_raw(broker: &MemoryBroker, body: &'static str) {
    broker.publish(Message::new("users", body)).await.unwrap();
}

/// Waits for a condition; with paused time this takes no real time.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(3600);
    while !condition() {
        assert!(Instant::now() < end, "never seen: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn users() -> Subscription {
    Subscription::to("users").group("mailer").json::<UserCreated>()
}

struct Running {
    task: JoinHandle<ServiceReport>,
    stop: StopHandle,
    health: ServiceHealth,
}

impl Running {
    async fn end(self) -> ServiceReport {
        self.stop.stop();
        self.task.await.unwrap()
    }
}

fn run(broker: &MemoryBroker, subscription: Subscription, target: impl Target) -> Running {
    let service = Service::builder(broker.clone()).subscribe(subscription, target).build().unwrap();
    let (stop, health) = (service.stop_handle(), service.health());
    let task =
        tokio::spawn(async move { service.run_until(std::future::pending::<()>()).await.unwrap() });
    Running { task, stop, health }
}

/// A function that records `user:step#attempt` and then runs `act`.
fn noting(
    seen: &Records,
    act: impl Fn(&UserCreated, u32) -> Result<(), HandlerError> + Send + Sync + 'static,
) -> impl Target {
    let (seen, act) = (Arc::clone(seen), Arc::new(act));
    each(move |event: NotificationEvent<UserCreated>, received: Received| {
        let (seen, act) = (Arc::clone(&seen), Arc::clone(&act));
        async move {
            let UserCreated { user_id, step } = &event.payload;
            record(&seen, format!("{user_id}:{step}#{}", received.attempt()));
            tokio::task::yield_now().await;
            act(&event.payload, received.attempt())
        }
    })
}

/// A mediator whose handlers record `created user` and `deleted user`.
fn noting_names(seen: &Records) -> EventMediator {
    struct Both(Records);
    impl EventHandler<UserCreated> for Both {
        async fn handle(&self, event: &UserCreated, _: &mut Scope) -> Result<(), HandlerError> {
            record(&self.0, format!("created {}", event.user_id));
            Ok(())
        }
    }
    impl EventHandler<UserDeleted> for Both {
        async fn handle(&self, event: &UserDeleted, _: &mut Scope) -> Result<(), HandlerError> {
            record(&self.0, format!("deleted {}", event.user_id));
            Ok(())
        }
    }
    EventMediator::builder()
        .event::<UserCreated, _>(Both(Arc::clone(seen)))
        .event::<UserDeleted, _>(Both(Arc::clone(seen)))
        .build()
        .unwrap()
}

fn dead_letters(broker: &MemoryBroker) -> Vec<(Message, DeadLetter)> {
    let messages = broker.messages("users.mailer.dead");
    let parse = |message: Message| {
        let letter = DeadLetter::from_headers(&message.headers).unwrap();
        (message, letter)
    };
    messages.into_iter().map(parse).collect()
}
