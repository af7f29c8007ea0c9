//! What is not settled comes again.

use cqrs_core::consume::SourceDelivery;

use super::super::ConsumingHarness;
use super::super::opened::{Opened, ack, text};
use super::super::stage::Stage;

const KEYS: [&str; 3] = ["a", "b", "c"];

/// One message of each key, and nothing else that could keep it waiting.
async fn publish_one_of_each<H: ConsumingHarness>(stage: &Stage<'_, H>) {
    stage.publish_all(KEYS.map(|key| stage.message_of(key, key))).await;
}

async fn begin_all(opened: &mut Opened) -> Vec<SourceDelivery> {
    let mut held = opened.take(KEYS.len()).await;
    for delivery in &mut held {
        assert!(delivery.settle.begin(), "it is this one's");
    }
    held
}

async fn assert_all_come_again<H: ConsumingHarness>(
    stage: &Stage<'_, H>,
    held: Vec<SourceDelivery>,
) {
    let mut opened = stage.open().await;
    let mut held = Some(held);
    let mut texts = Vec::new();
    // One after the other: a source may hand out alone what came back.
    for _ in KEYS {
        let delivery = opened.next().await;
        // They are in other hands now.
        drop(held.take());
        texts.push(text(&delivery));
        let redelivered = delivery.message.redelivered;
        assert!(redelivered || !stage.can.redelivered, "it says that it came before");
        assert!(ack(delivery).await);
    }
    texts.sort();
    assert_eq!(texts, KEYS);
    opened.close().await;
    stage.assert_nothing_left().await;
}

pub(crate) async fn a_dropped_delivery_comes_again<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let mut opened = stage.open().await;
    publish_one_of_each(&stage).await;
    let mut dropped = None;
    for delivery in begin_all(&mut opened).await {
        match dropped {
            None => dropped = Some(text(&delivery)),
            Some(_) => assert!(ack(delivery).await),
        }
    }
    let again = opened.next().await;
    assert_eq!(Some(text(&again)), dropped);
    assert!(again.message.redelivered || !stage.can.redelivered, "it says that it came before");
    assert!(ack(again).await);
    opened.close().await;
    stage.assert_nothing_left().await;
}

pub(crate) async fn what_is_unsettled_comes_again_after_a_crash<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let mut opened = stage.open().await;
    publish_one_of_each(&stage).await;
    let held = begin_all(&mut opened).await;
    opened.crash();
    assert_all_come_again(&stage, held).await;
}

pub(crate) async fn what_is_unsettled_comes_again_after_a_close<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let mut opened = stage.open().await;
    stage.publish(stage.message("done")).await;
    assert_eq!(opened.acked().await, "done");
    publish_one_of_each(&stage).await;
    let held = begin_all(&mut opened).await;
    opened.close().await;
    assert_all_come_again(&stage, held).await;
}

pub(crate) async fn what_was_given_back_is_no_longer_ones_own<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let mut opened = stage.open().await;
    publish_one_of_each(&stage).await;
    let mut held = opened.take(KEYS.len()).await;
    let (running, waiting) = held.split_at_mut(1);
    assert!(waiting.iter().all(|delivery| !delivery.settle.is_revoked()), "they are this one's");
    assert!(running[0].settle.begin(), "it is this one's");
    opened.close().await;
    for delivery in waiting {
        assert!(delivery.settle.is_revoked() && !delivery.settle.begin(), "it was given back");
    }
    // Whether the broker knows better than to say Ok, it must not count.
    let _refused = running[0].settle.ack().await;
    drop(held);
    let mut left = stage.left().await;
    left.sort();
    assert_eq!(left, KEYS);
}
