//! Cases of lost connections: no confirmed message is lost, and order holds.

use std::collections::{BTreeMap, BTreeSet};

use cqrs_core::broker::Receipt;
use cqrs_core::message::content_type;

use super::fixture::{ProducingFixture, numbers};
use crate::conformance::harness::{Fault, Harness, Setup};
use crate::probe::StoredMessage;

pub(crate) async fn cuts_lose_nothing_confirmed_and_keep_order<H: Harness>(harness: &H) {
    if harness.capabilities().cut {
        publish_through(harness, Fault::Cut, 3).await;
    }
}

pub(crate) async fn a_restart_loses_nothing_confirmed<H: Harness>(harness: &H) {
    if harness.capabilities().restart {
        publish_through(harness, Fault::Restart, 1).await;
    }
}

/// Publishes without a pause while `fault` happens `times` times.
async fn publish_through<H: Harness>(harness: &H, fault: Fault<'_>, times: usize) {
    const BETWEEN: usize = 600;
    const KEYS: usize = 8;
    const WINDOW: usize = 200;
    let setup = Setup { window_messages: WINDOW, with_faults: true, ..Setup::default() };
    let mut fixture = ProducingFixture::with(harness, setup).await;
    let count = BETWEEN * (times + 1);
    let mut ids = Vec::new();
    let mut receipts: Vec<Receipt> = Vec::new();
    for number in 0..count {
        if number > 0 && number.is_multiple_of(BETWEEN) {
            // In the middle of a full window.
            harness.inject(fault).await;
        }
        // A content type with which every broker carries the id.
        let message = fixture
            .message(number)
            .with_key(format!("key-{}", number % KEYS))
            .with_content_type(content_type::PROTOBUF);
        ids.push(message.id);
        receipts.push(fixture.enqueue(message).await);
    }
    fixture.all_confirmed(receipts).await;

    let mut arrived = BTreeSet::new();
    let mut last: BTreeMap<_, usize> = BTreeMap::new();
    let mut duplicates = 0;
    let mut take = |message: StoredMessage| {
        let number = numbers(std::slice::from_ref(&message))[0];
        assert_eq!(message.id, Some(ids[number]), "a message keeps its id");
        if !arrived.insert(number) {
            duplicates += 1;
            return arrived.len();
        }
        let before = last.insert(message.key.clone(), number);
        assert!(
            before < Some(number),
            "out of order: {number} of key {:?} first arrived after {before:?}",
            message.key
        );
        arrived.len()
    };
    let mut there = 0;
    while there < count {
        match fixture.probe.next(fixture.can.timeout).await {
            Some(message) => there = take(message),
            None => panic!("lost: {there} of {count} confirmed messages arrived"),
        }
    }
    assert!(duplicates <= WINDOW * times, "{duplicates} duplicates: more than was in flight");
    println!(
        "{times} x {fault:?}: attempted {count}, confirmed {count}, arrived {there}, \
         duplicates {duplicates}"
    );
}
