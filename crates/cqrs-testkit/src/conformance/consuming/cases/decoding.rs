//! What is no event goes by its policy, and is never retried.

use std::sync::{Arc, Mutex};

use cqrs_core::{DeadLetterReason, OnDecodeError, Received, Subscription, Undecodable};

use super::super::ConsumingHarness;
use super::super::service::Log;
use super::super::stage::{KEY, Stage};

const GARBAGE: &str = "garbage";
const UNKNOWN: &str = r#"{"event_name":"Uncounted","payload":{"key":"k","number":1}}"#;

pub(crate) async fn events_of_unknown_types_become_dead_letters<H: ConsumingHarness>(harness: &H) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let running = stage.run(stage.subscription(), log.each(|_| Ok(()))).await;
    stage.publish(stage.message(UNKNOWN)).await;
    stage.publish_events(1).await;
    stage.until("the known one is handled", || running.counts().handled == 1).await;
    running.end().await;
    assert_eq!(log.runs(), ["1#1"]);
    let (dead, letter) = stage.dead_letter(&mut stage.dead_letters().await).await;
    assert_eq!(dead.body, UNKNOWN, "byte for byte");
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::UnknownType, 0));
    assert!(letter.error.contains("Uncounted"), "{}", letter.error);
    stage.assert_nothing_left().await;
}

pub(crate) async fn undecodable_messages_can_be_skipped<H: ConsumingHarness>(harness: &H) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let skip = OnDecodeError::Skip;
    let subscription = stage.subscription().on_decode_error(skip).on_unknown_event(skip);
    let running = stage.run(subscription, log.each(|_| Ok(()))).await;
    stage.publish_all([GARBAGE, UNKNOWN].map(|body| stage.message(body))).await;
    stage.publish_events(1).await;
    stage.until("the event is handled", || running.counts().handled == 1).await;
    let counts = running.end().await.counts;
    assert_eq!((counts.skipped, counts.dead_lettered), (2, 0));
    stage.assert_nothing_left().await;
}

type Cases = Arc<Mutex<Vec<Undecodable>>>;

/// All that is no event is handed over, into `cases`.
fn handing_over(subscription: Subscription, cases: &Cases) -> Subscription {
    let (handle, cases) = (OnDecodeError::Handle, Arc::clone(cases));
    subscription
        .on_decode_error(handle)
        .on_unknown_event(handle)
        .on_empty(handle)
        .on_tombstone(handle)
        .undecodable(move |case: Undecodable, _: Received| {
            cases.lock().expect("no panic").push(case);
            async { Ok(()) }
        })
}

pub(crate) async fn undecodable_messages_can_be_handed_over<H: ConsumingHarness>(harness: &H) {
    let (stage, log, cases) = (Stage::new(harness).await, Log::default(), Cases::default());
    let subscription = handing_over(stage.subscription(), &cases);
    let running = stage.run(subscription, log.each(|_| Ok(()))).await;
    stage.publish_all([GARBAGE, UNKNOWN].map(|body| stage.message(body))).await;
    stage.publish_events(1).await;
    stage.until("all are handled", || running.counts().handled == 3).await;
    running.end().await;
    let cases = cases.lock().expect("no panic").clone();
    match &*cases {
        [Undecodable::Malformed(error), Undecodable::UnknownEvent { name }] => {
            assert_eq!((error.bytes(), name.as_str()), (&GARBAGE.into(), "Uncounted"));
        }
        others => panic!("{others:?}"),
    }
    stage.assert_nothing_left().await;
}

pub(crate) async fn undecodable_messages_can_stop_the_service_and_stay<H: ConsumingHarness>(
    harness: &H,
) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let subscription = stage.subscription().on_decode_error(OnDecodeError::Stop);
    stage.make_group().await;
    stage.publish_all([GARBAGE, "behind it"].map(|body| stage.message(body))).await;
    let running = stage.run(subscription, log.each(|_| Ok(()))).await;
    let error = running.failure().await;
    assert!(error.detail.contains(&stage.topic), "{error}");
    // RabbitMQ may put what was on its way to the cancelled consumer before what is given back.
    let mut left = stage.left().await;
    left.sort();
    assert_eq!(left, ["behind it", GARBAGE]);
}

pub(crate) async fn empty_messages_are_skipped<H: ConsumingHarness>(harness: &H) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let running = stage.run(stage.subscription(), log.each(|_| Ok(()))).await;
    stage.publish(stage.message("")).await;
    if stage.can.tombstones {
        harness.publish_tombstone(&stage.topic, KEY).await;
    }
    stage.publish_events(1).await;
    stage.until("the event is handled", || running.counts().handled == 1).await;
    let counts = running.end().await.counts;
    assert_eq!((counts.skipped, counts.dead_lettered), (1 + u64::from(stage.can.tombstones), 0));
    stage.assert_nothing_left().await;
}

pub(crate) async fn a_tombstone_is_told_from_an_empty_message<H: ConsumingHarness>(harness: &H) {
    let (stage, log, cases) = (Stage::new(harness).await, Log::default(), Cases::default());
    let subscription = handing_over(stage.subscription(), &cases);
    let running = stage.run(subscription, log.each(|_| Ok(()))).await;
    let mut expected = vec![Undecodable::Empty];
    stage.publish(stage.message("")).await;
    if stage.can.tombstones {
        harness.publish_tombstone(&stage.topic, KEY).await;
        expected.push(Undecodable::Tombstone);
    }
    let count = expected.len() as u64;
    stage.until("all are handled", || running.counts().handled == count).await;
    running.end().await;
    assert_eq!(*cases.lock().expect("no panic"), expected);
}
