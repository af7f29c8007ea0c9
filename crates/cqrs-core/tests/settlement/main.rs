//! Tests of the order of commits, copies and settlements, on a broker that records all calls.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod committed;
mod order;
mod refused;
mod revoked;
mod scribe;
#[path = "../support/mod.rs"]
mod support;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Receipt, ShutdownReport};
use cqrs_core::consume::Incoming;
use cqrs_core::service::{ServiceError, ServiceReport, SubscriptionState, Target};
use cqrs_core::{
    Delivery, EventHandler, EventMediator, HandlerError, HandlerResultExt, Message, MessageBroker,
    NotificationEvent, PublishError, Received, Retry, Scope, Service, Subscription, batch, each,
    manual,
};
use cqrs_macros::Notification;
use scribe::{Scribe, Script};
use serde::{Deserialize, Serialize};
use support::{Fault, Lines, Log, RecordingBroker, Store, Transaction};

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "paid")]
struct Ordered {
    number: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "shipped")]
struct Shipped {
    number: u32,
}

/// Runs the service until the log has `last`, then stops it; returns the log.
async fn run(
    broker: &Scribe,
    retry: Retry,
    target: impl Target,
    last: &str,
) -> (Vec<String>, Result<ServiceReport, ServiceError>) {
    run_with(broker, paid(retry), target, last).await
}

fn paid(retry: Retry) -> Subscription {
    Subscription::to("paid").group("g").json::<Ordered>().retry(retry)
}

async fn run_with(
    broker: &Scribe,
    subscription: Subscription,
    target: impl Target,
    last: &str,
) -> (Vec<String>, Result<ServiceReport, ServiceError>) {
    let service = Service::builder(broker.clone()).subscribe(subscription, target).build().unwrap();
    let seen = async {
        while broker.log.count(last) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let limited = tokio::time::timeout(Duration::from_secs(600), seen);
    let report = service.run_until(limited).await;
    (broker.log.lines(), report)
}

fn failing() -> impl Target {
    each(|_: NotificationEvent<Ordered>, _: Received| async {
        Err(HandlerError::retryable("not yet"))
    })
}

fn delayed(seconds: u64) -> Retry {
    Retry::none().delayed([Duration::from_secs(seconds)])
}

/// Three messages of three keys.
fn three(script: Script) -> Scribe {
    let broker = Scribe::new(script);
    let message = |number: u8| {
        let event = NotificationEvent::new(Ordered { number: number.into() });
        let mut message = Incoming::new("paid", serde_json::to_vec(&event).unwrap());
        (message.key, message.partition) = (Some(vec![number].into()), Some(0));
        message.offset = Some(number.into());
        message
    };
    *broker.messages.lock().unwrap() = (1..=3).map(message).collect();
    broker
}
