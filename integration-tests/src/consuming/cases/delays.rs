//! Fault tests of delayed retries.

use std::collections::HashMap;
use std::time::Duration;

use crate::amqp;
use crate::consuming::fixture::{Fixture, count, ids, outage, until, until_within};
use crate::consuming::journal::{Mark, now};
use crate::consuming::outcomes::{Outcomes, Summary};
use crate::consuming::work::{Act, Id, Kind, Work};
use crate::control::{ctl, full};

/// A wait between two attempts.
struct Wait {
    /// 1: before the second attempt.
    number: u32,
    from: Duration,
    to: Duration,
}

/// The waits between a failed attempt and the next one of the same message.
fn waits(outcomes: &Outcomes) -> Vec<Wait> {
    let mut failed: HashMap<&Id, (u32, Duration)> = HashMap::new();
    let mut waits = Vec::new();
    for line in outcomes.lines() {
        match line.mark {
            Mark::Fail => {
                let first = failed.entry(&line.id).or_insert((line.attempt, line.at));
                if first.0 < line.attempt {
                    *first = (line.attempt, line.at);
                }
            }
            Mark::Start => {
                let Some((attempt, at)) = failed.get(&line.id).copied() else { continue };
                // Failed again: the server went down before it confirmed the copy.
                if line.attempt > attempt {
                    assert_eq!(line.attempt, attempt + 1, "{line:?}");
                    failed.remove(&line.id);
                    waits.push(Wait { number: attempt, from: at, to: line.at });
                }
            }
            Mark::End => {}
        }
    }
    waits
}

async fn until_done(outcomes: &mut Outcomes, goal: usize) {
    until_within(Duration::from_secs(240), "messages to be handled", async || {
        outcomes.refresh().handled() >= goal
    })
    .await;
}

/// RabbitMQ moves expired messages of a queue as soon as that is up. When the target queue is not up
/// yet, it retries after 3 min (`dead_letter_worker_publisher_confirm_timeout`); new workers at once.
async fn wake_dead_letter_workers() {
    tokio::time::sleep(Duration::from_secs(3)).await;
    let workers = "supervisor:which_children(rabbit_fifo_dlx_sup)";
    ctl(&["eval", &format!("[exit(P, kill) || {{_, P, _, _}} <- {workers}, is_pid(P)].")]).await;
}

/// 23: retries after 1, 3 and 6 s (in full 1, 5 and 30 s) while the server restarts.
pub async fn server_restarts(kind: Kind, program: &'static str) -> Summary {
    /// The allowed lateness of the median and of the latest.
    const LATE: Duration = Duration::from_secs(2);
    const LATEST: Duration = Duration::from_secs(30);
    let fixture = Fixture::new(kind, program, "delays", 4).await;
    let mut options = fixture.options();
    options.delayed_ms =
        if full() { vec![1_000, 5_000, 30_000] } else { vec![1_000, 3_000, 6_000] };
    options.handler_ms = (0, 5);
    fixture.declare(&options).await;
    let each = count(50, 500);
    // Each key: one that fails some times, and one behind it.
    let wave = |name: &str, fails: u32| {
        let name = name.to_owned();
        (0..each).flat_map(move |n| {
            let key = format!("{name}{fails}-{n}");
            [Work::new(&*key, 0).act(Act::Fail(fails)), Work::new(&*key, 1)]
        })
    };
    let mut outcomes = fixture.outcomes();
    let worker = fixture.start(&options, &mut outcomes).await;
    // Short waits behind long ones, without a fault.
    let mut published = fixture.publish((1..=3).flat_map(|fails| wave("a", fails))).await;
    until_done(&mut outcomes, 4 * each).await;
    published.add(fixture.publish((1..=2).flat_map(|fails| wave("b", fails))).await);
    until_done(&mut outcomes, 10 * each).await;
    // The same, and the server restarts when all wait.
    published.add(fixture.publish((1..=3).flat_map(|fails| wave("c", fails))).await);
    until_done(&mut outcomes, 13 * each).await;
    let down = now();
    outage(kind, "stop", async {}).await;
    let up = now();
    if kind == Kind::Amqp && !full() && amqp::version().await >= (4, 0) {
        wake_dead_letter_workers().await;
    }
    until_done(&mut outcomes, 16 * each).await;
    // Messages handled while the server was down are settled once it is up.
    fixture.until_settled(16 * each).await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(16 * each).await;
    let waits = waits(outcomes.refresh());
    let (mut early, mut late) = (0, Vec::new());
    for Wait { number, from, to } in &waits {
        let asked = Duration::from_millis(options.delayed_ms[*number as usize - 1]);
        let took = *to - *from;
        early += usize::from(took < asked);
        // Messages due while the server is down are late, on RabbitMQ later ones too: its dead-letter
        // workers may wait 3 min before a retry.
        let fault = *to > down && (*from < up + LATE || kind == Kind::Amqp);
        if !fault {
            late.push(took.saturating_sub(asked));
        }
    }
    late.sort_unstable();
    let (median, latest) = (late[late.len() / 2], late[late.len() - 1]);
    let summary = outcomes.check(&format!("{kind:?} delayed retries, restart"), &published, &[]);
    let count = waits.len();
    let summary = summary.sound(format!(
        "waits {count} early {early} late by {median:.0?} (away from the restart {latest:.0?} at \
         most), server away {:.1?}",
        up - down
    ));
    assert!(count >= 15 * each, "{summary}");
    assert_eq!(early, 0, "{summary}");
    assert!(median <= LATE && latest <= LATEST, "{summary}");
    assert!(summary.duplicates <= 192, "{summary}");
    fixture.clean().await;
    summary
}

/// Waits until the server has recorded this many attempts of `total` messages: before that the last ones
/// are redelivered when the consumer is killed.
async fn until_noted(fixture: &Fixture, attempts: u32, total: usize) {
    match fixture.kind {
        Kind::Kafka => {
            until("the attempts to be noted", async || fixture.noted(attempts).await == total)
                .await;
        }
        Kind::Amqp => {
            let (raw, queue) =
                (amqp::Raw::connect().await, format!("{}.{}", fixture.topic, fixture.group));
            let copies = format!("{queue}.retry.10s");
            until("the copies", async || raw.count(&copies).await as usize == total).await;
            raw.clean(&[], &[]).await;
            // A copy's confirm is followed by the ack of the original.
            until("the acks", async || amqp::unacknowledged(&queue).await == Some(0)).await;
        }
    }
}

/// Attempts are counted on when the consumer is stopped or killed between them.
pub async fn attempts_travel(kind: Kind, program: &'static str) -> Summary {
    let fixture = Fixture::new(kind, program, "attempts", 4).await;
    let mut options = fixture.options();
    // Time for a worker to go before the second attempts, and for another to be killed before the third.
    options.delayed_ms = vec![4_000, 10_000, 1_500];
    options.instance = Some("one".into());
    fixture.declare(&options).await;
    let total = 40;
    let works = (0..total).map(|n| Work::new(format!("k{n}"), 0).act(Act::Fail(u32::MAX)));
    let published = fixture.publish(works).await;
    let mut outcomes = fixture.outcomes();
    let failed = async |outcomes: &mut Outcomes, goal: usize| {
        until("attempts to fail", async || {
            let fails = outcomes.refresh().lines().iter().filter(|line| line.mark == Mark::Fail);
            fails.count() >= goal
        })
        .await;
    };
    let worker = fixture.start(&options, &mut outcomes).await;
    failed(&mut outcomes, total).await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    let worker = fixture.start(&options, &mut outcomes).await;
    failed(&mut outcomes, 2 * total).await;
    until_noted(&fixture, 2, total).await;
    worker.kill().await;
    let worker = fixture.start(&options, &mut outcomes).await;
    failed(&mut outcomes, 4 * total).await;
    fixture.until_settled_but(total, total).await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    let dead = fixture.dead().await;
    let test = format!("{kind:?} attempts over SIGTERM and kill -9");
    let summary = outcomes.check(&test, &published, &ids(&dead));
    let attempts = outcomes.lines().iter().filter(|line| line.mark == Mark::Fail).count();
    let summary = summary.sound(format!("attempts {attempts} of {} asked", 4 * total));
    assert!(dead.iter().all(|dead| dead.letter.attempts == 4), "{dead:?}");
    assert_eq!((summary.dead, summary.dead_copies, attempts), (total, 0, 4 * total), "{summary}");
    fixture.clean().await;
    summary
}
