//! Tests of messages that are held because events of their handlers are not published: order, causes, bounds.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Confirmation, Intake, Receipt, ShutdownReport};
use cqrs_core::consume::DeadLetter;
use cqrs_core::service::{ServiceHealth, ServiceReport, StopHandle, SubscriptionState};
use cqrs_core::{
    EventHandler, EventMediator, HandlerError, MemoryBroker, Message, MessageBroker,
    MessageBrokerExt, NotificationEvent, PublishError, PublishErrorKind, Scope, Service, StartAt,
    Subscription,
};
use cqrs_macros::Notification;
use serde::{Deserialize, Serialize};
use support::Lines;
use tokio::task::JoinHandle;
use tokio::time::Instant;

#[derive(Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "jobs", key = "number")]
struct Job {
    number: u32,
    /// Topic, key and size of the events that its handler emits.
    events: Vec<(String, String, usize)>,
}

#[derive(Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "unused", key = "key")]
struct Emitted {
    key: String,
    index: usize,
    note: String,
}

struct Emit;

impl EventHandler<Job> for Emit {
    async fn handle(&self, job: &Job, scope: &mut Scope) -> Result<(), HandlerError> {
        for (index, (topic, key, size)) in job.events.iter().enumerate() {
            let event = Emitted { key: key.clone(), index, note: "x".repeat(*size) };
            scope.emit(NotificationEvent::new(event).with_topic(topic.clone()));
        }
        Ok(())
    }
}

/// Refuses all messages with the given error, or confirms them.
#[derive(Debug, Clone)]
struct Refusing(Arc<Mutex<Option<PublishErrorKind>>>, Intake);

impl Refusing {
    fn all(kind: PublishErrorKind) -> Self {
        Self(Arc::new(Mutex::new(Some(kind))), Intake::default())
    }

    fn set(&self, kind: Option<PublishErrorKind>) {
        *self.0.lock().unwrap() = kind;
    }
}

impl MessageBroker for Refusing {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(async { self.try_enqueue(message) })
    }
    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        let (pending, receipt) = self.1.try_admit(message)?;
        match *self.0.lock().unwrap() {
            Some(kind) => pending.fail(kind, "as the test says", None),
            None => pending.confirm(Confirmation::default()),
        }
        Ok(receipt)
    }
    fn state(&self) -> BrokerState {
        BrokerState::Ready
    }
    fn shutdown(&self, _: Duration) -> BoxFuture<'_, ShutdownReport> {
        Box::pin(async { ShutdownReport::default() })
    }
}

struct Running {
    task: JoinHandle<ServiceReport>,
    stop: StopHandle,
    health: ServiceHealth,
}

impl Running {
    fn state(&self) -> SubscriptionState {
        self.health.subscriptions().remove(0).state
    }

    async fn stuck(&self, on: &str) {
        until(
            on,
            || matches!(self.state(), SubscriptionState::Stuck { reason } if reason.contains(on)),
        )
        .await;
    }

    async fn end(self) -> ServiceReport {
        self.stop.stop();
        self.task.await.unwrap()
    }
}

/// Consumes jobs from `memory`; their events go to `to`.
fn run(
    memory: &MemoryBroker,
    to: impl MessageBroker,
    options: impl FnOnce(Subscription) -> Subscription,
) -> Running {
    let events = EventMediator::builder().event::<Job, _>(Emit).broker(to).build().unwrap();
    let subscription = options(Subscription::to("jobs").group("g").json::<Job>());
    let service = Service::builder(memory.clone()).subscribe(subscription, events).build().unwrap();
    let (stop, health) = (service.stop_handle(), service.health());
    let task =
        tokio::spawn(async move { service.run_until(std::future::pending::<()>()).await.unwrap() });
    Running { task, stop, health }
}

async fn send(memory: &MemoryBroker, number: u32, events: &[(&str, &str, usize)]) {
    memory.create_group("jobs", "g", StartAt::Earliest);
    let event = |&(topic, key, size): &(&str, &str, usize)| (topic.into(), key.into(), size);
    let events = events.iter().map(event).collect();
    memory.publish_event(Job { number, events }).await.unwrap();
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(3600);
    while !condition() {
        assert!(Instant::now() < end, "never seen: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The text of the only dead letter.
async fn dead_letter(memory: &MemoryBroker) -> String {
    until("a dead letter", || !memory.messages("jobs.g.dead").is_empty()).await;
    let letters = memory.messages("jobs.g.dead");
    assert_eq!(letters.len(), 1);
    DeadLetter::from_headers(&letters[0].headers).unwrap().error
}

fn indices(memory: &MemoryBroker, topic: &str) -> Vec<usize> {
    let index = |message: &Message| {
        let event: NotificationEvent<Emitted> = serde_json::from_slice(&message.body).unwrap();
        event.payload.index
    };
    memory.messages(topic).iter().map(index).collect()
}

const ONE: &[(&str, &str, usize)] = &[("out", "1", 0)];

#[tokio::test(start_paused = true)]
async fn oversized_event_does_not_hold_up_its_key() {
    let memory = MemoryBroker::builder().max_message_size(4_096).build();
    send(&memory, 1, &[("out", "1", 5_000), ("out", "1", 0)]).await;
    let running = run(&memory, memory.clone(), |it| it);
    let text = dead_letter(&memory).await;
    assert_eq!(indices(&memory, "out"), [1]);
    assert!(text.contains("can never be published") && text.contains("too large"), "{text}");
    let _ = running.end().await;
}

#[tokio::test(start_paused = true)]
async fn dead_letter_names_all_undelivered_events() {
    let memory = MemoryBroker::new();
    let strict = MemoryBroker::builder().max_message_size(4_096).require_subscriber(true).build();
    send(&memory, 1, &[("elsewhere", "1", 0), ("out", "2", 5_000)]).await;
    let running = run(&memory, strict, |it| it);
    let text = dead_letter(&memory).await;
    for part in ["\"elsewhere\" (Unroutable)", "\"out\" (TooLarge)", "too large"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let _ = running.end().await;
}

#[tokio::test(start_paused = true)]
async fn held_events_of_a_key_keep_their_order() {
    let memory = MemoryBroker::builder().require_subscriber(true).build();
    send(&memory, 1, &[("out", "1", 0), ("out", "1", 0), ("out", "2", 0)]).await;
    let running = run(&memory, memory.clone(), |it| it);
    running.stuck("unroutable").await;
    memory.create_group("out", "g", StartAt::Earliest);
    memory.faults().refuse_messages(1);
    until("all are published", || memory.messages("out").len() == 3).await;
    let mut published = indices(&memory, "out");
    published.retain(|index| *index != 2);
    assert_eq!(published, [0, 1]);
    let _ = running.end().await;
}

#[tokio::test(start_paused = true)]
async fn held_event_that_turns_invalid_is_dead_lettered() {
    let (memory, refusing) = (MemoryBroker::new(), Refusing::all(PublishErrorKind::Unroutable));
    send(&memory, 1, ONE).await;
    let running = run(&memory, refusing.clone(), |it| it);
    running.stuck("unroutable").await;
    refusing.set(Some(PublishErrorKind::Invalid));
    let text = dead_letter(&memory).await;
    assert!(text.contains("can never be published") && text.contains("(Invalid)"), "{text}");
    until("it is not held", || running.state() == SubscriptionState::Consuming).await;
    assert_eq!(running.end().await.subscriptions[0].counts.dead_lettered, 1);
}

#[tokio::test(start_paused = true)]
async fn new_cause_of_a_held_message_is_shown_and_logged() {
    let lines = Lines::default();
    let _guard = lines.record();
    let (memory, refusing) = (MemoryBroker::new(), Refusing::all(PublishErrorKind::Unroutable));
    send(&memory, 1, ONE).await;
    let running = run(&memory, refusing.clone(), |it| it);
    running.stuck("unroutable").await;
    refusing.set(Some(PublishErrorKind::Closed));
    running.stuck("the broker is shut down").await;
    let held = lines.with("the broker refuses the handler's event");
    assert!(held.len() == 2 && held[1].contains("the broker is shut down"), "{held:?}");
    refusing.set(None);
    until("it is acked", || memory.unsettled("jobs", "g") == 0).await;
    assert_eq!(running.end().await.subscriptions[0].counts.handled, 1);
}

#[tokio::test(start_paused = true)]
async fn message_is_held_for_ten_minutes_at_most() {
    let (memory, refusing) = (MemoryBroker::new(), Refusing::all(PublishErrorKind::Unroutable));
    send(&memory, 1, ONE).await;
    let running = run(&memory, refusing, |it| it);
    running.stuck("unroutable").await;
    let since = Instant::now();
    let text = dead_letter(&memory).await;
    let (held, limit) = (since.elapsed(), Duration::from_secs(600));
    assert!(held <= limit && held + Duration::from_secs(1) > limit, "{held:?}");
    for part in ["not published within 10 min", "unroutable", "\"out\" (Unroutable)"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let _ = running.end().await;
}

/// A dead letter cannot be stored either, and the events may have a destination.
#[tokio::test(start_paused = true)]
async fn outage_does_not_end_the_hold() {
    let (memory, refusing) = (MemoryBroker::new(), Refusing::all(PublishErrorKind::Unroutable));
    send(&memory, 1, ONE).await;
    let running = run(&memory, refusing.clone(), |it| it);
    running.stuck("unroutable").await;
    refusing.set(Some(PublishErrorKind::NotSent));
    tokio::time::sleep(Duration::from_secs(1_200)).await;
    assert_eq!(memory.messages("jobs.g.dead").len(), 0);
    refusing.set(None);
    until("it is acked", || memory.unsettled("jobs", "g") == 0).await;
    assert_eq!(running.end().await.subscriptions[0].counts.handled, 1);
}

#[tokio::test(start_paused = true)]
async fn half_of_max_unsettled_is_held_at_most() {
    for (max_unsettled, held) in [(Some(5), 2), (Some(1), 1), (None, 8)] {
        let (memory, refusing) = (MemoryBroker::new(), Refusing::all(PublishErrorKind::Unroutable));
        for number in 0..=held {
            send(&memory, number, ONE).await;
        }
        let running = run(&memory, refusing, |it| match max_unsettled {
            Some(most) => it.max_unsettled(most),
            None => it,
        });
        let started = Instant::now();
        if max_unsettled == Some(1) {
            running.stuck("unroutable").await;
        } else {
            let text = dead_letter(&memory).await;
            assert!(started.elapsed() < Duration::from_secs(5));
            assert!(text.contains(&format!("{held} messages are held already")), "{text}");
        }
        assert_eq!(running.end().await.subscriptions[0].counts.given_back, u64::from(held));
    }
}
