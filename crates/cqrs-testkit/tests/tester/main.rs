//! The tester, and that each of its assertions can fail.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod codec;

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_core::consume::DeadLetterReason;
use cqrs_core::memory::{MemoryRetry, MemorySubscription};
use cqrs_core::service::SubscriptionState;
use cqrs_core::{
    EventHandler, EventMediator, HandlerError, HandlerResultExt, Message, NotificationEvent,
    OnDecodeError, Received, Scope, Service, StartAt, Subscribe, Subscription, batch, each,
};
use cqrs_macros::{DomainEvent, Notification};
use cqrs_testkit::{RunningService, ServiceTester};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "UserCreated", topic = "users", key = "name")]
struct UserCreated {
    name: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "WelcomeSent", topic = "mails")]
struct WelcomeSent {
    to: String,
}

/// The same name, another shape.
#[derive(Debug, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "UserCreated", topic = "users")]
struct OtherUserCreated {
    id: u32,
}

#[derive(DomainEvent)]
#[cqrs(crate = "cqrs_core")]
struct Counted;

fn user(name: &str) -> UserCreated {
    UserCreated { name: name.to_owned() }
}

/// Fails a given number of times.
struct Welcome {
    failures: AtomicU32,
}

impl EventHandler<UserCreated> for Welcome {
    async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
        if event.name == "nobody" {
            return Err("no address").permanent();
        }
        let left = |failures: u32| failures.checked_sub(1);
        if self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
            return Err(HandlerError::retryable("no such host"));
        }
        scope.emit(WelcomeSent { to: event.name.clone() });
        Ok(())
    }
}

fn users() -> Subscription {
    Subscription::to("users").group("mailer").json::<UserCreated>()
}

/// As an application has it.
fn wire(
    broker: impl Subscribe + Clone,
    subscription: Subscription,
    failures: u32,
) -> Result<Service, Box<dyn Error>> {
    let events = EventMediator::builder()
        .event::<UserCreated, _>(Welcome { failures: AtomicU32::new(failures) })
        .broker(broker.clone())
        .build()?;
    Ok(Service::builder(broker).subscribe(subscription, events).build()?)
}

async fn start(tester: &ServiceTester, failures: u32) -> RunningService {
    tester.start(wire(tester.broker(), users(), failures).unwrap()).await
}

fn impatient() -> ServiceTester {
    ServiceTester::new().timeout(Duration::from_millis(100))
}

#[tokio::test(start_paused = true)]
async fn published_is_handled_and_emitted_is_recorded() {
    let tester = ServiceTester::new();
    let running = start(&tester, 0).await;
    assert!(running.health().is_ready(), "its subscription is open");
    for name in ["ada", "eve"] {
        tester.publish(user(name)).await.unwrap();
    }
    assert_eq!(tester.handled::<UserCreated>(2).await.unwrap(), [user("ada"), user("eve")]);
    let welcomes = tester.published::<WelcomeSent>();
    assert_eq!(welcomes, [WelcomeSent { to: "ada".into() }, WelcomeSent { to: "eve".into() }]);
    assert_eq!(tester.published_messages().len(), 2, "what the test published is not its own");
    assert!(tester.published::<UserCreated>().is_empty());
    assert!(tester.dead_letters(0).await.unwrap().is_empty());
    let report = running.stop().await.unwrap();
    assert_eq!(report.subscriptions[0].counts.handled, 2);
}

#[tokio::test(start_paused = true)]
async fn retries_of_minutes_take_no_time() {
    let tester = ServiceTester::new();
    let running = start(&tester, 6).await;
    let (wall, clock) = (std::time::Instant::now(), Instant::now());
    tester.publish(user("ada")).await.unwrap();
    assert_eq!(tester.handled::<UserCreated>(1).await.unwrap(), [user("ada")]);
    assert!(wall.elapsed() < Duration::from_secs(3), "{:?}", wall.elapsed());
    assert!(clock.elapsed() > Duration::from_secs(370), "{:?}", clock.elapsed());
    let retried = tester.retried::<UserCreated>(3).await.unwrap();
    let seen: Vec<_> =
        retried.iter().map(|retry| (retry.delay.as_secs(), retry.attempts)).collect();
    assert_eq!(seen, [(10, 4), (60, 5), (300, 6)]);
    assert_eq!((running.failed_attempts(), &retried[0].event), (6, &user("ada")));
}

#[tokio::test(start_paused = true)]
async fn time_is_advanced_step_by_step() {
    let tester = ServiceTester::new();
    let _running = start(&tester, 4).await;
    tester.publish(user("ada")).await.unwrap();
    tester.retried::<UserCreated>(1).await.unwrap();
    tester.advance(Duration::from_millis(9_900)).await;
    assert!(tester.handled::<UserCreated>(0).await.unwrap().is_empty(), "not yet");
    tester.advance(Duration::from_millis(200)).await;
    assert_eq!(tester.handled::<UserCreated>(0).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_recorded_with_their_reason() {
    let tester = ServiceTester::new();
    let running = start(&tester, 0).await;
    tester.publish(user("nobody")).await.unwrap();
    tester.publish_message(Message::new("users", "garbage")).await.unwrap();
    let dead = tester.dead_letters(2).await.unwrap();
    let letter = &dead[0].letter;
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Permanent, 1));
    assert!(letter.error.ends_with("no address") && letter.group == "mailer", "{letter:?}");
    assert_eq!(dead[0].event::<UserCreated>().unwrap(), user("nobody"));
    assert_eq!(
        (dead[1].letter.reason, &*dead[1].body),
        (DeadLetterReason::Decode, &b"garbage"[..])
    );
    assert!(dead[1].name.is_none() && dead[1].event::<UserCreated>().is_err());
    tester.all_settled().await.unwrap();
    assert!(tester.published_messages().is_empty(), "dead letters are not the service's events");
    assert_eq!(running.stop().await.unwrap().subscriptions[0].counts.dead_lettered, 2);
}

#[tokio::test(start_paused = true)]
async fn requeued_message_keeps_attempts_over_a_restart() {
    let tester = ServiceTester::new();
    let running = start(&tester, 5).await;
    tester.publish(user("ada")).await.unwrap();
    tester.retried::<UserCreated>(1).await.unwrap();
    let report = running.stop().await.unwrap();
    assert_eq!(report.subscriptions[0].counts.given_back, 1);
    let _running = start(&tester, 1).await;
    tester.handled::<UserCreated>(1).await.unwrap();
    let retried = tester.retried::<UserCreated>(2).await.unwrap();
    assert_eq!(retried.iter().map(|retry| retry.attempts).collect::<Vec<_>>(), [4, 5]);
}

#[tokio::test(start_paused = true)]
async fn event_with_its_own_id_and_topic_keeps_them() {
    let tester = ServiceTester::new();
    let to_vips = Subscription::to("vips").group("mailer").json::<UserCreated>();
    let running = tester.start(wire(tester.broker(), to_vips, 0).unwrap()).await;
    let event = NotificationEvent::new(user("ada")).with_topic("vips");
    let id = event.event_id;
    tester.publish(event).await.unwrap();
    tester.handled::<UserCreated>(1).await.unwrap();
    assert_eq!(tester.memory().messages("vips")[0].id, id);
    drop(running);
}

// ---- faults

#[tokio::test(start_paused = true)]
async fn message_with_a_lost_ack_is_handled_again() {
    let tester = ServiceTester::new();
    let running = start(&tester, 0).await;
    tester.faults().fail_acks(1);
    tester.publish(user("ada")).await.unwrap();
    assert_eq!(tester.handled::<UserCreated>(1).await.unwrap(), [user("ada")]);
    assert_eq!(tester.published::<WelcomeSent>().len(), 2, "at least once");
    let counts = running.stop().await.unwrap().subscriptions[0].counts;
    assert_eq!((counts.handled, counts.unacked, counts.received), (1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn revoked_running_message_is_handled_again() {
    let tester = ServiceTester::new();
    let runs = Arc::new(AtomicU32::new(0));
    let slow = each({
        let runs = Arc::clone(&runs);
        move |_: NotificationEvent<UserCreated>, _: Received| {
            runs.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::time::sleep(Duration::from_secs(10)).await;
                Ok::<(), HandlerError>(())
            }
        }
    });
    let service = Service::builder(tester.broker()).subscribe(users(), slow).build().unwrap();
    let running = tester.start(service).await;
    for name in ["ada", "eve"] {
        tester.publish(user(name)).await.unwrap();
    }
    tester.advance(Duration::from_secs(5)).await;
    assert_eq!(tester.faults().revoke("users", "mailer"), 2, "one runs, one waits");
    assert_eq!(tester.handled::<UserCreated>(2).await.unwrap(), [user("ada"), user("eve")]);
    assert_eq!(runs.load(Ordering::SeqCst), 3, "what waited is not handled by its old owner");
    let counts = running.stop().await.unwrap().subscriptions[0].counts;
    assert_eq!((counts.handled, counts.unacked, counts.revoked), (2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn unconfirmed_settlement_is_retried() {
    let tester = ServiceTester::new();
    let running = start(&tester, 4).await;
    tester.faults().fail_retries(2);
    tester.faults().fail_dead_letters(2);
    tester.publish(user("ada")).await.unwrap();
    tester.handled::<UserCreated>(1).await.unwrap();
    tester.publish(user("nobody")).await.unwrap();
    assert_eq!(tester.dead_letters(1).await.unwrap().len(), 1);
    assert_eq!(tester.memory().messages("users.mailer.dead").len(), 1);
    assert_eq!(running.failed_attempts(), 5);
}

#[tokio::test(start_paused = true)]
async fn event_with_a_lost_confirm_is_republished() {
    let tester = ServiceTester::new();
    let _running = start(&tester, 1).await;
    tester.publish(user("ada")).await.unwrap();
    tester.faults().lose_confirms(1);
    tester.handled::<UserCreated>(1).await.unwrap();
    let stored = tester.memory().messages("mails");
    assert_eq!((stored.len(), stored[0].id), (2, stored[1].id), "the same event");
    tester.faults().refuse_messages(1);
    let error = tester.publish(user("eve")).await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert_eq!(format!("{error:?}"), error.to_string());
}

#[tokio::test(start_paused = true)]
async fn duplicates_and_redeliveries_are_handled_again() {
    let tester = ServiceTester::new();
    let _running = start(&tester, 0).await;
    tester.faults().duplicate_messages(1);
    tester.publish(user("ada")).await.unwrap();
    tester.handled::<UserCreated>(2).await.unwrap();
    assert_eq!(tester.faults().redeliver("users", "mailer", 1), 1);
    assert_eq!(tester.handled::<UserCreated>(3).await.unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn scheduled_retry_does_not_block_its_key() {
    let tester = ServiceTester::new();
    let like_rabbitmq = MemorySubscription::default().with_retry(MemoryRetry::Scheduled);
    let subscription = users().option(like_rabbitmq);
    let running = tester.start(wire(tester.broker(), subscription, 5).unwrap()).await;
    let started = Instant::now();
    tester.publish(user("ada")).await.unwrap();
    tester.retried::<UserCreated>(1).await.unwrap();
    tester.publish(NotificationEvent::new(user("ada"))).await.unwrap();
    // The second one of the key fails once, and is handled before the first.
    tester.handled::<UserCreated>(1).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(10));
    tester.handled::<UserCreated>(2).await.unwrap();
    let counts = running.stop().await.unwrap().subscriptions[0].counts;
    assert_eq!((counts.handled, counts.rescheduled), (2, 1));
}

// ---- members and keys

#[tokio::test(start_paused = true)]
async fn a_batch_holds_several_events_of_one_key() {
    let tester = ServiceTester::new();
    let sizes = Arc::<Mutex<Vec<usize>>>::default();
    let target = batch(10, Duration::from_secs(1), {
        let sizes = Arc::clone(&sizes);
        move |events: Vec<(NotificationEvent<UserCreated>, Received)>| {
            sizes.lock().unwrap().push(events.len());
            async { Ok(()) }
        }
    });
    let service = Service::builder(tester.broker()).subscribe(users(), target).build().unwrap();
    let _running = tester.start(service).await;
    for _ in 0..25 {
        tester.publish(user("ada")).await.unwrap();
    }
    tester.handled::<UserCreated>(25).await.unwrap();
    assert_eq!(*sizes.lock().unwrap(), [10, 10, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_keys_and_keep_their_order() {
    const EVENTS: u32 = 2_000;
    let tester = ServiceTester::new().timeout(Duration::from_secs(60));
    let seen = Arc::<Mutex<HashMap<String, Vec<u32>>>>::default();
    let mut members = Vec::new();
    for _ in 0..3 {
        let seen = Arc::clone(&seen);
        let target = each(move |event: NotificationEvent<UserCreated>, received: Received| {
            let seen = Arc::clone(&seen);
            async move {
                tokio::task::yield_now().await;
                let offset = u32::try_from(received.offset.unwrap()).unwrap();
                seen.lock().unwrap().entry(event.payload.name).or_default().push(offset);
                Ok(())
            }
        });
        let subscription = users().concurrency(4).max_unsettled(16);
        let service =
            Service::builder(tester.broker()).subscribe(subscription, target).build().unwrap();
        members.push(tester.start(service).await);
    }
    for n in 0..EVENTS {
        tester.publish(user(&format!("user-{}", n % 7))).await.unwrap();
    }
    tester.all_settled().await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.values().map(Vec::len).sum::<usize>(), EVENTS as usize);
    assert!(seen.values().all(|offsets| offsets.is_sorted()), "{seen:?}");
}

// ---- each assertion can fail

#[tokio::test(start_paused = true)]
async fn missing_outcome_error_lists_the_history() {
    let tester = impatient();
    let _running = start(&tester, 0).await;
    tester.publish(user("ada")).await.unwrap();
    tester.publish(user("nobody")).await.unwrap();
    tester.all_settled().await.unwrap();
    let error = tester.handled::<UserCreated>(2).await.unwrap_err();
    let text = format!("{error:?}");
    for line in [
        "UserCreated was handled 1 times instead of 2 within 100ms; recorded so far:",
        "UserCreated (users 0) in mailer: delivered",
        "UserCreated (users 0) in mailer: handled",
        "UserCreated (users 1) in mailer: dead-lettered (permanent, 1 attempts): ",
        "published: WelcomeSent to mails",
    ] {
        assert!(text.contains(line), "no {line:?} in: {text}");
    }
    let error = tester.retried::<UserCreated>(1).await.unwrap_err();
    assert!(error.to_string().starts_with("no UserCreated was retried"), "{error}");
    let error = tester.dead_letters(2).await.unwrap_err();
    assert!(
        error.to_string().starts_with("message was dead-lettered 1 times instead of 2"),
        "{error}"
    );
}

#[tokio::test]
async fn pending_retry_without_paused_time_is_explained() {
    let tester = impatient();
    let subscription = users().retry(cqrs_core::Retry::none().delayed([Duration::from_secs(60)]));
    let _running = tester.start(wire(tester.broker(), subscription, 9).unwrap()).await;
    tester.publish(user("ada")).await.unwrap();
    let error = tester.handled::<UserCreated>(1).await.unwrap_err().to_string();
    assert!(error.starts_with("no UserCreated was handled within 100ms"), "{error}");
    assert!(error.contains("failed as attempt 1, retried in 60s"), "{error}");
    assert!(error.contains("start_paused = true"), "{error}");
    let error = tester.all_settled().await.unwrap_err().to_string();
    assert!(error.starts_with("messages not settled within 100ms: 1;"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn failed_service_ends_the_wait_at_once() {
    let tester = ServiceTester::new().timeout(Duration::from_secs(60));
    let subscription = users().on_decode_error(OnDecodeError::Stop);
    let running = tester.start(wire(tester.broker(), subscription, 0).unwrap()).await;
    let wall = std::time::Instant::now();
    tester.publish_message(Message::new("users", "garbage")).await.unwrap();
    let error = tester.handled::<UserCreated>(1).await.unwrap_err().to_string();
    assert!(wall.elapsed() < Duration::from_secs(5));
    assert!(error.contains("the service has ended: subscription mailer@users"), "{error}");
    assert!(running.stop().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_tester_without_a_service_says_so() {
    let tester = impatient();
    tester.publish(user("ada")).await.unwrap();
    let error = tester.handled::<UserCreated>(1).await.unwrap_err().to_string();
    assert!(error.contains("was the service started?"), "{error}");
    assert!(tester.all_settled().await.is_err(), "nothing was subscribed to");
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_body_is_another_type_is_explained() {
    let tester = impatient();
    let _running = start(&tester, 0).await;
    tester.publish(user("ada")).await.unwrap();
    tester.all_settled().await.unwrap();
    let error = tester.handled::<OtherUserCreated>(1).await.unwrap_err().to_string();
    assert!(
        error.contains(r#"named "UserCreated" and are no OtherUserCreated to JsonDeserializer"#),
        "{error}"
    );
}

#[tokio::test]
async fn a_domain_event_cannot_be_published() {
    let error = ServiceTester::new().publish(Counted).await.unwrap_err();
    assert!(error.to_string().contains("Counted is a domain event"), "{error}");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a OtherWelcomeSent was published that is none")]
async fn published_panics_over_a_body_that_is_another_type() {
    #[derive(Debug, Serialize, Deserialize, Notification)]
    #[cqrs(crate = "cqrs_core", name = "WelcomeSent", topic = "mails")]
    struct OtherWelcomeSent {
        copies: u32,
    }
    let tester = ServiceTester::new();
    let _running = start(&tester, 0).await;
    tester.publish(user("ada")).await.unwrap();
    tester.handled::<UserCreated>(1).await.unwrap();
    tester.published::<OtherWelcomeSent>();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_without_paused_time_on_several_threads() {
    let tester = ServiceTester::new();
    let running = start(&tester, 2).await;
    for n in 0..100 {
        tester.publish(user(&format!("user-{n}"))).await.unwrap();
    }
    assert_eq!(tester.handled::<UserCreated>(100).await.unwrap().len(), 100);
    tester.all_settled().await.unwrap();
    assert_eq!(running.failed_attempts(), 2);
}

#[tokio::test(start_paused = true)]
async fn strict_tester_holds_message_of_unroutable_event() {
    let tester = ServiceTester::strict();
    let running = start(&tester, 0).await;
    tester.publish(user("ada")).await.unwrap();
    // By the paused clock: while a wait of the tester runs, it would reach the end of the hold.
    let stuck = async {
        loop {
            match running.health().subscriptions().remove(0).state {
                SubscriptionState::Stuck { reason } => return reason,
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    let reason =
        tokio::time::timeout(Duration::from_secs(60), stuck).await.expect("a held message");
    assert!(tester.handled::<UserCreated>(0).await.unwrap().is_empty());
    assert!(reason.contains("WelcomeSent") && reason.contains("unroutable"), "{reason}");
    assert!(
        tester.published_messages().is_empty() && tester.dead_letters(0).await.unwrap().is_empty()
    );
    tester.memory().create_group("mails", "post", StartAt::Earliest);
    assert_eq!(tester.handled::<UserCreated>(1).await.unwrap(), [user("ada")]);
    assert_eq!(tester.published::<WelcomeSent>(), [WelcomeSent { to: "ada".into() }], "once");
    assert_eq!(running.stop().await.unwrap().subscriptions[0].counts.failed_attempts, 0);
}
