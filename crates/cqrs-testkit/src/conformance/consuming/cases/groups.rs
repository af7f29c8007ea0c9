//! Members of a group share the messages; every group gets all of them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::super::ConsumingHarness;
use super::super::opened::{Opened, ack, text};
use super::super::stage::{QUIET, Stage, fresh_group};

pub(crate) async fn every_group_gets_every_message<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let mut one = stage.open().await;
    let mut other = stage.open_with(|request| request.group = fresh_group().into()).await;
    stage.publish_all((0..20).map(|number| stage.message(number))).await;
    let all: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    assert_eq!(one.all_acked(20).await, all, "the first group");
    assert_eq!(other.all_acked(20).await, all, "the second group");
    one.close().await;
    other.close().await;
}

const SHARED: usize = 200;

/// Acks what comes until all are `acked` by whomever and nothing comes for a while: a member that leaves
/// earlier gives back what it has.
async fn share(
    mut member: Opened,
    first: String,
    acked: &AtomicUsize,
    patience: Duration,
) -> Vec<String> {
    let (mut mine, end) = (vec![first], Instant::now() + patience);
    acked.fetch_add(1, Relaxed);
    loop {
        match member.acked_within(QUIET).await {
            Some(text) => {
                mine.push(text);
                acked.fetch_add(1, Relaxed);
            }
            None if acked.load(Relaxed) >= SHARED || Instant::now() >= end => break,
            None => {}
        }
    }
    member.close().await;
    mine
}

pub(crate) async fn members_of_a_group_share_the_messages<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let mut one = stage.open().await;
    let mut other = stage.open().await;
    // What is published before each has its share may move from one to the other.
    tokio::join!(one.wait_until_consuming(), other.wait_until_consuming());
    let message = |number: usize| stage.message_of(&format!("key-{}", number % 20), number);
    stage.publish_all((0..SHARED).map(message)).await;
    // Both must get something while neither has settled anything.
    let (first, second) = tokio::join!(one.next(), other.next());
    let (mine, others) = (text(&first), text(&second));
    assert!(ack(first).await & ack(second).await, "neither was taken away");
    let (acked, patience) = (AtomicUsize::new(0), stage.can.patience);
    let (mine, others) =
        tokio::join!(share(one, mine, &acked, patience), share(other, others, &acked, patience));
    let distinct: BTreeSet<_> = mine.iter().chain(&others).collect();
    assert_eq!(distinct.len(), SHARED, "lost, of {SHARED}");
    assert_eq!(mine.len() + others.len(), SHARED, "shared, not copied");
    stage.assert_nothing_left().await;
}

pub(crate) async fn a_group_that_is_away_misses_nothing<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    stage.make_group().await;
    stage.publish_all((1..=3).map(|number| stage.message(number))).await;
    assert_eq!(stage.left().await, ["1", "2", "3"]);
}
