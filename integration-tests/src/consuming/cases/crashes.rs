//! Fault tests of messages whose handling kills the process.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::kills::handled;
use crate::consuming::TIMEOUT;
use crate::consuming::fixture::{Fixture, ids, until, until_within};
use crate::consuming::outcomes::{Outcomes, Summary};
use crate::consuming::work::{Act, Id, Kind, Work, WorkerOptions};
use crate::{amqp, kafka};

/// Most starts of a deadly message before it is a dead letter: two until it runs alone, then `max_crashes`.
/// RabbitMQ before 4.3 counts other returns too, of which ten are forgiven.
async fn most_starts(kind: Kind, max_crashes: u32) -> u32 {
    match kind {
        Kind::Amqp if !amqp::counts_deaths().await => 2 + 10 + max_crashes,
        Kind::Kafka | Kind::Amqp => 2 + max_crashes,
    }
}

/// Restarts the process after each crash, at most `most` times in all, until it has handled `goal` and has
/// `dead` dead letters. Returns the number of starts.
async fn supervise(
    fixture: &Fixture,
    options: &WorkerOptions,
    outcomes: &mut Outcomes,
    (goal, dead): (usize, usize),
    most: u32,
) -> u32 {
    for starts in 1..=most {
        let mut worker = fixture.spawn(options);
        let mut alive = true;
        // The last one to be handled may be a deadly one. One that has crashed waits for half a minute.
        until_within(2 * TIMEOUT, "its end, or all to be settled", async || {
            alive = !worker.has_exited();
            !alive
                || outcomes.refresh().handled() == goal
                    && fixture.is_settled_but(goal + dead, dead).await
        })
        .await;
        if alive {
            let (status, _) = worker.stop().await;
            assert!(status.success(), "{status}");
            return starts;
        }
    }
    panic!("it is killed after {most} starts: {:?}", outcomes.refresh().interrupted());
}

/// 16: a supervisor restarts the process until it stays up; the message becomes a dead letter within its
/// allowed starts, and no other message does.
pub async fn aborts(kind: Kind, program: &'static str) -> Summary {
    let fixture = Fixture::new(kind, program, "abort", 4).await;
    let mut options = fixture.options();
    // With more, it waits for half a minute before each further start.
    (options.handler_ms, options.max_crashes) = ((5, 20), 2);
    options.instance = Some("one".into());
    fixture.declare(&options).await;
    let total = 1_000;
    let works = Work::over(100, total).enumerate().map(|(n, work)| match n {
        500 => Work::new("abort", 0).act(Act::Abort),
        _ => work,
    });
    let works: Vec<_> = works.collect();
    let deadly = works[500].id();
    let published = fixture.publish(works).await;
    let mut outcomes = fixture.outcomes();
    let most = most_starts(kind, options.max_crashes).await;
    let starts = supervise(&fixture, &options, &mut outcomes, (total - 1, 1), most + 1).await;
    let dead = fixture.dead().await;
    let test = format!("{kind:?} one aborts the process");
    let summary = outcomes.check(&test, &published, &ids(&dead));
    let tries = outcomes.entry(&deadly).starts;
    let summary = summary.sound(format!("starts of the process {starts}, of its handler {tries}"));
    assert_eq!((summary.dead, summary.dead_copies, dead[0].id()), (1, 0, deadly), "{summary}");
    assert!(tries <= most, "{summary}");
    fixture.clean().await;
    summary
}

/// A process that is killed five times from outside, with a slow message among those prefetched or running:
/// no message becomes a dead letter.
pub async fn killed_five_times(kind: Kind, program: &'static str) -> Summary {
    let fixture = Fixture::new(kind, program, "killed", 1).await;
    let mut options = fixture.options();
    (options.handler_ms, options.concurrency, options.max_crashes) = ((5, 20), 4, 3);
    options.instance = Some("one".into());
    fixture.declare(&options).await;
    let (total, kills) = (200, 5);
    let works = Work::over(40, total).enumerate().map(|(n, work)| match n {
        5 => work.act(Act::Take(1_500)),
        _ => work,
    });
    let published = fixture.publish(works).await;
    let mut outcomes = fixture.outcomes();
    for kill in 1..=kills {
        let worker = fixture.spawn(&options);
        handled(&mut outcomes, kill * total / 10).await;
        worker.kill().await;
    }
    let worker = fixture.spawn(&options);
    handled(&mut outcomes, total).await;
    fixture.until_settled(total).await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(total).await;
    let dead = fixture.dead().await;
    let summary = outcomes.check(&format!("{kind:?} kill -9 x{kills}"), &published, &ids(&dead));
    assert_eq!(summary.dead, 0, "{summary}");
    fixture.clean().await;
    summary
}

/// 16 on Kafka, harder: several deadly messages at once, among others that fail and are retried.
pub async fn several_abort(program: &'static str) -> Summary {
    let fixture = Fixture::new(Kind::Kafka, program, "aborts", 3).await;
    let mut options = fixture.options();
    (options.handler_ms, options.concurrency, options.max_crashes) = ((1, 10), 16, 2);
    options.delayed_ms = vec![1_000];
    options.instance = Some("one".into());
    let total = 600;
    let works = Work::over(60, total).enumerate().map(|(n, work)| match n {
        // The first ones of their partitions, some next to each other, and the last one.
        0 | 250 | 251 | 599 => Work::new(format!("abort{n}"), 0).act(Act::Abort),
        n if n % 50 == 7 => Work::new(format!("fail{n}"), 0).act(Act::Fail(1)),
        _ => work,
    });
    let works: Vec<_> = works.collect();
    let deadly = works.iter().filter(|work| work.act == Act::Abort);
    let deadly: HashSet<Id> = deadly.map(Work::id).collect();
    let published = fixture.publish(works).await;
    let mut outcomes = fixture.outcomes();
    let each = most_starts(Kind::Kafka, options.max_crashes).await;
    let most = each * 4 + 1;
    let starts = supervise(&fixture, &options, &mut outcomes, (total - 4, 4), most).await;
    let dead = fixture.dead().await;
    let summary = outcomes.check("Kafka several abort the process", &published, &ids(&dead));
    let tries: Vec<u32> = deadly.iter().map(|id| outcomes.entry(id).starts).collect();
    let summary =
        summary.sound(format!("starts of the process {starts}, of the deadly ones {tries:?}"));
    assert_eq!(ids(&dead).into_iter().collect::<HashSet<_>>(), deadly, "{summary}");
    fixture.clean().await;
    summary
}

/// Kafka: processes that are killed or asked to end again and again, in the middle of handlers: nothing is
/// dead-lettered, and a graceful end leaves no quarantine.
pub async fn ends_condemn_nothing(program: &'static str) -> Summary {
    let fixture = Fixture::new(Kind::Kafka, program, "ends", 3).await;
    let mut options = fixture.options();
    (options.handler_ms, options.concurrency, options.max_crashes) = ((20, 60), 16, 2);
    options.instance = Some("one".into());
    let (total, ends) = (1_500, 8);
    let published = fixture.publish(Work::over(100, total)).await;
    let mut outcomes = fixture.outcomes();
    let mut counted = 0;
    for end in 1..=ends {
        let worker = fixture.start(&options, &mut outcomes).await;
        handled(&mut outcomes, total * end / (ends + 4)).await;
        // Three kills in a row, then a graceful end.
        match end % 4 {
            0 => drop(worker.stop().await),
            _ => worker.kill().await,
        }
        for partition in 0..3 {
            let (_, metadata) = kafka::committed(&fixture.group, &fixture.topic, partition).await;
            counted += metadata.matches(";c=").count();
        }
    }
    let worker = fixture.start(&options, &mut outcomes).await;
    handled(&mut outcomes, total).await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(total).await;
    for partition in 0..3 {
        let (_, metadata) = kafka::committed(&fixture.group, &fixture.topic, partition).await;
        assert_eq!(metadata, "cqrs1", "of partition {partition}");
    }
    let summary = outcomes.check("Kafka kill -9 and SIGTERM condemn nothing", &published, &[]);
    let summary = summary.sound(format!("ends {ends}, crashes counted {counted}"));
    fixture.clean().await;
    summary
}

/// A record for each of `partitions` partitions whose handler takes this many milliseconds.
fn one_each(partitions: i32, takes: u64) -> Vec<Work> {
    let key = |partition| {
        let mut keys = (0..).map(|n| format!("slow{n}"));
        keys.find(|key| kafka::java_partition(key.as_bytes(), partitions) == partition)
    };
    let work = |partition| Work::new(key(partition).expect("a key"), 0).act(Act::Take(takes));
    (0..partitions).map(work).collect()
}

/// Kafka: after one kill, slow messages of several partitions run beside each other as before.
pub async fn one_kill_slows_nothing(program: &'static str) -> Summary {
    let fixture = Fixture::new(Kind::Kafka, program, "once", 8).await;
    let mut options = fixture.options();
    (options.concurrency, options.instance) = (16, Some("one".into()));
    let published = fixture.publish(one_each(8, 5_000)).await;
    let mut outcomes = fixture.outcomes();
    let worker = fixture.start(&options, &mut outcomes).await;
    until("all to run", async || outcomes.refresh().interrupted().len() == 8).await;
    worker.kill().await;
    let worker = fixture.start(&options, &mut outcomes).await;
    let start = Instant::now();
    handled(&mut outcomes, 8).await;
    let took = start.elapsed();
    // One after the other they take 40 s.
    assert!(took < Duration::from_secs(20), "{took:?}");
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(8).await;
    let summary = outcomes.check("Kafka one kill slows nothing", &published, &[]);
    let summary = summary.sound(format!("{took:.1?} for 8 of 5 s"));
    fixture.clean().await;
    summary
}

/// Kafka: a process that is killed five times soon after its start, beside a slow message.
pub async fn short_lives_condemn_nothing(program: &'static str) -> Summary {
    let fixture = Fixture::new(Kind::Kafka, program, "lives", 1).await;
    let mut options = fixture.options();
    (options.max_crashes, options.instance) = (3, Some("one".into()));
    let published = fixture.publish(one_each(1, 6_000)).await;
    let mut outcomes = fixture.outcomes();
    for _ in 0..5 {
        let worker = fixture.start(&options, &mut outcomes).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        worker.kill().await;
    }
    let (_, metadata) = kafka::committed(&fixture.group, &fixture.topic, 0).await;
    let worker = fixture.start(&options, &mut outcomes).await;
    handled(&mut outcomes, 1).await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(1).await;
    let summary = outcomes.check("Kafka five short lives condemn nothing", &published, &[]);
    let summary = summary.sound(format!("left behind: {metadata}"));
    fixture.clean().await;
    summary
}
