//! Fault test of memory with a long backlog.

use std::time::Duration;

use crate::consuming::fixture::{Fixture, count, until_within};
use crate::consuming::work::{Kind, Work};

/// The allowed growth of a worker after its first 10,000 messages, in KiB.
const GROWTH: u64 = 16 << 10;

/// A million messages, handled more slowly than they are sent.
pub async fn backlog(kind: Kind, program: &'static str) {
    let fixture = Fixture::new(kind, program, "memory", 4).await;
    let mut options = fixture.options();
    (options.handler_ms, options.concurrency) = ((1, 1), 16);
    fixture.declare(&options).await;
    let total = count(100_000, 1_000_000);
    let started = std::time::Instant::now();
    let published = fixture.publish(Work::over(10_000, total)).await;
    let publishing = started.elapsed();
    let mut outcomes = fixture.outcomes();
    let worker = fixture.start(&options, &mut outcomes).await;
    let limit = Duration::from_secs(60 + total as u64 / 1_000);
    let mut wait = async |goal: usize| {
        until_within(limit, "messages to be handled", async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            outcomes.refresh().handled() >= goal
        })
        .await;
    };
    wait(10_000).await;
    let (first, started) = (worker.peak_memory(), std::time::Instant::now());
    wait(total).await;
    let (peak, took) = (worker.peak_memory(), started.elapsed());
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(total).await;
    let summary = outcomes.check(&format!("{kind:?} backlog of {total}"), &published, &[]);
    let grown = peak.saturating_sub(first);
    let rate = (total - 10_000) as f64 / took.as_secs_f64();
    let summary = summary.sound(format!(
        "most memory {first} KiB after 10,000, {peak} KiB in the end (+{grown}), {rate:.0}/s, \
         published in {publishing:.0?}"
    ));
    assert_eq!((summary.duplicates, summary.interrupted), (0, 0), "{summary}");
    assert!(grown < GROWTH, "{summary}");
    fixture.clean().await;
}
