//! The event that both sides of the interop tests share, and [`TestService`], which consumes it.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

pub mod user_joined;

use std::time::Duration;

use cqrs_core::event::Timestamp;
use cqrs_core::message::CorrelationId;
use cqrs_core::service::StopHandle;
use cqrs_core::{
    HandlerError, Mediator, MessageBroker, Notification, NotificationEvent, Received,
    RequestHandler, Scope, Service, Subscribe, Subscription, each,
};
use cqrs_macros::{Command, Notification};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

use crate::consuming::TIMEOUT;
use crate::consuming::fixture::until;

/// `UserCreated` of `peers/events.py`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "UserCreated", topic = "user_events", key = "user_id")]
pub struct UserCreated {
    /// Also the key.
    #[serde(alias = "userId")]
    pub user_id: String,
    /// Text beyond ASCII.
    pub email: String,
    /// A whole number.
    pub visits: u64,
    /// A number with a fraction.
    pub balance: f64,
    /// A list.
    pub tags: Vec<String>,
    /// `null`, or a text.
    #[serde(alias = "referredBy", default)]
    pub referred_by: Option<String>,
}

/// Payloads with difficult characters, numbers and empty values.
pub fn users() -> Vec<UserCreated> {
    let user = |user_id: &str, email: &str, visits, balance| UserCreated {
        user_id: user_id.into(),
        email: email.into(),
        visits,
        balance,
        tags: Vec::new(),
        referred_by: None,
    };
    let mut users = vec![
        user("1", "a@b", 3, 1.5),
        user("пользователь-2", "\"quoted\" \\ \u{8}\u{c}\n\r\t\u{1} \u{7f} </script>", 0, 0.0),
        user("3", "\u{e4}\u{1f980}\u{2028}\u{0}", u64::from(u32::MAX), -12_345.678_9),
        user("", "", 9_007_199_254_740_993, 1e-7),
    ];
    users[0].referred_by = Some("nobody".into());
    users[2].tags = vec!["vip".into(), String::new(), "\u{442}\u{435}\u{433}".into()];
    users
}

/// With and without a fraction, in microseconds since 1970.
const TIMES: [i64; 4] =
    [1_704_164_645_678_901, 1_704_164_645_000_000, 1_704_164_645_000_010, 1_000_000];

/// Events of [`users`] for `topic`, at times with and without a fraction.
pub fn events(topic: &str) -> Vec<NotificationEvent<UserCreated>> {
    let events = users().into_iter().zip(TIMES).map(|(user, micros)| {
        NotificationEvent::new(user)
            .with_topic(topic.to_owned())
            .with_timestamp(Timestamp::from_unix_micros(micros))
    });
    events.collect()
}

#[derive(Command)]
#[cqrs(crate = "cqrs_core", error = HandlerError)]
struct PublishEvents(Vec<NotificationEvent<UserCreated>>);

struct PublishEventsHandler;

impl RequestHandler<PublishEvents> for PublishEventsHandler {
    async fn handle(&self, command: PublishEvents, scope: &mut Scope) -> Result<(), HandlerError> {
        for event in command.0 {
            scope.emit(event);
        }
        Ok(())
    }
}

/// The correlation id of the messages of [`publish_events`].
pub const CORRELATION: &str = "c-\u{1f980}-1";

/// Publishes events as a service does: a command, and its handler's events.
pub async fn publish_events(broker: impl MessageBroker, events: &[NotificationEvent<UserCreated>]) {
    let mediator =
        Mediator::builder().handle::<PublishEvents, _>(PublishEventsHandler).broker(broker);
    let mediator = mediator.build().unwrap();
    let scope = Scope::new().with(CorrelationId::new(CORRELATION));
    mediator.send_in(scope, PublishEvents(events.to_vec())).await.unwrap();
    assert_eq!(mediator.shutdown(TIMEOUT).await.undelivered, 0);
}

/// `event` in the form of a request to a peer.
pub fn spec(event: &NotificationEvent<UserCreated>) -> Value {
    json!({
        "payload": event.payload,
        "event_id": event.event_id,
        "event_timestamp": event.event_timestamp,
    })
}

/// `events`, and some of python-cqrs's own: with a naive time, with and without a fraction, and with its
/// own id and time.
pub fn specs(events: &[NotificationEvent<UserCreated>]) -> Vec<Value> {
    let mut specs: Vec<_> = events.iter().map(spec).collect();
    for time in ["2024-01-02T03:04:05.678901", "2024-01-02T03:04:05"] {
        specs.push(json!({ "payload": users()[0], "event_timestamp": time }));
    }
    specs.push(json!({ "payload": users()[0] }));
    specs
}

/// Checks that a peer describes `event`: the same id, name, topic, instant and payload.
#[track_caller]
pub fn assert_same(described: &Value, event: &NotificationEvent<UserCreated>) {
    let expected = json!({
        "event_id": event.event_id,
        "event_name": event.event_name,
        "topic": event.topic,
        "micros": event.event_timestamp.unix_micros(),
        "payload": event.payload,
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&described[field], value, "{field} in {described}");
    }
}

/// The event that a peer describes.
pub fn described(event: &Value) -> NotificationEvent<UserCreated> {
    let payload: UserCreated = serde_json::from_value(event["payload"].clone()).unwrap();
    let topic = event["topic"].as_str().unwrap().to_owned();
    NotificationEvent::new(payload)
        .with_id(event["event_id"].as_str().unwrap().parse::<Uuid>().unwrap())
        .with_timestamp(Timestamp::from_unix_micros(event["micros"].as_i64().unwrap()))
        .with_topic(topic)
}

/// Bytes in the form that peers use.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A service of ours that sends each handled event to the test.
#[derive(Debug)]
pub struct TestService<P> {
    events: mpsc::UnboundedReceiver<(NotificationEvent<P>, Received)>,
    stop: StopHandle,
    running: JoinHandle<Result<(), String>>,
}

impl<P: Notification> TestService<P> {
    /// Starts it and waits until it consumes. Its handler always succeeds.
    pub async fn open(broker: impl Subscribe, subscription: Subscription) -> Self {
        let (handled, events) = mpsc::unbounded_channel();
        let handler = each(move |event: NotificationEvent<P>, received: Received| {
            let handled = handled.clone();
            async move {
                let _test_has_ended = handled.send((event, received));
                Ok::<(), HandlerError>(())
            }
        });
        let service = Service::builder(broker).subscribe(subscription, handler).build().unwrap();
        let (stop, health) = (service.stop_handle(), service.health());
        let running = tokio::spawn(async move {
            let ended = service.run_until(std::future::pending::<()>()).await;
            ended.map(drop).map_err(|error| error.to_string())
        });
        until("the service to consume", async || {
            assert!(!running.is_finished(), "the service ended: {health:?}");
            health.is_ready()
        })
        .await;
        Self { events, stop, running }
    }

    /// The next event and its message.
    pub async fn next(&mut self) -> (NotificationEvent<P>, Received) {
        timeout(TIMEOUT, self.events.recv()).await.expect("an event in time").unwrap()
    }

    /// The next events.
    pub async fn take(&mut self, count: usize) -> Vec<NotificationEvent<P>> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.next().await.0);
        }
        events
    }

    /// The events received so far.
    pub fn drain(&mut self) -> Vec<NotificationEvent<P>> {
        std::iter::from_fn(|| self.events.try_recv().ok()).map(|(event, _)| event).collect()
    }

    /// Stops it gracefully.
    pub async fn stop(self) {
        self.stop.stop();
        let ended = timeout(Duration::from_secs(60), self.running).await;
        ended.expect("stopped in time").unwrap().unwrap();
    }
}
