//! Fault tests of a server that is down or refuses messages.

use std::time::Duration;

use super::kills::{PREFETCH, handled};
use crate::amqp::Raw;
use crate::consuming::audit::Audit;
use crate::consuming::fixture::{Fixture, count, ids, outage, until, until_within};
use crate::consuming::journal::Mark;
use crate::consuming::outcomes::{Outcomes, Summary};
use crate::consuming::work::{Act, Kind, Work};
use crate::control::{Restore, ctl, full};
use crate::kafka;

/// RabbitMQ 4.3 forgets a quorum queue that was declared just before the server is killed. There is
/// no condition to wait for.
async fn queues_are_known(kind: Kind) {
    if kind == Kind::Amqp {
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

/// 2, 18: the server is killed while messages are handled and dead letters are written.
pub async fn server_killed(kind: Kind, program: &'static str) -> Summary {
    let fixture = Fixture::new(kind, program, "server", 4).await;
    let mut options = fixture.options();
    options.handler_ms = (10, 50);
    fixture.declare(&options).await;
    let (kills, total) = (count(1, 3), count(8_000, 100_000));
    let works = Work::over(1_000, total).enumerate().map(|(n, work)| match n % 200 {
        199 => work.act(Act::Permanent),
        _ => work,
    });
    let published = fixture.publish(works).await;
    let deadly = total / 200;
    queues_are_known(kind).await;
    let mut outcomes = fixture.outcomes();
    let worker = fixture.start(&options, &mut outcomes).await;
    let mut bound = 0;
    for kill in 1..=kills {
        handled(&mut outcomes, total * kill / (kills + 2)).await;
        bound += match kind {
            Kind::Kafka => outcomes.handled(),
            Kind::Amqp => PREFETCH,
        };
        outage(kind, "kill", tokio::time::sleep(Duration::from_secs(count(2, 10) as u64))).await;
        // Messages handled while the server was down could not be committed.
        if kind == Kind::Kafka {
            bound = outcomes.refresh().handled();
        }
    }
    let limit = Duration::from_secs(120 + total as u64 / 500);
    until_within(limit, "all others to be handled", async || {
        outcomes.refresh().handled() == total - deadly
    })
    .await;
    fixture.until_settled_but(total, deadly).await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(total).await;
    let dead = fixture.dead().await;
    let test = format!("{kind:?} server kill -9 x{kills} while consuming");
    let summary = outcomes.check(&test, &published, &ids(&dead));
    let of = match kind {
        Kind::Kafka => "handled before the server was back: at most what was not committed",
        Kind::Amqp => "prefetch x kills",
    };
    let summary = summary.sound(format!("bound of duplicates {bound} ({of})"));
    assert_eq!(summary.dead, deadly, "{summary}");
    let most_copies = match kind {
        // Those of before the server was back, as the duplicates.
        Kind::Kafka => deadly,
        Kind::Amqp => 16,
    };
    assert!(summary.dead_copies <= kills * most_copies, "{summary}");
    assert!(summary.duplicates <= bound, "{summary}");
    fixture.clean().await;
    summary
}

/// 18: the target of dead letters is missing: nothing is settled until it exists. The consumer is
/// killed in between.
pub async fn no_place_for_dead_letters(kind: Kind, program: &'static str) -> Summary {
    let fixture = Fixture::new(kind, program, "target", 4).await;
    let mut options = fixture.options();
    (options.handler_ms, options.concurrency) = ((1, 5), 8);
    options.instance = Some("one".into());
    fixture.declare(&options).await;
    options.makes_dead_letter_target = false;
    let dead_name = fixture.dead_name();
    if kind == Kind::Amqp {
        Raw::connect().await.clean(&[&dead_name], &[]).await;
    }
    let (total, deadly) = (200, 5);
    let works = Work::over(50, total).enumerate().map(|(n, work)| match n % 40 {
        10 => work.act(Act::Permanent),
        _ => work,
    });
    let published = fixture.publish(works).await;
    let (mut outcomes, mut audit) = (fixture.outcomes(), Audit::default());
    let worker = fixture.start(&options, &mut outcomes).await;
    let failures = |outcomes: &Outcomes| {
        outcomes.lines().iter().filter(|line| line.mark == Mark::Fail).count()
    };
    until("a message that cannot be handled", async || failures(outcomes.refresh()) > 0).await;
    let end = tokio::time::Instant::now() + Duration::from_secs(count(3, 30) as u64);
    while tokio::time::Instant::now() < end {
        // No commit is beyond a message that has no dead letter yet.
        if kind == Kind::Kafka {
            audit.check(&fixture, &mut outcomes).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let handled_meanwhile = outcomes.refresh().handled();
    worker.kill().await;
    let before = failures(outcomes.refresh());
    let worker = fixture.start(&options, &mut outcomes).await;
    until("the failure of a redelivered message", async || failures(outcomes.refresh()) > before)
        .await;
    match kind {
        Kind::Kafka => kafka::create_topic(&dead_name, 1, &[]).await,
        Kind::Amqp => {
            let raw = Raw::connect().await;
            raw.queue(&dead_name, "quorum", "", &[]).await;
            raw.clean(&[], &[]).await;
        }
    }
    handled(&mut outcomes, total - deadly).await;
    fixture.until_settled_but(total, deadly).await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(total).await;
    let dead = fixture.dead().await;
    let test = format!("{kind:?} no place for dead letters");
    let summary = outcomes.check(&test, &published, &ids(&dead));
    let summary = summary.sound(format!("handled while there was none: {handled_meanwhile}"));
    assert_eq!(summary.dead, deadly, "{summary}");
    assert!(summary.dead_copies <= 1, "{summary}");
    fixture.clean().await;
    summary
}

/// 20: RabbitMQ's memory alarm stops publishers, not consumers.
pub async fn memory_alarm(program: &'static str) -> Summary {
    let fixture = Fixture::new(Kind::Amqp, program, "alarm", 1).await;
    let mut options = fixture.options();
    // So slow that enough is left when the alarm is on.
    options.handler_ms = if full() { (10, 50) } else { (50, 100) };
    fixture.declare(&options).await;
    let (total, more) = (count(16_000, 100_000), 500);
    let mut published = fixture.publish(Work::over(1_000, total)).await;
    let mut outcomes = fixture.outcomes();
    let worker = fixture.start(&options, &mut outcomes).await;
    handled(&mut outcomes, 100).await;
    crate::consuming::fixture::announce("memory alarm on rabbitmq, some seconds");
    let restore = Restore::by(["ctl", "rabbitmq", "set_vm_memory_high_watermark", "0.6"]);
    ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    let before = outcomes.refresh().handled();
    // More than are in flight, so that acks arrive; not all, for publishers would wait too long.
    let goal = total.min(before + 1_000);
    let late = (0..more).map(|n| Work::new(format!("late{n}"), 0));
    let (during, late) = {
        let mut publishing = std::pin::pin!(fixture.try_publish(late));
        let consuming = handled(&mut outcomes, goal);
        tokio::select! {
            () = consuming => {}
            _ = &mut publishing => panic!("published during the alarm"),
        }
        ctl(&["set_vm_memory_high_watermark", "0.6"]).await;
        drop(restore);
        (goal - before, publishing.await)
    };
    assert!(during > PREFETCH, "only {during} were left to be handled during the alarm");
    assert_eq!(late.confirmed.len(), more, "published after the alarm");
    published.add(late);
    handled(&mut outcomes, total + more).await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(total + more).await;
    let summary = outcomes.check("Amqp memory alarm", &published, &[]);
    let summary =
        summary.sound(format!("handled during the alarm {during}, then published {more}"));
    assert_eq!((summary.duplicates, summary.interrupted), (0, 0), "{summary}");
    fixture.clean().await;
    summary
}
