//! Cases of the retry schedule: delays, attempts, order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_core::consume::{DeadLetterReason, Delayed, Incoming, RETRY_HEADERS};
use cqrs_core::{HandlerError, NotificationEvent, Received, Retry, each};

use super::service::{HandlerRun, Log};
use crate::conformance::fixture::{Counted, Fixture, KEY};
use crate::conformance::harness::Harness;

const DELAYS: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(700),
];

/// How early a delay may seem to be over. A broker counts it by a clock that may be another computer's, and a
/// clock that is slewed may run 1 % fast.
fn early(delay: Duration) -> Duration {
    Duration::from_millis(5) + delay / 100
}

fn schedule() -> Retry {
    Retry::none().immediate(DELAYS[..2].to_vec()).delayed(DELAYS[2..].to_vec())
}

fn no() -> HandlerError {
    HandlerError::retryable("no such host")
}

fn assert_waits(entries: &[HandlerRun]) {
    for (pair, delay) in entries.windows(2).zip(DELAYS) {
        let waited = pair[1].at - pair[0].at;
        assert!(waited + early(delay) >= delay, "attempt {} after {waited:?}", pair[1].attempt);
    }
}

pub(crate) async fn failed_messages_are_retried_by_the_schedule<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let handler = log.each(|run| if run.attempt < 5 { Err(no()) } else { Ok(()) });
    let running = fixture.run(fixture.subscription().retry(schedule()), handler).await;
    fixture.publish_events(1).await;
    fixture.until("it is handled", || running.counts().handled == 1).await;
    let counts = running.end().await.counts;
    assert_eq!(log.attempts(), ["1#1", "1#2", "1#3", "1#4", "1#5"]);
    assert_waits(&log.runs());
    assert_eq!((counts.failed_attempts, counts.dead_lettered), (4, 0));
    fixture.assert_all_settled().await;
}

pub(crate) async fn exhausted_message_becomes_a_dead_letter<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let running =
        fixture.run(fixture.subscription().retry(schedule()), log.each(|_| Err(no()))).await;
    fixture.publish_events(1).await;
    fixture.until("it is dead-lettered", || running.counts().dead_lettered == 1).await;
    running.end().await;
    assert_eq!(log.attempts(), ["1#1", "1#2", "1#3", "1#4", "1#5"]);
    assert_waits(&log.runs());
    let (_, letter) = fixture.dead_letter(&mut fixture.dead_letters().await).await;
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Exhausted, 5));
    assert_eq!(letter.error, "no such host");
    let micros = letter.last_failure.unix_micros() - letter.first_failure.unix_micros();
    let failing = Duration::from_micros(micros.try_into().expect("first before last"));
    let schedule: Duration = DELAYS.iter().sum();
    assert!(failing + 4 * early(schedule) >= schedule, "first to last failure: {failing:?}");
    fixture.assert_all_settled().await;
}

pub(crate) async fn attempts_are_counted_over_restarts<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let retry = Retry::none().delayed([Duration::from_secs(2), Duration::from_secs(1)]);
    let subscription = || fixture.subscription().retry(retry.clone());
    let running = fixture.run(subscription(), log.each(|_| Err(no()))).await;
    fixture.publish_events(1).await;
    fixture.until("the first attempt failed", || running.counts().failed_attempts == 1).await;
    running.end().await;
    let running = fixture.run(subscription(), log.each(|_| Err(no()))).await;
    fixture.until("it is dead-lettered", || running.counts().dead_lettered == 1).await;
    running.end().await;
    assert_eq!(log.attempts(), ["1#1", "1#2", "1#3"]);
    let (_, letter) = fixture.dead_letter(&mut fixture.dead_letters().await).await;
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Exhausted, 3));
    let micros = letter.last_failure.unix_micros() - letter.first_failure.unix_micros();
    assert!(micros >= 900_000, "first and last failure differ: {micros} µs");
    fixture.assert_all_settled().await;
}

pub(crate) async fn retry_delay_holds_over_restarts<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let delay = Duration::from_secs(5);
    let subscription = || fixture.subscription().retry(Retry::none().delayed([delay]));
    let handler = || log.each(|run| if run.attempt < 2 { Err(no()) } else { Ok(()) });
    let running = fixture.run(subscription(), handler()).await;
    fixture.publish_events(1).await;
    fixture.until("the first attempt failed", || running.counts().failed_attempts == 1).await;
    running.end().await;
    // The next service stops before the delay is over, too.
    fixture.run(subscription(), handler()).await.end().await;
    let running = fixture.run(subscription(), handler()).await;
    fixture.until("the second attempt ran", || log.len() == 2).await;
    running.end().await;
    assert_eq!(log.attempts(), ["1#1", "1#2"]);
    let entries = log.runs();
    let waited = entries[1].at - entries[0].at;
    assert!(waited + early(delay) >= delay, "retried after {waited:?}");
    fixture.assert_all_settled().await;
}

pub(crate) async fn immediate_attempts_count_on_over_restarts<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let retry = Retry::none().immediate([Duration::from_secs(4)]);
    let subscription = || fixture.subscription().retry(retry.clone());
    let running = fixture.run(subscription(), log.each(|_| Err(no()))).await;
    fixture.publish_events(1).await;
    fixture.until("the first attempt failed", || running.counts().failed_attempts == 1).await;
    running.end().await;
    let running = fixture.run(subscription(), log.each(|_| Ok(()))).await;
    fixture.until("it is handled", || running.counts().handled == 1).await;
    running.end().await;
    match fixture.can.notes_attempts {
        true => assert_eq!(log.attempts(), ["1#1", "1#2"]),
        false => assert_eq!(log.attempts(), ["1#1", "1#1"]),
    }
    fixture.assert_all_settled().await;
}

pub(crate) async fn a_delayed_retry_holds_its_key_or_lets_it_pass<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let handler = log.each(|run| match (&*run.key, run.number, run.attempt) {
        (KEY, 1, 1) => Err(no()),
        _ => Ok(()),
    });
    // Longer than all messages take to be received.
    let delay = Duration::from_secs(4);
    let retry = Retry::none().delayed([delay]);
    let subscription = fixture.subscription().retry(retry).concurrency(2);
    let running = fixture.run(subscription, handler).await;
    fixture
        .publish_all([(KEY, 1), (KEY, 2), ("other", 3)].map(|(key, n)| fixture.event(key, n)))
        .await;
    fixture.until("all are handled", || running.counts().handled == 3).await;
    running.end().await;
    let runs = log.attempts();
    let of_key: Vec<_> = runs.iter().filter(|run| !run.starts_with('3')).collect();
    match fixture.can.delayed {
        Delayed::Hold => assert_eq!(of_key, ["1#1", "1#2", "2#1"]),
        Delayed::Scheduled => assert_eq!(of_key, ["1#1", "2#1", "1#2"]),
    }
    let entries = log.runs();
    let mut first = entries.iter().filter(|run| run.number == 1).map(|run| run.at);
    let waited = first.next().zip(first.next()).map(|(failed, again)| again - failed);
    assert!(
        waited.is_some_and(|waited| waited + early(delay) >= delay),
        "retried after {waited:?}"
    );
    let place = |run: &str| runs.iter().position(|known| known == run);
    assert!(place("3#1") < place("1#2"), "no other key waits: {runs:?}");
    fixture.assert_all_settled().await;
}

pub(crate) async fn a_retried_message_is_the_same_to_its_handler<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
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
    let running = fixture.run(fixture.subscription().retry(retry), handler).await;
    let mut message = fixture.event(KEY, 1);
    message.headers.insert("tenant", "Zürich").expect("a header");
    fixture.publish(message.clone()).await;
    fixture.until("it is dead-lettered", || running.counts().dead_lettered == 1).await;
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

    let (dead, letter) = fixture.dead_letter(&mut fixture.dead_letters().await).await;
    assert_eq!((dead.body, dead.key), (message.body, message.key));
    assert_eq!(dead.headers.get("tenant"), Some("Zürich"));
    let left = RETRY_HEADERS.iter().find(|name| dead.headers.get(name).is_some());
    assert_eq!(left, None, "the schedule's own headers");
    assert_eq!((letter.topic, letter.attempts), (fixture.topic.clone(), 3));
    assert_eq!(letter.offset.is_some(), fixture.can.offsets);
    fixture.assert_all_settled().await;
}
