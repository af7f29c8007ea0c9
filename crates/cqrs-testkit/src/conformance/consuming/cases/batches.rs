//! Several events at once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_core::{
    DeadLetterReason, HandlerError, NotificationEvent, Received, Retry, Target, batch,
};

use super::super::ConsumingHarness;
use super::super::stage::{Counted, Stage};

const SIZE: usize = 5;

type Batches = Arc<Mutex<Vec<Vec<u32>>>>;

/// Fails for good when `poison` is among the events.
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

/// Of a key each: a broker may hand out one of a key at a time.
async fn publish<H: ConsumingHarness>(stage: &Stage<'_, H>, count: u32) {
    let event = |number: u32| stage.event(&format!("key-{number}"), number);
    stage.publish_all((1..=count).map(event)).await;
}

pub(crate) async fn batches_are_handled_together<H: ConsumingHarness>(harness: &H) {
    let (stage, batches) = (Stage::new(harness).await, Batches::default());
    stage.make_group().await;
    publish(&stage, 12).await;
    let running = stage.run(stage.subscription(), batching(&batches, 0)).await;
    stage.until("all are handled", || running.counts().handled == 12).await;
    running.end().await;
    let batches = batches.lock().expect("no panic").clone();
    let mut numbers = batches.concat();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=12).collect::<Vec<_>>(), "each once");
    let largest = batches.iter().map(Vec::len).max();
    assert!(largest > Some(1) && largest <= Some(SIZE), "{batches:?}");
    stage.assert_nothing_left().await;
}

pub(crate) async fn a_poison_message_of_a_batch_is_dead_alone<H: ConsumingHarness>(harness: &H) {
    let (stage, batches) = (Stage::new(harness).await, Batches::default());
    stage.make_group().await;
    publish(&stage, 8).await;
    let subscription = stage.subscription().retry(Retry::none());
    let running = stage.run(subscription, batching(&batches, 4)).await;
    stage.until("the others are handled", || running.counts().handled == 7).await;
    stage.until("it is dead", || running.counts().dead_lettered == 1).await;
    running.end().await;
    let (dead, letter) = stage.dead_letter(&mut stage.dead_letters().await).await;
    let event: NotificationEvent<Counted> = serde_json::from_slice(&dead.body).expect("an event");
    assert_eq!(event.payload.number, 4);
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Permanent, 1));
    stage.assert_nothing_left().await;
}
