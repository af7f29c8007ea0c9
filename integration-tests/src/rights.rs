//! Producers and consumers with few rights: success, or the refusal and its time; used by tests of rights.

#![allow(clippy::unwrap_used)] // A helper of tests fails the test.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_core::{
    HandlerError, Message, MessageBrokerExt, NotificationEvent, Received, Retry, Service,
    Subscribe, Subscription, each,
};
use cqrs_macros::Notification;
use cqrs_testkit::error_chain;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// The consumed event.
#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "rights")]
pub struct Checked {
    /// Any number.
    pub number: u32,
}

#[derive(Debug)]
struct Failed;

impl Error for Failed {}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not in this attempt")
    }
}

/// A refusal: its text, and the time until it was reported.
#[derive(Debug)]
pub struct Refusal {
    /// The text of an error and its causes, or of a subscription's state.
    pub text: String,
    /// The time since the start.
    pub after: Duration,
}

/// Publishes one message.
pub async fn publish(broker: &dyn Subscribe, message: Message) -> Result<(), Refusal> {
    let started = Instant::now();
    let published = broker.publish(message).await;
    published
        .map(drop)
        .map_err(|error| Refusal { text: error_chain(&error), after: started.elapsed() })
}

/// Two messages: one that becomes a dead letter, and one that is handled.
pub async fn fill(broker: &dyn Subscribe, topic: &str) {
    let body = serde_json::to_vec(&NotificationEvent::new(Checked { number: 7 })).unwrap();
    for body in [b"no event".to_vec(), body] {
        let message = Message::new(topic, body).with_key("k").with_name("Checked");
        broker.publish(message).await.unwrap();
    }
}

/// The subscription that reads them.
pub fn subscription(topic: &str, group: &str) -> Subscription {
    Subscription::to(topic.to_owned())
        .group(group.to_owned())
        .json::<Checked>()
        .retry(Retry::none())
}

/// Runs a service until both messages of [`fill`] are settled, or a refusal is reported. The second
/// message succeeds in the last of `attempts`; `fill` publishes them once the service consumes.
///
/// # Panics
/// When neither happens within 40 s.
pub async fn consume(
    broker: Arc<dyn Subscribe>,
    subscription: Subscription,
    attempts: u32,
    fill: impl Future<Output = ()>,
) -> Result<(), Refusal> {
    let started = Instant::now();
    let (handled, mut handles) = mpsc::unbounded_channel();
    let handler = each(move |event: NotificationEvent<Checked>, received: Received| {
        let handled = handled.clone();
        async move {
            match received.attempt() < attempts {
                true => Err(HandlerError::from(Failed)),
                false => Ok(handled.send(event.payload.number)?),
            }
        }
    });
    let service = Service::builder(broker).subscribe(subscription, handler).build().unwrap();
    let (health, stop) = (service.health(), service.stop_handle());
    let mut running = tokio::spawn(service.run_until(std::future::pending::<()>()));
    let mut is_handled = false;
    let mut fill = Some(fill);
    let refusal = loop {
        tokio::select! {
            Some(_) = handles.recv() => is_handled = true,
            ended = &mut running => {
                let error = ended.unwrap().expect_err("it was not stopped");
                return Err(Refusal { text: error_chain(&error), after: started.elapsed() });
            }
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        if health.is_ready()
            && let Some(fill) = fill.take()
        {
            fill.await;
        }
        let health = &health.subscriptions()[0];
        if is_handled && health.counts.dead_lettered > 0 {
            break None;
        }
        let state = format!("{:?}", health.state);
        // A lost channel is opened again, or `run` ends with an error.
        if is_refusal(&state) && !state.starts_with("Disconnected") {
            break Some(Refusal { text: state, after: started.elapsed() });
        }
        assert!(
            started.elapsed() < Duration::from_secs(40),
            "neither handled nor refused: {state}"
        );
    };
    stop.stop();
    let _report = running.await;
    refusal.map_or(Ok(()), Err)
}

/// Set if a text reports a missing right.
pub fn is_refusal(text: &str) -> bool {
    let text = text.to_lowercase();
    ["authoriz", "access_refused", "access refused", "acls", "no right"]
        .iter()
        .any(|word| text.contains(word))
}
