//! Producers and consumers with few rights: whether they work, or what says why not, and when.

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
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// What is consumed.
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

/// A refusal: its words, and how long it took to see them.
#[derive(Debug)]
pub struct Told {
    /// The words of an error and its causes, or of a subscription's state.
    pub text: String,
    /// Since the start.
    pub after: Duration,
}

/// Publishes one message.
pub async fn publish(broker: &dyn Subscribe, message: Message) -> Result<(), Told> {
    let started = Instant::now();
    let published = broker.publish(message).await;
    published.map(drop).map_err(|error| Told { text: causes(&error), after: started.elapsed() })
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

/// Runs a service until both messages of [`fill`] have their end, or a refusal is seen. The second
/// message is handled in the last of so many attempts; `fill` publishes them, once it consumes.
///
/// # Panics
/// When neither is seen within 40 s.
pub async fn consume(
    broker: Arc<dyn Subscribe>,
    subscription: Subscription,
    attempts: u32,
    fill: impl Future<Output = ()>,
) -> Result<(), Told> {
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
                let error = ended.unwrap().expect_err("nobody stopped it");
                return Err(Told { text: causes(&error), after: started.elapsed() });
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
        // A lost channel is no end: it is opened again, or `run` ends with an error.
        if is_refusal(&state) && !state.starts_with("Disconnected") {
            break Some(Told { text: state, after: started.elapsed() });
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

/// Whether a text says that a right is missing.
pub fn is_refusal(text: &str) -> bool {
    let text = text.to_lowercase();
    ["authoriz", "access_refused", "access refused", "acls", "no right"]
        .iter()
        .any(|word| text.contains(word))
}

/// An error and all that is under it, in words.
fn causes(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words += &format!(" <- {error}");
        cause = error.source();
    }
    words
}
