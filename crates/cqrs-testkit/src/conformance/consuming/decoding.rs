//! Cases of undecodable messages, which follow their policy and are never retried.

use std::sync::{Arc, Mutex};

use cqrs_core::consume::DeadLetterReason;
use cqrs_core::service::Undecodable;
use cqrs_core::{OnDecodeError, Received, Subscription};

use super::service::Log;
use crate::conformance::fixture::{Fixture, KEY};
use crate::conformance::harness::Harness;

const GARBAGE: &str = "garbage";
const UNKNOWN: &str = r#"{"event_name":"Uncounted","payload":{"key":"k","number":1}}"#;

pub(crate) async fn events_of_unknown_types_become_dead_letters<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let running = fixture.run(fixture.subscription(), log.each(|_| Ok(()))).await;
    fixture.publish(fixture.message(UNKNOWN)).await;
    fixture.publish_events(1).await;
    fixture.until("the known one is handled", || running.counts().handled == 1).await;
    running.end().await;
    assert_eq!(log.attempts(), ["1#1"]);
    let (dead, letter) = fixture.dead_letter(&mut fixture.dead_letters().await).await;
    assert_eq!(dead.body, UNKNOWN, "byte for byte");
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::UnknownType, 0));
    assert!(letter.error.contains("Uncounted"), "{}", letter.error);
    fixture.assert_all_settled().await;
}

pub(crate) async fn undecodable_messages_can_be_skipped<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let skip = OnDecodeError::Skip;
    let subscription = fixture.subscription().on_decode_error(skip).on_unknown_event(skip);
    let running = fixture.run(subscription, log.each(|_| Ok(()))).await;
    fixture.publish_all([GARBAGE, UNKNOWN].map(|body| fixture.message(body))).await;
    fixture.publish_events(1).await;
    fixture.until("the event is handled", || running.counts().handled == 1).await;
    let counts = running.end().await.counts;
    assert_eq!((counts.skipped, counts.dead_lettered), (2, 0));
    fixture.assert_all_settled().await;
}

type Cases = Arc<Mutex<Vec<Undecodable>>>;

/// A subscription that collects all undecodable messages in `cases`.
fn collecting(subscription: Subscription, cases: &Cases) -> Subscription {
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

pub(crate) async fn undecodable_messages_can_be_handled<H: Harness>(harness: &H) {
    let (fixture, log, cases) = (Fixture::new(harness).await, Log::default(), Cases::default());
    let subscription = collecting(fixture.subscription(), &cases);
    let running = fixture.run(subscription, log.each(|_| Ok(()))).await;
    fixture.publish_all([GARBAGE, UNKNOWN].map(|body| fixture.message(body))).await;
    fixture.publish_events(1).await;
    fixture.until("all are handled", || running.counts().handled == 3).await;
    running.end().await;
    let cases = cases.lock().expect("no panic").clone();
    match &*cases {
        [Undecodable::Malformed(error), Undecodable::UnknownEvent { name }] => {
            assert_eq!((error.bytes(), name.as_str()), (&GARBAGE.into(), "Uncounted"));
        }
        others => panic!("{others:?}"),
    }
    fixture.assert_all_settled().await;
}

pub(crate) async fn undecodable_message_stops_service_and_is_kept<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let subscription = fixture.subscription().on_decode_error(OnDecodeError::Stop);
    fixture.make_group().await;
    fixture.publish_all([GARBAGE, "behind it"].map(|body| fixture.message(body))).await;
    let running = fixture.run(subscription, log.each(|_| Ok(()))).await;
    let error = running.failure().await;
    assert!(error.detail.contains(&fixture.topic), "{error}");
    // RabbitMQ may requeue prefetched messages before returned ones.
    let mut unsettled = fixture.unsettled().await;
    unsettled.sort();
    assert_eq!(unsettled, ["behind it", GARBAGE]);
}

pub(crate) async fn empty_messages_are_skipped<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let running = fixture.run(fixture.subscription(), log.each(|_| Ok(()))).await;
    fixture.publish(fixture.message("")).await;
    if fixture.can.tombstones {
        harness.publish_tombstone(&fixture.topic, KEY).await;
    }
    fixture.publish_events(1).await;
    fixture.until("the event is handled", || running.counts().handled == 1).await;
    let counts = running.end().await.counts;
    assert_eq!((counts.skipped, counts.dead_lettered), (1 + u64::from(fixture.can.tombstones), 0));
    fixture.assert_all_settled().await;
}

pub(crate) async fn tombstone_differs_from_an_empty_message<H: Harness>(harness: &H) {
    let (fixture, log, cases) = (Fixture::new(harness).await, Log::default(), Cases::default());
    let subscription = collecting(fixture.subscription(), &cases);
    let running = fixture.run(subscription, log.each(|_| Ok(()))).await;
    let mut expected = vec![Undecodable::Empty];
    fixture.publish(fixture.message("")).await;
    if fixture.can.tombstones {
        harness.publish_tombstone(&fixture.topic, KEY).await;
        expected.push(Undecodable::Tombstone);
    }
    let count = expected.len() as u64;
    fixture.until("all are handled", || running.counts().handled == count).await;
    running.end().await;
    assert_eq!(*cases.lock().expect("no panic"), expected);
}
