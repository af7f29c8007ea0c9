//! Cases of groups: members share the messages, every group receives all of them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::conformance::fixture::{Fixture, QUIET, fresh_group};
use crate::conformance::harness::Harness;
use crate::source::{TestSource, ack, is_consuming, text};

pub(crate) async fn every_group_gets_every_message<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
    let mut one = fixture.open().await;
    let mut other = fixture.open_with(|request| request.group = fresh_group().into()).await;
    fixture.publish_all((0..20).map(|number| fixture.message(number))).await;
    let all: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    assert_eq!(one.ack(20).await, all, "the first group");
    assert_eq!(other.ack(20).await, all, "the second group");
    one.close().await;
    other.close().await;
}

const SHARED: usize = 200;

/// Acks deliveries until both members have `acked` all and nothing is received for a while: a member that
/// leaves earlier returns its deliveries.
async fn share(
    mut member: TestSource,
    first: String,
    acked: &AtomicUsize,
    timeout: Duration,
) -> Vec<String> {
    let (mut mine, end) = (vec![first], Instant::now() + timeout);
    acked.fetch_add(1, Relaxed);
    loop {
        match member.ack_within(QUIET).await {
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

pub(crate) async fn members_of_a_group_share_the_messages<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
    let mut one = fixture.open().await;
    let mut other = fixture.open().await;
    // Messages published before each member has its share may move from one to the other.
    tokio::join!(one.poll_until(is_consuming), other.poll_until(is_consuming));
    let message = |number: usize| fixture.message_of(&format!("key-{}", number % 20), number);
    fixture.publish_all((0..SHARED).map(message)).await;
    // Both must receive a message while neither has settled one.
    let (first, second) = tokio::join!(one.next(), other.next());
    let (mine, others) = (text(&first), text(&second));
    assert!(ack(first).await & ack(second).await, "neither was revoked");
    let (acked, timeout) = (AtomicUsize::new(0), fixture.can.timeout);
    let (mine, others) =
        tokio::join!(share(one, mine, &acked, timeout), share(other, others, &acked, timeout));
    let distinct: BTreeSet<_> = mine.iter().chain(&others).collect();
    assert_eq!(distinct.len(), SHARED, "lost, of {SHARED}");
    assert_eq!(mine.len() + others.len(), SHARED, "shared, not copied");
    fixture.assert_all_settled().await;
}

pub(crate) async fn absent_group_misses_nothing<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
    fixture.make_group().await;
    fixture.publish_all((1..=3).map(|number| fixture.message(number))).await;
    assert_eq!(fixture.unsettled().await, ["1", "2", "3"]);
}
