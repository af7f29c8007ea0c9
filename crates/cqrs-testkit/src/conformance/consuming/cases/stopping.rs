//! The bounds of a source: how much is out, what comes after a stop, how long a close takes.

use std::time::Duration;

use super::super::opened::{ack, text};
use super::super::stage::{QUIET, Stage};
use super::super::{ConsumingFault, ConsumingHarness};

/// What a close may take beyond its deadline on a busy machine; less than it takes to find out that a
/// server is mute.
const SLACK: Duration = Duration::from_secs(15);

pub(crate) async fn no_more_are_out_than_the_cap<H: ConsumingHarness>(harness: &H) {
    const CAP: usize = 3;
    const COUNT: usize = 8;
    let stage = Stage::new(harness).await;
    let mut opened = stage.open_with(|request| request.max_unsettled = Some(CAP)).await;
    let message = |number: usize| stage.message_of(&format!("key-{number}"), number);
    stage.publish_all((0..COUNT).map(message)).await;
    let mut out = opened.take(CAP).await;
    opened.nothing_within(QUIET).await;
    let mut done = Vec::new();
    while done.len() < COUNT {
        if out.is_empty() {
            out.push(opened.next().await);
        }
        let delivery = out.remove(0);
        done.push(text(&delivery));
        assert!(ack(delivery).await);
        // Not always: each partition may have a share of the cap only.
        out.extend(opened.next_within(QUIET).await);
        if out.len() == CAP {
            opened.nothing_within(QUIET / 6).await;
        }
    }
    done.sort();
    assert_eq!(done, (0..COUNT).map(|number| number.to_string()).collect::<Vec<_>>());
    opened.close().await;
}

pub(crate) async fn a_stopped_source_hands_out_nothing_more<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let mut opened = stage.open().await;
    stage.publish_all(["a", "b", "c"].map(|key| stage.message_of(key, key))).await;
    let held = opened.next().await;
    let mut others = vec!["a", "b", "c"];
    others.retain(|other| *other != text(&held));
    opened.stop().await;
    opened.nothing_within(QUIET).await;
    stage.publish(stage.message_of("d", "d")).await;
    others.push("d");
    opened.nothing_within(QUIET).await;
    assert!(ack(held).await, "what is out can be settled until the close");
    opened.close().await;
    let mut left = stage.left().await;
    left.sort();
    assert_eq!(left, others);
}

pub(crate) async fn close_ends_in_time<H: ConsumingHarness>(harness: &H) {
    const DEADLINE: Duration = Duration::from_secs(20);
    let stage = Stage::new(harness).await;
    let mut opened = stage.open().await;
    stage.publish(stage.message("1")).await;
    let held = opened.next().await;
    let took = opened.close_within(DEADLINE).await;
    assert!(took <= DEADLINE + SLACK, "took {took:?}");
    drop(held);
}

pub(crate) async fn close_ends_in_time_when_the_server_is_mute<H: ConsumingHarness>(harness: &H) {
    const DEADLINE: Duration = Duration::from_secs(1);
    if !harness.capabilities().mute {
        return;
    }
    let stage = Stage::with_faults(harness).await;
    let mut opened = stage.open().await;
    stage.publish(stage.message("1")).await;
    let held = opened.next().await;
    stage.inject(ConsumingFault::Mute).await;
    let took = opened.give_up_within(DEADLINE).await;
    stage.inject(ConsumingFault::Unmute).await;
    assert!(took <= DEADLINE + SLACK, "took {took:?}");
    drop(held);
}
