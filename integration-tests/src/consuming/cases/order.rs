//! Fault tests of many handlers at once: order, commits, speed.

use std::time::{Duration, Instant};

use super::kills::PREFETCH;
use crate::consuming::audit::Audit;
use crate::consuming::fixture::{Fixture, count, until};
use crate::consuming::journal::{Line, Mark};
use crate::consuming::outcomes::Summary;
use crate::consuming::work::{Kind, Work};
use crate::control::full;

/// 12: handlers of 0 to 50 ms, 64 at once, while another client reads the commits.
pub async fn audited(kind: Kind, program: &'static str) -> Summary {
    let fixture = Fixture::new(kind, program, "audited", 4).await;
    let mut options = fixture.options();
    options.handler_ms = (0, 50);
    fixture.declare(&options).await;
    let total = count(10_000, 100_000);
    let published = fixture.publish(Work::over(200, total)).await;
    let (mut outcomes, mut audit) = (fixture.outcomes(), Audit::default());
    let worker = fixture.start(&options, &mut outcomes).await;
    let mut looks = 0;
    let end = Instant::now() + Duration::from_secs(60 + total as u64 / 200);
    while outcomes.refresh().handled() < total {
        assert!(Instant::now() < end, "{} of {total} handled", outcomes.handled());
        match kind {
            Kind::Kafka => drop(audit.check(&fixture, &mut outcomes).await),
            Kind::Amqp => {
                // RabbitMQ does not report it; it is at most the prefetch.
                let settled = total - fixture.waiting().await;
                let handled = outcomes.refresh().handled();
                assert!(settled <= handled + PREFETCH, "{settled} gone, {handled} handled");
            }
        }
        looks += 1;
    }
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(total).await;
    let test = format!("{kind:?} handlers of 0-50 ms, 64 at once, audited");
    let summary = outcomes.check(&test, &published, &[]);
    let moves = audit.moves;
    let summary = summary.sound(format!("{looks} looks at what is settled, {moves} new commits"));
    assert_eq!((summary.duplicates, summary.interrupted), (0, 0), "{summary}");
    assert!(looks > 2 && (kind != Kind::Kafka || moves >= 4), "nothing was seen: {summary}");
    fixture.clean().await;
    summary
}

/// Handlers on one partition, 1,000 keys: 64 run at once, and those of 10 ms are many times as fast as one
/// alone, in full 50 times. A small and busy machine shows less.
pub async fn speed_up(kind: Kind, program: &'static str) {
    let most = most_at_once(&handle(kind, program, 64, 1_000, 128).await);
    assert!((60..=64).contains(&most), "{most} handlers at once");
    let least = if full() { 50.0 } else { 15.0 };
    let mut best = (0.0, String::new());
    // The other load of this machine slows the faster run more.
    for _ in 0..3 {
        let (alone, _) = rate(&handle(kind, program, 1, 10, 200).await);
        let (many, took) = rate(&handle(kind, program, 64, 10, count(8_000, 50_000)).await);
        let ratio = many / alone;
        println!("{kind:?}: {alone:.0}/s alone, {many:.0}/s with 64 ({took:.1?}): x{ratio:.1}");
        if ratio > best.0 {
            best = (ratio, format!("{alone:.0}/s with 1, {many:.0}/s with 64"));
        }
        if ratio >= least {
            break;
        }
    }
    println!(
        "SUMMARY {kind:?} {most} handlers at once, those of 10 ms, 1,000 keys: x{:.1} | {}",
        best.0, best.1
    );
    assert!(best.0 >= least, "x{:.1}", best.0);
}

/// The handlers' results for `total` messages.
async fn handle(
    kind: Kind,
    program: &'static str,
    concurrency: usize,
    handler_ms: u64,
    total: usize,
) -> Vec<Line> {
    let fixture = Fixture::new(kind, program, "speed", 1).await;
    let mut options = fixture.options();
    (options.concurrency, options.handler_ms) = (concurrency, (handler_ms, handler_ms));
    fixture.declare(&options).await;
    fixture.publish(Work::over(1_000, total)).await;
    let mut outcomes = fixture.outcomes();
    let worker = fixture.start(&options, &mut outcomes).await;
    until("all to be handled", async || outcomes.refresh().handled() == total).await;
    worker.stop().await;
    let lines = outcomes.lines().to_vec();
    fixture.clean().await;
    lines
}

/// Messages handled per second, and the time of all.
fn rate(lines: &[Line]) -> (f64, Duration) {
    let ends = lines.iter().filter(|line| line.mark == Mark::End).count();
    let first = lines.first().expect("a line").at;
    let took = lines.last().expect("a line").at - first;
    (ends as f64 / took.as_secs_f64(), took)
}

/// The most handlers that had started and not ended.
fn most_at_once(lines: &[Line]) -> usize {
    let (mut running, mut most) = (0_usize, 0);
    for line in lines {
        match line.mark {
            Mark::Start => running += 1,
            Mark::End | Mark::Fail => running -= 1,
        }
        most = most.max(running);
    }
    most
}
