//! Cases of handlers that take several events at once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_core::consume::DeadLetterReason;
use cqrs_core::service::Target;
use cqrs_core::{HandlerError, NotificationEvent, Received, Retry, batch};

use crate::conformance::fixture::{Counted, Fixture};
use crate::conformance::harness::Harness;

const SIZE: usize = 5;

type Batches = Arc<Mutex<Vec<Vec<u32>>>>;

/// Fails permanently when `poison` is among the events.
fn batching(batches: &Batches, poison: u32) -> impl Target + use<> {
    let batches = Arc::clone(batches);
    batch(SIZE, Duration::from_millis(500), {
        move |events: Vec<(NotificationEvent<Counted>, Received)>| {
            let numbers: Vec<_> = events.iter().map(|(event, _)| event.payload.number).collect();
            let poisoned = numbers.contains(&poison);
            batches.lock().expect("no panic").push(numbers);
            async move {
                match poisoned {
                    true => Err(HandlerError::permanent("poison")),
                    false => Ok(()),
                }
            }
        }
    })
}

/// One event per key: a broker may deliver one message of a key at a time.
async fn publish<H: Harness>(fixture: &Fixture<'_, H>, count: u32) {
    let event = |number: u32| fixture.event(&format!("key-{number}"), number);
    fixture.publish_all((1..=count).map(event)).await;
}

pub(crate) async fn batches_are_handled_together<H: Harness>(harness: &H) {
    let (fixture, batches) = (Fixture::new(harness).await, Batches::default());
    fixture.make_group().await;
    publish(&fixture, 12).await;
    let running = fixture.run(fixture.subscription(), batching(&batches, 0)).await;
    fixture.until("all are handled", || running.counts().handled == 12).await;
    running.end().await;
    let batches = batches.lock().expect("no panic").clone();
    let mut numbers = batches.concat();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=12).collect::<Vec<_>>(), "each once");
    let largest = batches.iter().map(Vec::len).max();
    assert!(largest > Some(1) && largest <= Some(SIZE), "{batches:?}");
    fixture.assert_all_settled().await;
}

pub(crate) async fn poison_message_of_a_batch_is_dead_lettered_alone<H: Harness>(harness: &H) {
    let (fixture, batches) = (Fixture::new(harness).await, Batches::default());
    fixture.make_group().await;
    publish(&fixture, 8).await;
    let subscription = fixture.subscription().retry(Retry::none());
    let running = fixture.run(subscription, batching(&batches, 4)).await;
    fixture.until("the others are handled", || running.counts().handled == 7).await;
    fixture.until("it is dead-lettered", || running.counts().dead_lettered == 1).await;
    running.end().await;
    let (dead, letter) = fixture.dead_letter(&mut fixture.dead_letters().await).await;
    let event: NotificationEvent<Counted> = serde_json::from_slice(&dead.body).expect("an event");
    assert_eq!(event.payload.number, 4);
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Permanent, 1));
    fixture.assert_all_settled().await;
}
