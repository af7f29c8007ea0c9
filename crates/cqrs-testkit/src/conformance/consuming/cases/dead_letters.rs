//! What nobody can handle is kept as it came, with its history, before the original is settled.

use cqrs_core::{
    DeadLetterReason, DeadLetterTarget, HandlerError, HandlerResultExt, Message, Retry,
};

use super::super::ConsumingHarness;
use super::super::service::Log;
use super::super::stage::{KEY, QUIET, Stage, fresh_group};

pub(crate) async fn a_permanent_failure_is_dead_at_once<H: ConsumingHarness>(harness: &H) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let handler = log.each(|note| match note.number {
        1 => Err("gone").permanent(),
        _ => Ok(()),
    });
    let running = stage.run(stage.subscription(), handler).await;
    stage.publish_events(2).await;
    stage.until("the second is handled", || running.counts().handled == 1).await;
    running.end().await;
    assert_eq!(log.runs(), ["1#1", "2#1"]);
    let (_, letter) = stage.dead_letter(&mut stage.dead_letters().await).await;
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Permanent, 1));
    assert_eq!(letter.error, "gone");
    assert_eq!(letter.first_failure, letter.last_failure);
    stage.assert_nothing_left().await;
}

pub(crate) async fn a_panic_is_a_failure_and_stops_nothing<H: ConsumingHarness>(harness: &H) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let handler = log.each(|note| match note.number {
        1 => panic!("index out of bounds"),
        _ => Ok(()),
    });
    let running = stage.run(stage.subscription().retry(Retry::none()), handler).await;
    stage.publish_events(2).await;
    stage.until("the second is handled", || running.counts().handled == 1).await;
    assert!(running.is_ready(), "the service goes on");
    let counts = running.end().await.counts;
    assert_eq!((counts.panics, counts.dead_lettered), (1, 1));
    let (_, letter) = stage.dead_letter(&mut stage.dead_letters().await).await;
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Panic, 1));
    assert_eq!(letter.error, "panicked: index out of bounds");
    stage.assert_nothing_left().await;
}

pub(crate) async fn a_dead_letter_holds_the_message_as_it_came<H: ConsumingHarness>(harness: &H) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let mut letters = stage.dead_letters().await;
    let running = stage.run(stage.subscription(), log.each(|_| Ok(()))).await;
    let mut message = Message::new(stage.topic.as_str(), vec![b'{', 0, 159, 146, 150, 255])
        .with_name("Nonsense")
        .with_key("tenant/ü")
        .with_content_type("application/x-protobuf");
    message.headers.set_correlation_id("c-1");
    message.headers.insert("tenant", "Zürich").expect("a header");
    stage.publish(message.clone()).await;
    stage.until("it is dead", || running.counts().dead_lettered == 1).await;
    running.end().await;
    assert_eq!(log.len(), 0, "it is no event");

    let (dead, letter) = stage.dead_letter(&mut letters).await;
    assert_eq!(dead.body, message.body, "the body, byte for byte");
    assert_eq!(dead.key, message.key, "the key");
    assert_eq!(dead.headers.get("tenant"), Some("Zürich"));
    assert_eq!(dead.headers.correlation_id(), Some("c-1"));
    assert_eq!((dead.id, dead.name.as_deref()), (Some(message.id), Some("Nonsense")));
    let content_type = stage.can.content_type.then_some("application/x-protobuf");
    assert_eq!(dead.content_type.as_deref(), content_type);

    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Decode, 0));
    assert_eq!(letter.error_type, "DeserializeError");
    assert!(!letter.error.is_empty() && letter.error.len() <= 1_024, "{}", letter.error);
    assert_eq!((letter.topic.as_str(), letter.group.as_str()), (&*stage.topic, &*stage.group));
    assert_eq!(letter.offset.is_some(), stage.can.offsets, "{letter:?}");
    assert_eq!(letter.partition.is_some(), stage.can.partitions, "{letter:?}");
    assert_eq!(letter.queue.is_some(), stage.can.queues, "{letter:?}");
    stage.assert_nothing_left().await;
}

pub(crate) async fn a_dead_letter_goes_where_it_is_told<H: ConsumingHarness>(harness: &H) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let name = format!("{}.{}", stage.topic, fresh_group());
    let subscription =
        stage.subscription().dead_letter(DeadLetterTarget::Named(name.as_str().into()));
    let running = stage.run(subscription, log.each(|_| Err("gone").permanent())).await;
    let event = stage.event(KEY, 1);
    stage.publish(event.clone()).await;
    stage.until("it is dead", || running.counts().dead_lettered == 1).await;
    running.end().await;
    let (dead, letter) = stage.dead_letter(&mut harness.dead_letters(&name).await).await;
    assert_eq!((dead.body, dead.key), (event.body, event.key));
    assert_eq!(letter.topic, stage.topic, "where it came from");
}

pub(crate) async fn discarded_dead_letters_are_nowhere<H: ConsumingHarness>(harness: &H) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let handler = log.each(|note| match note.number {
        1 => Err(HandlerError::permanent("gone")),
        _ => Ok(()),
    });
    let subscription = stage.subscription().dead_letter(DeadLetterTarget::Discard);
    let running = stage.run(subscription, handler).await;
    stage.publish_events(2).await;
    stage.until("the second is handled", || running.counts().handled == 1).await;
    let counts = running.end().await.counts;
    assert_eq!((counts.discarded, counts.dead_lettered), (1, 0));
    let mut letters = stage.dead_letters().await;
    assert_eq!(letters.next(QUIET).await, None, "nothing is stored");
    stage.assert_nothing_left().await;
}
