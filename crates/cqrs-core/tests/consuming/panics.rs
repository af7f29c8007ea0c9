//! Tests that a panic in user code is a failure of its message only.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use cqrs_core::codec::{DeserializeError, Deserializer, JsonDeserializer};
use cqrs_core::consume::Incoming;
use cqrs_core::middleware::Failure;
use cqrs_core::service::{DecodeError, Undecodable};
use cqrs_core::{Invocation, Middleware, Next, Outcome};

use super::*;

/// Panics when it is printed.
#[derive(Debug)]
struct Unprintable;

impl fmt::Display for Unprintable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("an error that panics when it is printed")
    }
}

impl Error for Unprintable {}

/// Rejects step 1 with its error.
struct Refuse(fn() -> Failure);

impl Middleware for Refuse {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        let fragile = call.input::<Fragile>().is_some_and(|event| event.step == 1);
        match fragile || call.input::<UserCreated>().is_some_and(|event| event.step == 1) {
            true => Err((self.0)()),
            false => next.run(call).await,
        }
    }
}

/// Panics when it is dropped, as step 1.
#[derive(Debug, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "UserCreated", topic = "users", key = "user_id")]
struct Fragile {
    user_id: String,
    step: u32,
}

impl Drop for Fragile {
    fn drop(&mut self) {
        if self.step == 1 && !std::thread::panicking() {
            panic!("an event that panics when it is dropped")
        }
    }
}

fn fragile() -> Subscription {
    Subscription::to("users").group("mailer").json::<Fragile>()
}

/// Publishes a message that panics and one that does not: the first is dead-lettered, the second handled.
async fn one_is_dead_and_the_other_handled(subscription: Subscription, target: impl Target) {
    let broker = MemoryBroker::new();
    publish(&broker, "ada", 1).await;
    publish(&broker, "ada", 2).await;
    let running = run(&broker, subscription.retry(Retry::none()), target);
    until("both ended", || {
        let counts = running.health.subscriptions().remove(0).counts;
        running.task.is_finished() || counts.handled + counts.dead_lettered == 2
    })
    .await;
    let counts = running.end().await.subscriptions[0].counts;
    assert_eq!((counts.handled, counts.dead_lettered, counts.panics), (1, 1, 1));
    assert_eq!(dead_letters(&broker)[0].1.reason, DeadLetterReason::Panic);
}

fn fine() -> impl Target {
    each(|_: NotificationEvent<UserCreated>, _: Received| async { Ok(()) })
}

#[tokio::test(start_paused = true)]
async fn in_the_text_of_a_rejection() {
    let subscription = users().middleware(Refuse(|| Failure::rejected(Unprintable)));
    one_is_dead_and_the_other_handled(subscription, fine()).await;
}

#[tokio::test(start_paused = true)]
async fn in_the_text_of_a_decoders_error() {
    for manually in [false, true] {
        let subscription = users().decoder(|message: Incoming| async move {
            match message.offset {
                Some(0) => Err(DecodeError::failed(HandlerError::retryable(Unprintable))),
                _ => Ok(Some(message)),
            }
        });
        match manually {
            false => one_is_dead_and_the_other_handled(subscription, fine()).await,
            true => {
                let acks = manual(|_: NotificationEvent<UserCreated>, delivery: Delivery| async {
                    delivery.ack().await.unwrap();
                });
                one_is_dead_and_the_other_handled(subscription, acks).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_the_text_of_an_error_about_what_is_undecodable() {
    let subscription = users()
        .max_body_size(10_000)
        .decoder(|message: Incoming| async move {
            match message.offset {
                Some(0) => Err(DecodeError::malformed("no")),
                _ => Ok(Some(message)),
            }
        })
        .on_decode_error(OnDecodeError::Handle)
        .undecodable(|_: Undecodable, _: Received| async {
            Err(HandlerError::retryable(Unprintable))
        });
    one_is_dead_and_the_other_handled(subscription, fine()).await;
}

#[tokio::test(start_paused = true)]
async fn in_the_drop_of_an_event_that_no_handler_got() {
    let subscription = fragile().middleware(Refuse(|| Failure::rejected("no")));
    let target = each(|_: NotificationEvent<Fragile>, _: Received| async { Ok(()) });
    one_is_dead_and_the_other_handled(subscription, target).await;
}

struct Ignores;

impl EventHandler<Fragile> for Ignores {
    async fn handle(&self, _: &Fragile, _: &mut Scope) -> Result<(), HandlerError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn in_drop_of_event_that_handlers_only_borrow() {
    let events = EventMediator::builder().event::<Fragile, _>(Ignores).build().unwrap();
    one_is_dead_and_the_other_handled(fragile(), events).await;
}

#[tokio::test(start_paused = true)]
async fn in_drop_of_event_of_a_cancelled_handler() {
    let target = each(|event: NotificationEvent<Fragile>, _: Received| async move {
        let event = event; // moves all of it, not only the number
        if event.payload.step == 1 {
            std::future::pending::<()>().await;
        }
        Ok(())
    });
    one_is_dead_and_the_other_handled(fragile().timeout(Duration::from_secs(1)), target).await;
}

#[tokio::test(start_paused = true)]
async fn in_a_batch_that_was_cancelled() {
    let target = batch(2, Duration::from_secs(1), {
        |events: Vec<(NotificationEvent<Fragile>, Received)>| async move {
            if events.iter().any(|(event, _)| event.payload.step == 1) {
                std::future::pending::<()>().await;
            }
            Ok(())
        }
    });
    let broker = MemoryBroker::new();
    publish(&broker, "ada", 1).await;
    publish(&broker, "ada", 2).await;
    let subscription = fragile().retry(Retry::none()).timeout(Duration::from_secs(1));
    let running = run(&broker, subscription, target);
    until("the good one", || {
        running.task.is_finished() || running.health.subscriptions()[0].counts.handled == 1
    })
    .await;
    let counts = running.end().await.subscriptions[0].counts;
    assert_eq!((counts.handled, counts.dead_lettered), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn panicking_manual_handler_ends_in_dead_letter() {
    let target = manual(|event: NotificationEvent<UserCreated>, delivery: Delivery| async move {
        assert_ne!(event.payload.step, 1, "poison");
        delivery.ack().await.unwrap();
    });
    one_is_dead_and_the_other_handled(users(), target).await;
}

/// A payload that panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a payload that panics when it is dropped")
    }
}

#[tokio::test(start_paused = true)]
async fn in_drop_of_panic_payload() {
    let target = each(|event: NotificationEvent<UserCreated>, _: Received| async move {
        if event.payload.step == 1 {
            std::panic::panic_any(Bomb);
        }
        Ok(())
    });
    one_is_dead_and_the_other_handled(users(), target).await;
}

#[tokio::test(start_paused = true)]
async fn in_drop_of_panic_payload_of_manual_handler() {
    let target = manual(|event: NotificationEvent<UserCreated>, delivery: Delivery| async move {
        if event.payload.step == 1 {
            std::panic::panic_any(Bomb);
        }
        delivery.ack().await.unwrap();
    });
    one_is_dead_and_the_other_handled(users(), target).await;
}

#[tokio::test(start_paused = true)]
async fn in_drop_of_panic_payload_of_decoder() {
    let subscription = users().decoder(|message: Incoming| async move {
        if message.offset == Some(0) {
            std::panic::panic_any(Bomb);
        }
        Ok(Some(message))
    });
    let broker = MemoryBroker::new();
    publish(&broker, "ada", 1).await;
    publish(&broker, "ada", 2).await;
    let running = run(&broker, subscription, fine());
    until("the good one", || {
        running.task.is_finished() || running.health.subscriptions()[0].counts.handled == 1
    })
    .await;
    let counts = running.end().await.subscriptions[0].counts;
    assert_eq!((counts.handled, counts.dead_lettered), (1, 1));
}

/// Panics at step 1.
struct Panics;

impl Deserializer<UserCreated> for Panics {
    fn deserialize(
        &self,
        message: &Incoming,
    ) -> Result<NotificationEvent<UserCreated>, DeserializeError> {
        let event: NotificationEvent<UserCreated> = JsonDeserializer.deserialize(message)?;
        assert_ne!(event.payload.step, 1, "a deserializer that panics");
        Ok(event)
    }

    fn event_name<'m>(&self, _: &'m Incoming) -> Option<Cow<'m, str>> {
        Some("UserCreated".into())
    }
}

struct Fine;

impl EventHandler<UserCreated> for Fine {
    async fn handle(&self, _: &UserCreated, _: &mut Scope) -> Result<(), HandlerError> {
        Ok(())
    }
}

async fn undecodable_by_panic_is_dead(target: impl Target) {
    let broker = MemoryBroker::new();
    for step in [2, 1, 1, 3] {
        publish(&broker, "ada", step).await;
    }
    let subscription = Subscription::to("users").group("mailer").decode::<UserCreated>(Panics);
    let running = run(&broker, subscription, target);
    until("all ended", || {
        let counts = running.health.subscriptions().remove(0).counts;
        counts.handled + counts.dead_lettered == 4
    })
    .await;
    let counts = running.end().await.subscriptions[0].counts;
    assert_eq!((counts.handled, counts.dead_lettered, counts.failed_attempts), (2, 2, 0));
    assert_eq!(dead_letters(&broker)[0].1.reason, DeadLetterReason::Decode);
}

#[tokio::test(start_paused = true)]
async fn panic_of_deserializer_is_no_failed_attempt() {
    undecodable_by_panic_is_dead(fine()).await;
    let events = EventMediator::builder().event::<UserCreated, _>(Fine).build().unwrap();
    undecodable_by_panic_is_dead(events).await;
}
