//! Lost connections and lost processes.

use cqrs_core::consume::SourceStatus;
use tokio::sync::watch;

use super::super::service::Log;
use super::super::stage::{QUIET, Stage};
use super::super::{ConsumingFault, ConsumingHarness};

pub(crate) async fn starts_that_came_to_no_end_are_counted<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let mut opened = stage.open().await;
    stage.publish(stage.message("1")).await;
    for crashes in 0..3 {
        let mut delivery = opened.next().await;
        let expected = if stage.can.crashes { crashes } else { 0 };
        assert_eq!(delivery.retry.crashes, expected, "after {crashes} crashes");
        assert_eq!(delivery.retry.attempts, 0, "a crash is no failed attempt");
        assert!(delivery.settle.begin());
        // A broker may write it down a moment later.
        tokio::time::sleep(QUIET).await;
        opened.crash();
        drop(delivery);
        opened = stage.open().await;
    }
    assert_eq!(opened.acked().await, "1");
    opened.close().await;
    stage.assert_nothing_left().await;
}

fn is_disconnected(status: &SourceStatus) -> bool {
    matches!(status, SourceStatus::Disconnected { .. })
}

pub(crate) async fn an_outage_is_told_and_mended<H: ConsumingHarness>(harness: &H) {
    if !harness.capabilities().cut {
        return;
    }
    let stage = Stage::with_faults(harness).await;
    let mut opened = stage.open().await;
    stage.publish(stage.message("1")).await;
    let held = opened.next().await;
    stage.inject(ConsumingFault::Away).await;
    opened.wait_for("Disconnected", is_disconnected).await;
    stage.inject(ConsumingFault::Back).await;
    opened.wait_until_consuming().await;
    drop(held);
    stage.publish(stage.message("2")).await;
    let mut came = Vec::new();
    while !came.contains(&"2".to_owned()) {
        came.push(opened.acked().await);
    }
    assert_eq!(came, ["1", "2"], "what was out came again");
    opened.close().await;
    stage.assert_nothing_left().await;
}

pub(crate) async fn cuts_lose_nothing_and_keep_order<H: ConsumingHarness>(harness: &H) {
    const KEYS: u32 = 5;
    const COUNT: u32 = 300;
    const CUTS: u32 = 3;
    if !harness.capabilities().cut {
        return;
    }
    let (stage, log) = (Stage::with_faults(harness).await, Log::default());
    let gate = watch::Sender::new(true);
    let handler = {
        let gate = gate.subscribe();
        log.each_async(move |_| {
            let mut gate = gate.clone();
            async move {
                drop(gate.wait_for(|open| *open).await);
                Ok(())
            }
        })
    };
    let running = stage.run(stage.subscription().concurrency(4), handler).await;
    // Two of a key come one behind the other.
    let event = |number: u32| stage.event(&format!("key-{}", number / 2 % KEYS), number);
    let part = |part: u32| part * COUNT / (CUTS + 1)..(part + 1) * COUNT / (CUTS + 1);
    let handled = || {
        let mut numbers: Vec<_> = log.notes().iter().map(|note| note.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.len()
    };
    for cut in 0..CUTS {
        // Some handlers run while it happens, and their messages are out.
        gate.send_replace(false);
        let before = log.len();
        stage.publish_all(part(cut).map(event)).await;
        stage.until("some of them run", || log.len() > before).await;
        stage.inject(ConsumingFault::Cut).await;
        tokio::time::sleep(QUIET).await;
        let mut now: Vec<_> =
            log.notes().split_off(before).into_iter().map(|run| run.key).collect();
        now.sort();
        assert!(now.windows(2).all(|pair| pair[0] != pair[1]), "two of a key at once: {now:?}");
        gate.send_replace(true);
        stage.until("all are handled", || handled() == part(cut).end as usize).await;
    }
    stage.publish_all(part(CUTS).map(event)).await;
    stage.until("all are handled", || handled() == COUNT as usize).await;
    stage.until("the service is ready again", || running.is_ready()).await;
    running.end().await;
    for first in 0..KEYS {
        let mut seen = Vec::new();
        for number in log.numbers(&format!("key-{first}")) {
            if !seen.contains(&number) {
                seen.push(number);
            }
        }
        assert!(seen.is_sorted(), "first runs of key-{first} in order: {seen:?}");
    }
    stage.assert_nothing_left().await;
}
