//! Fault tests of the end of the consumer's process, by SIGKILL and SIGTERM.

use std::time::Duration;

use crate::amqp;
use crate::consuming::audit::{Audit, may_be_redelivered};
use crate::consuming::fixture::{Fixture, count, until};
use crate::consuming::journal::Mark;
use crate::consuming::outcomes::{Outcomes, Summary};
use crate::consuming::work::{Act, Id, Kind, Work};

/// RabbitMQ's prefetch at a concurrency of 64.
pub(super) const PREFETCH: usize = 192;

pub(super) async fn handled(outcomes: &mut Outcomes, goal: usize) {
    let what = format!("{goal} to be handled");
    until(&what, async || outcomes.refresh().handled() >= goal).await;
}

/// 7: `kill -9`, again and again.
pub async fn killed(kind: Kind, program: &'static str) -> Summary {
    let fixture = Fixture::new(kind, program, "killed", 4).await;
    let mut options = fixture.options();
    options.handler_ms = (10, 50);
    // A static member takes over at once; for another one the group waits 45 s.
    options.instance = Some("one".into());
    fixture.declare(&options).await;
    let (kills, total) = (count(4, 10), count(10_000, 100_000));
    let published = fixture.publish(Work::over(1_000, total)).await;
    let (mut outcomes, mut audit) = (fixture.outcomes(), Audit::default());
    let mut bound = 0;
    for kill in 1..=kills {
        let worker = fixture.start(&options, &mut outcomes).await;
        handled(&mut outcomes, total * kill / (kills + 1)).await;
        worker.kill().await;
        bound += may_be_redelivered(&fixture, &mut outcomes, &mut audit, PREFETCH).await;
    }
    let worker = fixture.start(&options, &mut outcomes).await;
    handled(&mut outcomes, total).await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(total).await;
    let of = match kind {
        Kind::Kafka => "handled since the last commits",
        Kind::Amqp => "prefetch x kills",
    };
    let summary = outcomes.check(&format!("{kind:?} consumer kill -9 x{kills}"), &published, &[]);
    let summary = summary.sound(format!("bound of duplicates {bound} ({of})"));
    assert!(summary.duplicates <= bound, "{summary}");
    assert!(summary.interrupted <= kills * options.concurrency, "{summary}");
    fixture.clean().await;
    summary
}

/// 8: SIGTERM under load, again and again: running handlers finish and settle, nothing is redelivered.
pub async fn terminated(kind: Kind, program: &'static str, keys: usize) -> Summary {
    let fixture = Fixture::new(kind, program, "terminated", 4).await;
    let mut options = fixture.options();
    options.handler_ms = (10, 50);
    fixture.declare(&options).await;
    let (stops, total) = (count(4, 10), count(10_000, 100_000));
    let published = fixture.publish(Work::over(keys, total)).await;
    let mut outcomes = fixture.outcomes();
    let mut slowest = Duration::ZERO;
    let mut ended = Vec::new();
    for stop in 1..=stops {
        let worker = fixture.start(&options, &mut outcomes).await;
        handled(&mut outcomes, total * stop / (stops + 1)).await;
        let pid = worker.pid;
        let (status, took) = worker.stop().await;
        assert!(status.success(), "{status}");
        slowest = slowest.max(took);
        outcomes.refresh();
        let report = outcomes.reports().iter().find(|(of, _)| *of == pid).expect("a report");
        let text = &report.1;
        assert!(text.contains("cancelled: 0") && text.contains("error: None"), "{text}");
        assert!(text.contains("unacked: 0"), "{text}");
        ended.push(outcomes.handled());
    }
    let worker = fixture.start(&options, &mut outcomes).await;
    handled(&mut outcomes, total).await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(total).await;
    let test = format!("{kind:?} SIGTERM x{stops}, {keys} keys");
    let summary = outcomes.check(&test, &published, &[]);
    let note = format!("slowest exit {slowest:.2?} handled at exits {ended:?}");
    // Where every return counts as a delivery (3.10), returned messages run alone, and a key's order may change.
    let summary = match kind == Kind::Amqp && !amqp::counts_deaths().await {
        true => summary.complete(note),
        false => summary.sound(note),
    };
    assert!(slowest <= Duration::from_secs(30), "{slowest:?}");
    assert_eq!((summary.duplicates, summary.interrupted), (0, 0), "{summary}");
    fixture.clean().await;
    summary
}

/// 9: handlers of 60 s, a drain of 5 s, SIGTERM: an exit long before they are done, and exactly the
/// unfinished messages are redelivered.
pub async fn overdue(kind: Kind, program: &'static str) -> Summary {
    let fixture = Fixture::new(kind, program, "overdue", 1).await;
    let mut options = fixture.options();
    (options.concurrency, options.drain_ms) = (8, 5_000);
    fixture.declare(&options).await;
    // Three that take long with one waiting behind each of them, and quick ones behind those.
    let mut works = Vec::new();
    for slow in 0..3 {
        let key = format!("slow{slow}");
        works.push(Work::new(&*key, 0).act(Act::Take(60_000)));
        works.push(Work::new(&*key, 1));
    }
    works.extend(Work::over(10, 200));
    let published = fixture.publish(works).await;
    let mut outcomes = fixture.outcomes();
    let worker = fixture.start(&options, &mut outcomes).await;
    let running = |outcomes: &Outcomes| {
        let open = outcomes.interrupted();
        open.iter().filter(|(key, _)| key.starts_with("slow")).count() == 3
    };
    until("the slow ones run, the others are done", async || {
        running(outcomes.refresh()) && outcomes.handled() == 200
    })
    .await;
    let (status, took) = worker.stop().await;
    assert!(status.success(), "{status}");
    let first = outcomes.refresh().lines().len();
    options.hurry = true;
    let worker = fixture.start(&options, &mut outcomes).await;
    handled(&mut outcomes, 206).await;
    worker.stop().await;
    fixture.settled(206).await;
    let came: Vec<&Id> = outcomes.lines()[first..]
        .iter()
        .filter(|line| line.mark == Mark::Start)
        .map(|line| &line.id)
        .collect();
    let test = format!("{kind:?} handlers of 60 s, drain 5 s, SIGTERM");
    let came = came.iter().map(|(key, seq)| format!("{key}:{seq}")).collect::<Vec<_>>();
    let summary = outcomes.check(&test, &published, &[]);
    let summary = summary.sound(format!("exit after {took:.2?}, redelivered {}", came.len()));
    let mut sorted = came.clone();
    sorted.sort();
    assert_eq!(sorted, ["slow0:0", "slow0:1", "slow1:0", "slow1:1", "slow2:0", "slow2:1"]);
    assert!(took <= Duration::from_secs(40), "{took:?}");
    assert_eq!((summary.duplicates, summary.interrupted), (0, 3), "{summary}");
    fixture.clean().await;
    summary
}
