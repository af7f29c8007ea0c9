//! The retry schedule: when, how often, in what order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_core::consume::{Delayed, RETRY_HEADERS};
use cqrs_core::{
    DeadLetterReason, HandlerError, Incoming, NotificationEvent, Received, Retry, each,
};

use super::super::ConsumingHarness;
use super::super::service::{Log, Note};
use super::super::stage::{Counted, KEY, Stage};

const DELAYS: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(700),
];

/// What clocks of two computers may differ by within one delay.
const EARLY: Duration = Duration::from_millis(5);

fn schedule() -> Retry {
    Retry::none().immediate(DELAYS[..2].to_vec()).delayed(DELAYS[2..].to_vec())
}

fn no() -> HandlerError {
    HandlerError::retryable("no such host")
}

fn assert_waits(notes: &[Note]) {
    for (pair, delay) in notes.windows(2).zip(DELAYS) {
        let waited = pair[1].at - pair[0].at;
        assert!(waited + EARLY >= delay, "attempt {} after {waited:?}", pair[1].attempt);
    }
}

pub(crate) async fn failed_messages_are_tried_again_by_the_schedule<H: ConsumingHarness>(
    harness: &H,
) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let handler = log.each(|note| if note.attempt < 5 { Err(no()) } else { Ok(()) });
    let running = stage.run(stage.subscription().retry(schedule()), handler).await;
    stage.publish_events(1).await;
    stage.until("it is handled", || running.counts().handled == 1).await;
    let counts = running.end().await.counts;
    assert_eq!(log.runs(), ["1#1", "1#2", "1#3", "1#4", "1#5"]);
    assert_waits(&log.notes());
    assert_eq!((counts.failed_attempts, counts.dead_lettered), (4, 0));
    stage.assert_nothing_left().await;
}

pub(crate) async fn a_message_that_fails_for_good_becomes_a_dead_letter<H: ConsumingHarness>(
    harness: &H,
) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let running = stage.run(stage.subscription().retry(schedule()), log.each(|_| Err(no()))).await;
    stage.publish_events(1).await;
    stage.until("it is dead", || running.counts().dead_lettered == 1).await;
    running.end().await;
    assert_eq!(log.runs(), ["1#1", "1#2", "1#3", "1#4", "1#5"]);
    assert_waits(&log.notes());
    let (_, letter) = stage.dead_letter(&mut stage.dead_letters().await).await;
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Exhausted, 5));
    assert_eq!(letter.error, "no such host");
    let micros = letter.last_failure.unix_micros() - letter.first_failure.unix_micros();
    let failing = Duration::from_micros(micros.try_into().expect("first before last"));
    let schedule: Duration = DELAYS.iter().sum();
    assert!(failing + 4 * EARLY >= schedule, "first to last failure: {failing:?}");
    stage.assert_nothing_left().await;
}

pub(crate) async fn attempts_are_counted_over_restarts<H: ConsumingHarness>(harness: &H) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let retry = Retry::none().delayed([Duration::from_secs(2), Duration::from_secs(1)]);
    let subscription = || stage.subscription().retry(retry.clone());
    let running = stage.run(subscription(), log.each(|_| Err(no()))).await;
    stage.publish_events(1).await;
    stage.until("the first attempt failed", || running.counts().failed_attempts == 1).await;
    running.end().await;
    let running = stage.run(subscription(), log.each(|_| Err(no()))).await;
    stage.until("it is dead", || running.counts().dead_lettered == 1).await;
    running.end().await;
    assert_eq!(log.runs(), ["1#1", "1#2", "1#3"]);
    let (_, letter) = stage.dead_letter(&mut stage.dead_letters().await).await;
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Exhausted, 3));
    let micros = letter.last_failure.unix_micros() - letter.first_failure.unix_micros();
    assert!(micros >= 900_000, "the first failure is told from the last: {micros} µs");
    stage.assert_nothing_left().await;
}

pub(crate) async fn retry_delay_holds_over_restarts<H: ConsumingHarness>(harness: &H) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let delay = Duration::from_secs(5);
    let subscription = || stage.subscription().retry(Retry::none().delayed([delay]));
    let handler = || log.each(|note| if note.attempt < 2 { Err(no()) } else { Ok(()) });
    let running = stage.run(subscription(), handler()).await;
    stage.publish_events(1).await;
    stage.until("the first attempt failed", || running.counts().failed_attempts == 1).await;
    running.end().await;
    // One service does not see the delay to its end either.
    stage.run(subscription(), handler()).await.end().await;
    let running = stage.run(subscription(), handler()).await;
    stage.until("the second attempt ran", || log.len() == 2).await;
    running.end().await;
    assert_eq!(log.runs(), ["1#1", "1#2"]);
    let notes = log.notes();
    let waited = notes[1].at - notes[0].at;
    assert!(waited + EARLY >= delay, "again after {waited:?}");
    stage.assert_nothing_left().await;
}

pub(crate) async fn immediate_attempts_count_on_over_restarts<H: ConsumingHarness>(harness: &H) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let retry = Retry::none().immediate([Duration::from_secs(4)]);
    let subscription = || stage.subscription().retry(retry.clone());
    let running = stage.run(subscription(), log.each(|_| Err(no()))).await;
    stage.publish_events(1).await;
    stage.until("the first attempt failed", || running.counts().failed_attempts == 1).await;
    running.end().await;
    let running = stage.run(subscription(), log.each(|_| Ok(()))).await;
    stage.until("it is handled", || running.counts().handled == 1).await;
    running.end().await;
    match stage.can.notes_attempts {
        true => assert_eq!(log.runs(), ["1#1", "1#2"]),
        false => assert_eq!(log.runs(), ["1#1", "1#1"]),
    }
    stage.assert_nothing_left().await;
}

pub(crate) async fn a_delayed_retry_holds_its_key_or_lets_it_pass<H: ConsumingHarness>(
    harness: &H,
) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let handler = log.each(|note| match (&*note.key, note.number, note.attempt) {
        (KEY, 1, 1) => Err(no()),
        _ => Ok(()),
    });
    // Long after all have come.
    let delay = Duration::from_secs(4);
    let retry = Retry::none().delayed([delay]);
    let subscription = stage.subscription().retry(retry).concurrency(2);
    let running = stage.run(subscription, handler).await;
    stage.publish_all([(KEY, 1), (KEY, 2), ("other", 3)].map(|(key, n)| stage.event(key, n))).await;
    stage.until("all are handled", || running.counts().handled == 3).await;
    running.end().await;
    let runs = log.runs();
    let of_key: Vec<_> = runs.iter().filter(|run| !run.starts_with('3')).collect();
    match stage.can.delayed {
        Delayed::Hold => assert_eq!(of_key, ["1#1", "1#2", "2#1"]),
        Delayed::Scheduled => assert_eq!(of_key, ["1#1", "2#1", "1#2"]),
    }
    let notes = log.notes();
    let mut first = notes.iter().filter(|note| note.number == 1).map(|note| note.at);
    let waited = first.next().zip(first.next()).map(|(failed, again)| again - failed);
    assert!(waited.is_some_and(|waited| waited + EARLY >= delay), "again after {waited:?}");
    let place = |run: &str| runs.iter().position(|known| known == run);
    assert!(place("3#1") < place("1#2"), "no other key waits: {runs:?}");
    stage.assert_nothing_left().await;
}

pub(crate) async fn a_retried_message_is_the_same_to_its_handler<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let seen: Arc<Mutex<Vec<Incoming>>> = Arc::default();
    let handler = each({
        let seen = Arc::clone(&seen);
        move |_: NotificationEvent<Counted>, received: Received| {
            seen.lock().expect("no panic").push(received.message().clone());
            let attempt = received.attempt();
            async move { if attempt < 3 { Err(no()) } else { Err(HandlerError::permanent("gone")) } }
        }
    });
    let retry = Retry::none().immediate([DELAYS[0]]).delayed([DELAYS[2]]);
    let running = stage.run(stage.subscription().retry(retry), handler).await;
    let mut message = stage.event(KEY, 1);
    message.headers.insert("tenant", "Zürich").expect("a header");
    stage.publish(message.clone()).await;
    stage.until("it is dead", || running.counts().dead_lettered == 1).await;
    running.end().await;
    let seen = seen.lock().expect("no panic").clone();
    let same = |one: &Incoming| {
        let Incoming { topic, key, body, id, name, headers, content_type, .. } = one.clone();
        let headers: BTreeMap<_, _> =
            headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        (topic, key, body, id, name, headers, content_type)
    };
    let all: Vec<_> = seen.iter().map(same).collect();
    assert_eq!(all.len(), 3);
    assert_eq!(all[0], all[1], "after an immediate retry");
    assert_eq!(all[0], all[2], "after a delayed retry");

    let (dead, letter) = stage.dead_letter(&mut stage.dead_letters().await).await;
    assert_eq!((dead.body, dead.key), (message.body, message.key));
    assert_eq!(dead.headers.get("tenant"), Some("Zürich"));
    let left = RETRY_HEADERS.iter().find(|name| dead.headers.get(name).is_some());
    assert_eq!(left, None, "the schedule's own headers");
    assert_eq!((letter.topic, letter.attempts), (stage.topic.clone(), 3));
    assert_eq!(letter.offset.is_some(), stage.can.offsets);
    stage.assert_nothing_left().await;
}
