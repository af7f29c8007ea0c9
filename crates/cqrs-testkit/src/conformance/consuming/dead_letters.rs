//! Cases of dead letters: the unchanged message with its history, stored before the original is settled.

use cqrs_core::consume::{DeadLetterReason, DeadLetterTarget};
use cqrs_core::{HandlerError, HandlerResultExt, Message, Retry};

use super::service::Log;
use crate::conformance::fixture::{Fixture, KEY, QUIET, fresh_group};
use crate::conformance::harness::Harness;

pub(crate) async fn permanent_failure_is_dead_lettered_at_once<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let handler = log.each(|run| match run.number {
        1 => Err("gone").permanent(),
        _ => Ok(()),
    });
    let running = fixture.run(fixture.subscription(), handler).await;
    fixture.publish_events(2).await;
    fixture.until("the second is handled", || running.counts().handled == 1).await;
    running.end().await;
    assert_eq!(log.attempts(), ["1#1", "2#1"]);
    let (_, letter) = fixture.dead_letter(&mut fixture.dead_letters().await).await;
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Permanent, 1));
    assert_eq!(letter.error, "gone");
    assert_eq!(letter.first_failure, letter.last_failure);
    fixture.assert_all_settled().await;
}

pub(crate) async fn panic_is_a_failure_and_stops_nothing<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let handler = log.each(|run| match run.number {
        1 => panic!("index out of bounds"),
        _ => Ok(()),
    });
    let running = fixture.run(fixture.subscription().retry(Retry::none()), handler).await;
    fixture.publish_events(2).await;
    fixture.until("the second is handled", || running.counts().handled == 1).await;
    assert!(running.is_ready(), "the service goes on");
    let counts = running.end().await.counts;
    assert_eq!((counts.panics, counts.dead_lettered), (1, 1));
    let (_, letter) = fixture.dead_letter(&mut fixture.dead_letters().await).await;
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Panic, 1));
    assert_eq!(letter.error, "panicked: index out of bounds");
    fixture.assert_all_settled().await;
}

pub(crate) async fn dead_letter_keeps_the_message_unchanged<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let mut letters = fixture.dead_letters().await;
    let running = fixture.run(fixture.subscription(), log.each(|_| Ok(()))).await;
    let mut message = Message::new(fixture.topic.as_str(), vec![b'{', 0, 159, 146, 150, 255])
        .with_name("Nonsense")
        .with_key("tenant/ü")
        .with_content_type("application/x-protobuf");
    message.headers.set_correlation_id("c-1");
    message.headers.insert("tenant", "Zürich").expect("a header");
    fixture.publish(message.clone()).await;
    fixture.until("it is dead-lettered", || running.counts().dead_lettered == 1).await;
    running.end().await;
    assert_eq!(log.len(), 0, "it is no event");

    let (dead, letter) = fixture.dead_letter(&mut letters).await;
    assert_eq!(dead.body, message.body, "the body, byte for byte");
    assert_eq!(dead.key, message.key, "the key");
    assert_eq!(dead.headers.get("tenant"), Some("Zürich"));
    assert_eq!(dead.headers.correlation_id(), Some("c-1"));
    assert_eq!((dead.id, dead.name.as_deref()), (Some(message.id), Some("Nonsense")));
    let content_type = fixture.can.content_type.then_some("application/x-protobuf");
    assert_eq!(dead.content_type.as_deref(), content_type);

    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Decode, 0));
    assert_eq!(letter.error_type, "DeserializeError");
    assert!(!letter.error.is_empty() && letter.error.len() <= 1_024, "{}", letter.error);
    assert_eq!((letter.topic.as_str(), letter.group.as_str()), (&*fixture.topic, &*fixture.group));
    assert_eq!(letter.offset.is_some(), fixture.can.offsets, "{letter:?}");
    assert_eq!(letter.partition.is_some(), fixture.can.partitions, "{letter:?}");
    assert_eq!(letter.queue.is_some(), fixture.can.queues, "{letter:?}");
    fixture.assert_all_settled().await;
}

pub(crate) async fn dead_letter_goes_to_the_named_target<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let name = format!("{}.{}", fixture.topic, fresh_group());
    let subscription =
        fixture.subscription().dead_letter(DeadLetterTarget::Named(name.as_str().into()));
    let running = fixture.run(subscription, log.each(|_| Err("gone").permanent())).await;
    let event = fixture.event(KEY, 1);
    fixture.publish(event.clone()).await;
    fixture.until("it is dead-lettered", || running.counts().dead_lettered == 1).await;
    running.end().await;
    let (dead, letter) = fixture.dead_letter(&mut harness.dead_letters(&name).await).await;
    assert_eq!((dead.body, dead.key), (event.body, event.key));
    assert_eq!(letter.topic, fixture.topic, "the original topic");
}

pub(crate) async fn discarded_dead_letters_are_not_stored<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let handler = log.each(|run| match run.number {
        1 => Err(HandlerError::permanent("gone")),
        _ => Ok(()),
    });
    let subscription = fixture.subscription().dead_letter(DeadLetterTarget::Discard);
    let running = fixture.run(subscription, handler).await;
    fixture.publish_events(2).await;
    fixture.until("the second is handled", || running.counts().handled == 1).await;
    let counts = running.end().await.counts;
    assert_eq!((counts.discarded, counts.dead_lettered), (1, 0));
    let mut letters = fixture.dead_letters().await;
    assert_eq!(letters.next(QUIET).await, None, "nothing is stored");
    fixture.assert_all_settled().await;
}
