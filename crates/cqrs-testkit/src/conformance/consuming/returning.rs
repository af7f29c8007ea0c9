//! Cases of unsettled deliveries, which are redelivered.

use cqrs_core::consume::SourceDelivery;

use crate::conformance::fixture::Fixture;
use crate::conformance::harness::Harness;
use crate::source::{ack, text};

const KEYS: [&str; 3] = ["a", "b", "c"];

/// Publishes one message of each key, so that none waits for another.
async fn publish_one_of_each<H: Harness>(fixture: &Fixture<'_, H>) {
    fixture.publish_all(KEYS.map(|key| fixture.message_of(key, key))).await;
}

async fn assert_all_redelivered<H: Harness>(fixture: &Fixture<'_, H>, held: Vec<SourceDelivery>) {
    let mut source = fixture.open().await;
    let mut held = Some(held);
    let mut texts = Vec::new();
    // One after the other: a source may deliver a redelivered message alone.
    for _ in KEYS {
        let delivery = source.next().await;
        // The former deliveries are revoked now.
        drop(held.take());
        texts.push(text(&delivery));
        let redelivered = delivery.message.redelivered;
        assert!(redelivered || !fixture.can.redelivered, "it is marked as redelivered");
        assert!(ack(delivery).await);
    }
    texts.sort();
    assert_eq!(texts, KEYS);
    source.close().await;
    fixture.assert_all_settled().await;
}

pub(crate) async fn dropped_delivery_is_redelivered<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
    let mut source = fixture.open().await;
    publish_one_of_each(&fixture).await;
    let mut dropped = None;
    for delivery in source.begin(KEYS.len()).await {
        match dropped {
            None => dropped = Some(text(&delivery)),
            Some(_) => assert!(ack(delivery).await),
        }
    }
    let again = source.next().await;
    assert_eq!(Some(text(&again)), dropped);
    assert!(again.message.redelivered || !fixture.can.redelivered, "it is marked as redelivered");
    assert!(ack(again).await);
    source.close().await;
    fixture.assert_all_settled().await;
}

pub(crate) async fn unsettled_is_redelivered_after_a_crash<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
    let mut source = fixture.open().await;
    publish_one_of_each(&fixture).await;
    let held = source.begin(KEYS.len()).await;
    // As a process that dies.
    drop(source);
    assert_all_redelivered(&fixture, held).await;
}

pub(crate) async fn unsettled_is_redelivered_after_a_close<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
    let mut source = fixture.open().await;
    fixture.publish(fixture.message("done")).await;
    assert_eq!(source.ack_next().await, "done");
    publish_one_of_each(&fixture).await;
    let held = source.begin(KEYS.len()).await;
    source.close().await;
    assert_all_redelivered(&fixture, held).await;
}

pub(crate) async fn returned_delivery_is_revoked<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
    let mut source = fixture.open().await;
    publish_one_of_each(&fixture).await;
    let mut held = source.take(KEYS.len()).await;
    let (running, waiting) = held.split_at_mut(1);
    assert!(waiting.iter().all(|delivery| !delivery.settle.is_revoked()), "they are not revoked");
    assert!(running[0].settle.begin(), "it is not revoked");
    source.close().await;
    for delivery in waiting {
        assert!(delivery.settle.is_revoked() && !delivery.settle.begin(), "it was requeued");
    }
    // The ack may return Ok, but must have no effect.
    let _refused = running[0].settle.ack().await;
    drop(held);
    let mut unsettled = fixture.unsettled().await;
    unsettled.sort();
    assert_eq!(unsettled, KEYS);
}
