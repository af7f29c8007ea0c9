//! The subscriber runtime on the memory broker, through the public interface alone.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_core::{
    DeadLetter, DeadLetterReason, Delivery, EventHandler, EventMediator, HandlerError,
    HandlerResultExt, MemoryBroker, Message, MessageBrokerExt, NotificationEvent, OnDecodeError,
    Received, Retry, Scope, Service, ServiceHealth, ServiceReport, StopHandle, Subscription,
    SubscriptionState, Target, batch, each, manual,
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

type Seen = Arc<Mutex<Vec<String>>>;

fn note(seen: &Seen, text: impl Into<String>) {
    seen.lock().unwrap().push(text.into());
}

fn noted(seen: &Seen) -> Vec<String> {
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

/// Waits for a condition; with paused time this costs none.
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

/// A function that notes `user:step#attempt` and does what `act` says.
fn noting(
    seen: &Seen,
    act: impl Fn(&UserCreated, u32) -> Result<(), HandlerError> + Send + Sync + 'static,
) -> impl Target {
    let (seen, act) = (Arc::clone(seen), Arc::new(act));
    each(move |event: NotificationEvent<UserCreated>, received: Received| {
        let (seen, act) = (Arc::clone(&seen), Arc::clone(&act));
        async move {
            let UserCreated { user_id, step } = &event.payload;
            note(&seen, format!("{user_id}:{step}#{}", received.attempt()));
            tokio::task::yield_now().await;
            act(&event.payload, received.attempt())
        }
    })
}

fn dead_letters(broker: &MemoryBroker) -> Vec<(Message, DeadLetter)> {
    let messages = broker.messages("users.mailer.dead");
    let parse = |message: Message| {
        let letter = DeadLetter::from_headers(&message.headers).unwrap();
        (message, letter)
    };
    messages.into_iter().map(parse).collect()
}

#[tokio::test(start_paused = true)]
async fn events_reach_the_handlers_of_a_mediator_and_are_acked() {
    struct Welcome(Seen);
    impl EventHandler<UserCreated> for Welcome {
        async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
            let received = scope.get::<Received>().unwrap();
            note(&self.0, format!("{} in {}", event.user_id, received.group()));
            Ok(())
        }
    }
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    let events =
        EventMediator::builder().event::<UserCreated, _>(Welcome(seen.clone())).build().unwrap();
    publish(&broker, "ada", 1).await;
    let running = run(&broker, users(), events);
    until("the handler ran", || noted(&seen).len() == 1).await;
    until("ready", || running.health.is_ready()).await;
    let report = running.end().await;
    assert_eq!(noted(&seen), ["ada in mailer"]);
    assert_eq!(report.subscriptions[0].counts.handled, 1);
    assert!(broker.subscribe("users", "mailer").try_recv().is_none(), "it was acked");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_retried_by_the_schedule_and_then_dead() {
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    let started = Instant::now();
    let times: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let target = noting(&seen, {
        let times = Arc::clone(&times);
        move |_, _| {
            times.lock().unwrap().push(started.elapsed());
            Err(HandlerError::retryable("no such host"))
        }
    });
    publish(&broker, "ada", 1).await;
    let running = run(&broker, users(), target);
    until("a dead letter", || dead_letters(&broker).len() == 1).await;
    let report = running.end().await;
    let attempts: Vec<_> = (1..=7).map(|attempt| format!("ada:1#{attempt}")).collect();
    assert_eq!(noted(&seen), attempts);
    let times = times.lock().unwrap().clone();
    let waits: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let schedule = [50, 100, 250, 10_000, 60_000, 300_000].map(Duration::from_millis);
    for (wait, expected) in waits.iter().zip(schedule) {
        let late = wait.saturating_sub(expected);
        assert!(*wait >= expected && late < Duration::from_millis(50), "{waits:?}");
    }
    let (message, letter) = dead_letters(&broker).remove(0);
    assert_eq!(message.key.as_deref(), Some(b"ada".as_slice()));
    assert_eq!(message.body, broker.messages("users")[0].body, "byte for byte");
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Exhausted, 7));
    assert_eq!((&*letter.topic, &*letter.group), ("users", "mailer"));
    assert_eq!((letter.offset, &*letter.error), (Some(0), "no such host"));
    let counts = report.subscriptions[0].counts;
    assert_eq!((counts.dead_lettered, counts.failed_attempts, counts.handled), (1, 7, 0));
}

#[tokio::test(start_paused = true)]
async fn a_permanent_failure_is_dead_at_once_and_a_panic_by_the_schedule() {
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    let target = noting(&seen, |event, _| match event.step {
        1 => Err("gone").permanent(),
        2 => panic!("index out of bounds"),
        _ => Ok(()),
    });
    for step in 1..=3 {
        publish(&broker, "ada", step).await;
    }
    let retry = Retry::none().immediate([Duration::from_millis(50)]);
    let running = run(&broker, users().retry(retry), target);
    until("the last one", || noted(&seen).contains(&"ada:3#1".to_owned())).await;
    let report = running.end().await;
    assert_eq!(noted(&seen), ["ada:1#1", "ada:2#1", "ada:2#2", "ada:3#1"]);
    let letters: Vec<_> = dead_letters(&broker).into_iter().map(|(_, letter)| letter).collect();
    assert_eq!(letters[0].reason, DeadLetterReason::Permanent);
    assert_eq!((letters[0].attempts, &*letters[0].error), (1, "gone"));
    assert_eq!(letters[1].reason, DeadLetterReason::Panic);
    assert_eq!((letters[1].attempts, &*letters[1].error), (2, "panicked: index out of bounds"));
    let counts = report.subscriptions[0].counts;
    assert_eq!((counts.handled, counts.dead_lettered, counts.panics), (1, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn keys_run_in_parallel_and_each_in_order() {
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    let running_now: Arc<Mutex<Vec<String>>> = Arc::default();
    let most = Arc::new(Mutex::new(0));
    let target = {
        let (seen, now, most) = (seen.clone(), running_now.clone(), most.clone());
        each(move |event: NotificationEvent<UserCreated>, _: Received| {
            let (seen, now, most) = (seen.clone(), now.clone(), most.clone());
            async move {
                let UserCreated { user_id, step } = event.payload;
                {
                    let mut now = now.lock().unwrap();
                    assert!(!now.contains(&user_id), "two of {user_id} at once");
                    now.push(user_id.clone());
                    let mut most = most.lock().unwrap();
                    *most = now.len().max(*most);
                }
                tokio::time::sleep(Duration::from_millis(u64::from(step % 7))).await;
                note(&seen, format!("{user_id}:{step}"));
                now.lock().unwrap().retain(|running| *running != user_id);
                Ok::<(), HandlerError>(())
            }
        })
    };
    for step in 0..300_u32 {
        publish(&broker, &format!("u{}", step % 10), step).await;
    }
    let running = run(&broker, users().concurrency(4), target);
    until("all of them", || noted(&seen).len() == 300).await;
    let report = running.end().await;
    assert_eq!(report.subscriptions[0].counts.handled, 300);
    assert_eq!(*most.lock().unwrap(), 4, "as many as allowed, never more");
    for user in 0..10 {
        let prefix = format!("u{user}:");
        let steps: Vec<u32> = noted(&seen)
            .iter()
            .filter_map(|text| text.strip_prefix(&prefix)?.parse().ok())
            .collect();
        assert!(steps.is_sorted() && steps.len() == 30, "{steps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_poison_key_waits_alone() {
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    let target = noting(&seen, |event, _| match &*event.user_id {
        "poison" => Err(HandlerError::retryable("no")),
        _ => Ok(()),
    });
    publish(&broker, "poison", 1).await;
    publish(&broker, "poison", 2).await;
    for step in 0..50 {
        publish(&broker, &format!("u{step}"), step).await;
    }
    let retry = Retry::none().delayed([Duration::from_secs(60)]);
    let started = Instant::now();
    let running = run(&broker, users().concurrency(2).retry(retry), target);
    until("the others", || noted(&seen).len() == 51).await;
    assert!(started.elapsed() < Duration::from_secs(1), "nobody waited for the poison key");
    assert!(!noted(&seen).contains(&"poison:2#1".to_owned()), "its own key waits");
    until("both are dead", || dead_letters(&broker).len() == 2).await;
    let mine: Vec<_> = noted(&seen).into_iter().filter(|t| t.starts_with("poison")).collect();
    assert_eq!(mine, ["poison:1#1", "poison:1#2", "poison:2#1", "poison:2#2"]);
    drop(running.end().await);
}

#[tokio::test(start_paused = true)]
async fn strict_order_is_the_default_whatever_the_key() {
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    let target = noting(&seen, |event, attempt| match (event.step, attempt) {
        (1, 1..=2) => Err(HandlerError::retryable("not yet")),
        _ => Ok(()),
    });
    for step in 0..4 {
        publish(&broker, &format!("u{step}"), step).await;
    }
    let retry = Retry::none().delayed([Duration::from_secs(10), Duration::from_secs(60)]);
    let running = run(&broker, users().retry(retry), target);
    until("all of them", || noted(&seen).len() == 6).await;
    assert_eq!(noted(&seen), ["u0:0#1", "u1:1#1", "u1:1#2", "u1:1#3", "u2:2#1", "u3:3#1"]);
    drop(running.end().await);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_event_goes_by_its_policy() {
    let deleted = r#"{"event_name":"UserDeleted","payload":{"user_id":"x"}}"#;
    let bodies = ["garbage", deleted, "", "[]", r#"{"event_name":"UserCreated","payload":{}}"#];
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    for body in bodies {
        publish_raw(&broker, body).await;
    }
    publish(&broker, "ada", 1).await;
    let running = run(&broker, users(), noting(&seen, |_, _| Ok(())));
    until("the good one", || noted(&seen).len() == 1).await;
    let report = running.end().await;
    let letters: Vec<_> = dead_letters(&broker)
        .into_iter()
        .map(|(message, letter)| (message.body, letter.reason, letter.attempts))
        .collect();
    let dead = |body: &'static str, reason| (body.into(), reason, 0);
    assert_eq!(
        letters,
        [
            dead("garbage", DeadLetterReason::Decode),
            dead(deleted, DeadLetterReason::UnknownType),
            dead("[]", DeadLetterReason::Decode),
            dead(bodies[4], DeadLetterReason::Decode),
        ]
    );
    let counts = report.subscriptions[0].counts;
    assert_eq!((counts.skipped, counts.handled, counts.failed_attempts), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn undecodable_messages_can_be_handed_over_as_values() {
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    publish_raw(&broker, "garbage").await;
    publish_raw(&broker, "").await;
    publish(&broker, "ada", 1).await;
    let subscription = users()
        .on_decode_error(OnDecodeError::Handle)
        .on_empty(OnDecodeError::Handle)
        .undecodable({
            let seen = seen.clone();
            move |case: cqrs_core::Undecodable, received: Received| {
                note(&seen, format!("{case} at {:?}", received.offset));
                if let cqrs_core::Undecodable::Malformed(error) = &case {
                    assert_eq!(error.bytes(), "garbage", "the raw bytes");
                }
                async { Ok(()) }
            }
        });
    let running = run(&broker, subscription, noting(&seen, |_, _| Ok(())));
    until("the good one", || noted(&seen).len() == 3).await;
    drop(running.end().await);
    let seen = noted(&seen);
    assert!(
        seen[0].starts_with("malformed message: ") && seen[0].ends_with("at Some(0)"),
        "{seen:?}"
    );
    assert_eq!(seen[1..], ["the message is empty at Some(1)", "ada:1#1"]);
    assert!(dead_letters(&broker).is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_stop_policy_ends_the_service_with_an_error_and_loses_nothing() {
    let broker = MemoryBroker::new();
    publish_raw(&broker, "garbage").await;
    let service = Service::builder(broker.clone())
        .subscribe(
            users().on_decode_error(OnDecodeError::Stop),
            noting(&Seen::default(), |_, _| Ok(())),
        )
        .build()
        .unwrap();
    let health = service.health();
    let error = service.run_until(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(error.subscription, "mailer@users");
    assert!(error.detail.contains("offset Some(0)"), "{error}");
    assert!(!health.is_ready() && !health.is_live());
    assert!(matches!(health.subscriptions()[0].state, SubscriptionState::Failed { .. }));
    let left = broker.subscribe("users", "mailer").try_recv().expect("it was given back");
    assert_eq!(left.message().body, "garbage");
}

#[tokio::test(start_paused = true)]
async fn decoders_can_skip_change_and_refuse() {
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    publish_raw(&broker, "skip me").await;
    publish_raw(&broker, "xxx").await;
    publish_raw(&broker, r#"v1:{"event_name":"UserCreated","payload":{"user_id":"ada","step":1}}"#)
        .await;
    let subscription = users().decoder(|mut message: cqrs_core::Incoming| async move {
        let body = message.bytes();
        if &*body == b"skip me" {
            return Ok(None);
        }
        match body.strip_prefix(b"v1:") {
            None => Err(cqrs_core::DecodeError::malformed("no version")),
            Some(body) => {
                message.body = Some(body.to_vec().into());
                Ok(Some(message))
            }
        }
    });
    let running = run(&broker, subscription, noting(&seen, |_, _| Ok(())));
    until("the good one", || noted(&seen).len() == 1).await;
    let report = running.end().await;
    assert_eq!(report.subscriptions[0].counts.skipped, 1);
    let (message, letter) = dead_letters(&broker).remove(0);
    assert_eq!(
        (&*message.body, &*letter.error),
        (b"xxx".as_slice(), "malformed message: no version")
    );
}

#[tokio::test(start_paused = true)]
async fn several_types_of_one_topic_are_routed_by_name() {
    struct Both(Seen);
    impl EventHandler<UserCreated> for Both {
        async fn handle(&self, event: &UserCreated, _: &mut Scope) -> Result<(), HandlerError> {
            note(&self.0, format!("created {}", event.user_id));
            Ok(())
        }
    }
    impl EventHandler<UserDeleted> for Both {
        async fn handle(&self, event: &UserDeleted, _: &mut Scope) -> Result<(), HandlerError> {
            note(&self.0, format!("deleted {}", event.user_id));
            Ok(())
        }
    }
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    let events = EventMediator::builder()
        .event::<UserCreated, _>(Both(seen.clone()))
        .event::<UserDeleted, _>(Both(seen.clone()))
        .build()
        .unwrap();
    publish(&broker, "ada", 1).await;
    publish_raw(&broker, r#"{"eventName":"UserDeleted","payload":{"user_id":"bob"}}"#).await;
    publish_raw(&broker, r#"{"event_name":"UserMoved","payload":{"user_id":"bob"}}"#).await;
    // The frame's name is believed only where it is known.
    let moved =
        Message::new("users", r#"{"event_name":"UserDeleted","payload":{"user_id":"eve"}}"#);
    broker.publish(moved.with_name("application/x")).await.unwrap();
    let running = run(&broker, users().json::<UserDeleted>(), events);
    until("three", || noted(&seen).len() == 3).await;
    drop(running.end().await);
    assert_eq!(noted(&seen), ["created ada", "deleted bob", "deleted eve"]);
    assert_eq!(dead_letters(&broker)[0].1.reason, DeadLetterReason::UnknownType);
}

#[tokio::test(start_paused = true)]
async fn a_manual_handler_settles_and_what_it_drops_comes_again_in_order() {
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    let target = manual({
        let seen = seen.clone();
        move |event: NotificationEvent<UserCreated>, delivery: Delivery| {
            let seen = seen.clone();
            async move {
                let step = event.payload.step;
                note(&seen, format!("{step}#{}", delivery.attempt()));
                match (step, delivery.attempt()) {
                    (1, 1) => drop(delivery),
                    (1, 2) => delivery.give_back(),
                    (1, 3) => delivery.retry_later(Duration::from_secs(10)).await.unwrap(),
                    (2, _) => delivery.dead_letter(HandlerError::permanent("no")).await.unwrap(),
                    (3, 1) => panic!("the delivery goes down with it"),
                    (4, _) => {
                        // Settled elsewhere, later: the next one of the key waits.
                        tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_secs(5)).await;
                            note(&seen, "late");
                            delivery.ack().await.unwrap();
                        });
                    }
                    _ => delivery.ack().await.unwrap(),
                }
            }
        }
    });
    for step in 1..=5 {
        publish(&broker, "ada", step).await;
    }
    let running = run(&broker, users().concurrency(4), target);
    until("the last one", || noted(&seen).iter().any(|text| text == "5#1")).await;
    let report = running.end().await;
    assert_eq!(
        noted(&seen),
        ["1#1", "1#2", "1#3", "1#4", "2#1", "3#1", "3#2", "4#1", "late", "5#1"]
    );
    let counts = report.subscriptions[0].counts;
    assert_eq!((counts.handled, counts.dead_lettered, counts.panics), (4, 1, 1));
    assert_eq!(dead_letters(&broker)[0].1.attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn batches_are_filled_by_size_and_time_and_a_poison_event_is_isolated() {
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    let target = batch(3, Duration::from_secs(1), {
        let seen = seen.clone();
        move |events: Vec<(NotificationEvent<UserCreated>, Received)>| {
            let steps: Vec<u32> = events.iter().map(|(event, _)| event.payload.step).collect();
            note(&seen, format!("{steps:?}"));
            let poisoned = steps.contains(&5);
            async move {
                match poisoned {
                    true => Err(HandlerError::retryable("poison")),
                    false => Ok(()),
                }
            }
        }
    });
    for step in 1..=7 {
        publish(&broker, &format!("u{step}"), step).await;
    }
    let retry = Retry::none().immediate([Duration::from_millis(50)]);
    let running = run(&broker, users().retry(retry), target);
    until("the last one", || noted(&seen).iter().any(|text| text == "[7]")).await;
    let report = running.end().await;
    let expected = ["[1, 2, 3]", "[4, 5, 6]", "[4, 5, 6]", "[4]", "[5]", "[5]", "[6]", "[7]"];
    assert_eq!(noted(&seen), expected);
    let (_, letter) = dead_letters(&broker).remove(0);
    assert_eq!((letter.attempts, letter.offset), (2, Some(4)));
    assert_eq!(report.subscriptions[0].counts.handled, 6);
}

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_what_runs_and_gives_the_rest_back() {
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    let target = {
        let seen = seen.clone();
        each(move |event: NotificationEvent<UserCreated>, _: Received| {
            let seen = seen.clone();
            async move {
                note(&seen, format!("start {}", event.payload.step));
                tokio::time::sleep(Duration::from_secs(10)).await;
                note(&seen, format!("end {}", event.payload.step));
                Ok::<(), HandlerError>(())
            }
        })
    };
    for step in 1..=5 {
        publish(&broker, &format!("u{step}"), step).await;
    }
    let running = run(&broker, users().concurrency(2), target);
    until("two run", || noted(&seen).len() == 2).await;
    let started = Instant::now();
    let report = running.end().await;
    assert!(started.elapsed() < Duration::from_secs(11), "{:?}", started.elapsed());
    assert_eq!(noted(&seen), ["start 1", "start 2", "end 1", "end 2"]);
    let [mine] = &*report.subscriptions else { panic!("one subscription") };
    assert_eq!((mine.counts.handled, mine.counts.given_back, mine.cancelled), (2, 3, 0));
    let again = broker.subscribe("users", "mailer");
    assert_eq!(std::iter::from_fn(|| again.try_recv().map(|d| d.ack())).count(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_at_its_deadline_and_a_second_stop_ends_at_once() {
    for now in [false, true] {
        let (broker, seen) = (MemoryBroker::new(), Seen::default());
        let target = {
            let seen = seen.clone();
            each(move |_: NotificationEvent<UserCreated>, _: Received| {
                note(&seen, "start");
                std::future::pending::<Result<(), HandlerError>>()
            })
        };
        publish(&broker, "ada", 1).await;
        let service = Service::builder(broker.clone()).subscribe(users(), target).build().unwrap();
        let (stop, started) = (service.stop_handle(), Instant::now());
        let task = tokio::spawn(service.run_until(std::future::pending::<()>()));
        until("it runs", || !noted(&seen).is_empty()).await;
        stop.stop();
        if now {
            stop.stop_now();
        }
        let report = task.await.unwrap().unwrap();
        let expected = if now { 0 } else { 30 };
        assert_eq!(started.elapsed().as_secs(), expected);
        assert_eq!(report.subscriptions[0].cancelled, 1);
        assert!(broker.subscribe("users", "mailer").try_recv().is_some(), "it was given back");
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_a_failure_worth_a_retry() {
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    let target = {
        let seen = seen.clone();
        each(move |_: NotificationEvent<UserCreated>, received: Received| {
            note(&seen, format!("#{}", received.attempt()));
            async move {
                if received.attempt() == 1 {
                    std::future::pending::<()>().await;
                }
                Ok::<(), HandlerError>(())
            }
        })
    };
    publish(&broker, "ada", 1).await;
    let running = run(&broker, users().timeout(Duration::from_secs(1)), target);
    until("a second attempt", || noted(&seen).len() == 2).await;
    assert_eq!(running.end().await.subscriptions[0].counts.handled, 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_acked_while_the_dead_letter_is_not_confirmed() {
    // The dead-letter topic is full, and nobody reads it.
    let broker =
        MemoryBroker::builder().capacity(2).publish_timeout(Duration::from_secs(1)).build();
    broker.create_group("users.mailer.dead", "nobody", cqrs_core::memory::StartFrom::Oldest);
    for n in 0..2 {
        broker.publish(Message::new("users.mailer.dead", format!("old {n}"))).await.unwrap();
    }
    let seen = Seen::default();
    let target = noting(&seen, |_, _| Err("never").permanent());
    publish(&broker, "ada", 1).await;
    publish(&broker, "bob", 2).await;
    let running = run(&broker, users().concurrency(2), target);
    until("it is paused", || {
        let state = running.health.subscriptions().remove(0).state;
        matches!(state, SubscriptionState::Paused { .. })
    })
    .await;
    assert!(!running.health.is_ready() && running.health.is_live());
    tokio::time::sleep(Duration::from_secs(60)).await;
    let counts = running.health.subscriptions()[0].counts;
    assert_eq!((counts.dead_lettered, counts.handled), (0, 0), "nothing is settled");
    let reader = broker.subscribe("users.mailer.dead", "nobody");
    while let Some(old) = reader.try_recv() {
        old.ack();
    }
    until("both dead letters", || broker.messages("users.mailer.dead").len() == 2).await;
    until("settled", || running.health.subscriptions()[0].counts.dead_lettered == 2).await;
    until("ready again", || running.health.is_ready()).await;
    drop(running.end().await);
    assert!(broker.subscribe("users", "mailer").try_recv().is_none());
}

#[tokio::test]
async fn wiring_mistakes_are_named_all_at_once() {
    let error = Service::builder(MemoryBroker::new())
        .subscribe(
            Subscription::to("users").json::<UserDeleted>().concurrency(0),
            noting(&Seen::default(), |_, _| Ok(())),
        )
        .subscribe(
            users().name("twice").on_empty(OnDecodeError::Handle),
            EventMediator::builder().build().unwrap(),
        )
        .subscribe(
            Subscription::to("").group("g").name("twice"),
            noting(&Seen::default(), |_, _| Ok(())),
        )
        .build()
        .unwrap_err();
    let text = error.to_string();
    for part in [
        "users: it has no group",
        "users: nothing handles consuming::UserDeleted",
        "users: a concurrency of 0",
        "twice: nothing handles consuming::UserCreated",
        "twice: a policy is OnDecodeError::Handle",
        "twice: a topic's name is missing",
        "twice: it takes no type of event",
        "two subscriptions are named twice",
    ] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    let error = Service::builder(MemoryBroker::new())
        .subscribe(
            Subscription::pattern("users.*").group("g").json::<UserCreated>(),
            noting(&Seen::default(), |_, _| Ok(())),
        )
        .build()
        .unwrap_err();
    assert!(error.to_string().contains("the memory broker has no patterns"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_mediator_that_is_shut_down_fails_nothing() {
    struct Never;
    impl EventHandler<UserCreated> for Never {
        async fn handle(&self, _: &UserCreated, _: &mut Scope) -> Result<(), HandlerError> {
            panic!("it ran")
        }
    }
    let broker = MemoryBroker::new();
    let events = EventMediator::builder().event::<UserCreated, _>(Never).build().unwrap();
    let _ = events.shutdown(Duration::from_secs(1)).await;
    publish(&broker, "ada", 1).await;
    let running = run(&broker, users(), events);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let report = running.end().await;
    assert_eq!(report.subscriptions[0].counts.failed_attempts, 0);
    assert!(dead_letters(&broker).is_empty());
    assert!(broker.subscribe("users", "mailer").try_recv().is_some(), "it was given back");
}
