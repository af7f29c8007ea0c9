//! Cases of lost connections and lost processes.

use tokio::sync::watch;

use super::service::Log;
use crate::conformance::fixture::{Fixture, QUIET};
use crate::conformance::harness::{Fault, Harness};
use crate::source::{is_consuming, is_disconnected};

pub(crate) async fn unfinished_starts_count_as_crashes<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
    let mut source = fixture.open().await;
    fixture.publish(fixture.message("1")).await;
    for crashes in 0..3 {
        let mut delivery = source.next().await;
        let expected = if fixture.can.crashes { crashes } else { 0 };
        assert_eq!(delivery.retry.crashes, expected, "after {crashes} crashes");
        assert_eq!(delivery.retry.attempts, 0, "a crash is no failed attempt");
        assert!(delivery.settle.begin());
        // A broker may record the start a moment later.
        tokio::time::sleep(QUIET).await;
        // Dropped without a settlement or a close, as by a killed process.
        drop((source, delivery));
        source = fixture.open().await;
    }
    assert_eq!(source.ack_next().await, "1");
    source.close().await;
    fixture.assert_all_settled().await;
}

pub(crate) async fn outage_is_reported_and_recovered_from<H: Harness>(harness: &H) {
    if !harness.capabilities().cut {
        return;
    }
    let fixture = Fixture::with_faults(harness).await;
    let mut source = fixture.open().await;
    fixture.publish(fixture.message("1")).await;
    let held = source.next().await;
    fixture.inject(Fault::Disconnect).await;
    source.poll_until(is_disconnected).await;
    fixture.inject(Fault::Reconnect).await;
    source.poll_until(is_consuming).await;
    drop(held);
    fixture.publish(fixture.message("2")).await;
    let mut came = Vec::new();
    while !came.contains(&"2".to_owned()) {
        came.push(source.ack_next_unrevoked().await);
    }
    assert_eq!(came, ["1", "2"], "the delivery in flight is redelivered");
    source.close().await;
    fixture.assert_all_settled().await;
}

pub(crate) async fn cuts_lose_nothing_and_keep_order<H: Harness>(harness: &H) {
    const KEYS: u32 = 5;
    const COUNT: u32 = 300;
    const CUTS: u32 = 3;
    if !harness.capabilities().cut {
        return;
    }
    let (fixture, log) = (Fixture::with_faults(harness).await, Log::default());
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
    let running = fixture.run(fixture.subscription().concurrency(4), handler).await;
    // Two messages of a key are consecutive.
    let event = |number: u32| fixture.event(&format!("key-{}", number / 2 % KEYS), number);
    let part = |part: u32| part * COUNT / (CUTS + 1)..(part + 1) * COUNT / (CUTS + 1);
    let handled = || {
        let mut numbers: Vec<_> = log.runs().iter().map(|run| run.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.len()
    };
    for cut in 0..CUTS {
        // Some handlers run during the cut, with their messages in flight.
        gate.send_replace(false);
        let before = log.len();
        fixture.publish_all(part(cut).map(event)).await;
        fixture.until("some of them run", || log.len() > before).await;
        fixture.inject(Fault::Cut).await;
        tokio::time::sleep(QUIET).await;
        let mut now: Vec<_> = log.runs().split_off(before).into_iter().map(|run| run.key).collect();
        now.sort();
        assert!(now.windows(2).all(|pair| pair[0] != pair[1]), "two of a key at once: {now:?}");
        gate.send_replace(true);
        fixture.until("all are handled", || handled() == part(cut).end as usize).await;
    }
    fixture.publish_all(part(CUTS).map(event)).await;
    fixture.until("all are handled", || handled() == COUNT as usize).await;
    fixture.until("the service is ready again", || running.is_ready()).await;
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
    fixture.assert_all_settled().await;
}
