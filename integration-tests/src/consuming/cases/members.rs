//! Fault tests of Kafka groups: joining and leaving members, and handlers slower than the poll interval.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cqrs_core::MessageBroker;
use cqrs_core::service::{ServiceReport, StopHandle};
use tokio::task::JoinHandle;

use super::kills::handled;
use crate::consuming::fixture::{Fixture, count, until, until_within};
use crate::consuming::journal::{Journal, Mark, now};
use crate::consuming::outcomes::{Outcomes, Published, Summary};
use crate::consuming::run;
use crate::consuming::work::{Act, Kind, Work, WorkerOptions};
use crate::kafka::java_partition;

const PARTITIONS: i32 = 8;
/// Few, so that messages wait behind others of their key; still some for each partition.
const KEYS: usize = 100;

struct Member {
    stop: StopHandle,
    task: JoinHandle<ServiceReport>,
}

impl Member {
    async fn join(fixture: &Fixture, options: &WorkerOptions) -> Self {
        let journal = Arc::new(Journal::open(&options.journal).unwrap());
        let service = run::service(options, fixture.broker(), journal);
        let (stop, health) = (service.stop_handle(), service.health());
        let task = tokio::spawn(async move {
            service.run_until(std::future::pending::<()>()).await.expect("no error")
        });
        until("a member to consume", async || health.is_ready()).await;
        Self { stop, task }
    }

    async fn leave(self) {
        self.stop.stop();
        let report = self.task.await.unwrap();
        assert_eq!(report.subscriptions[0].error, None, "{report:?}");
    }

    async fn vanish(self) {
        self.task.abort();
        let _aborted = self.task.await;
    }
}

/// 10: from 1 to 5 to 2 members under a steady load.
pub async fn change(program: &'static str) -> Summary {
    let fixture = Fixture::new(Kind::Kafka, program, "members", PARTITIONS).await;
    let mut options = fixture.options();
    (options.handler_ms, options.concurrency) = ((5, 60), 64);
    options.session_timeout_ms = 6_000;
    let mut outcomes = fixture.outcomes();
    let mut members = vec![Member::join(&fixture, &options).await];
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(load(fixture.topic.clone(), Arc::clone(&stop)));
    handled(&mut outcomes, 1_000).await;
    let from = now();
    let mut changes = 0;
    for round in 0..count(1, 3) {
        while members.len() < 5 {
            members.push(Member::join(&fixture, &options).await);
            changes += 1;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        while members.len() > 2 {
            let member = members.remove(round % members.len());
            match changes % 3 {
                2 => member.vanish().await,
                _ => member.leave().await,
            }
            changes += 1;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
    let to = now();
    stop.store(true, Ordering::Release);
    let published = load.await.unwrap();
    handled(&mut outcomes, published.confirmed.len()).await;
    for member in members {
        member.leave().await;
    }
    fixture.settled(published.confirmed.len()).await;
    let idle = longest_idle(&outcomes, from, to);
    let summary = outcomes.check("Kafka 1 -> 5 -> 2 members, 8 partitions", &published, &[]);
    let out = changes * 5 * options.concurrency;
    let summary = summary.sound(format!(
        "{changes} changes, a partition idle for {idle:.1?} at most, in flight per change {out}"
    ));
    assert!(idle <= Duration::from_secs(45), "{summary}");
    assert!(summary.duplicates <= out, "{summary}");
    fixture.clean().await;
    summary
}

/// Publishes about 1,000 messages a second until it is stopped.
async fn load(topic: String, stop: Arc<AtomicBool>) -> Published {
    let broker = run::broker(Kind::Kafka, "", true);
    let mut published = Published::default();
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    for round in 0_usize.. {
        pace.tick().await;
        if stop.load(Ordering::Acquire) {
            break;
        }
        let mut receipts = Vec::new();
        for n in 20 * round..20 * (round + 1) {
            let work = Work::new(format!("k{}", n % KEYS), (n / KEYS) as u32);
            published.attempted.insert(work.id());
            receipts.push((work.id(), broker.enqueue(work.message(&topic)).await.unwrap()));
        }
        for (id, receipt) in receipts {
            receipt.await.unwrap();
            published.confirmed.insert(id);
        }
    }
    let _ = broker.shutdown(Duration::from_secs(5)).await;
    published
}

/// The longest time in which no handler started for some partition.
fn longest_idle(outcomes: &Outcomes, from: Duration, to: Duration) -> Duration {
    let of = |key: String| java_partition(key.as_bytes(), PARTITIONS);
    let mut last: HashMap<i32, Duration> =
        (0..KEYS).map(|key| (of(format!("k{key}")), from)).collect();
    assert_eq!(last.len(), PARTITIONS as usize, "a partition without a key");
    let mut longest = Duration::ZERO;
    for line in outcomes.lines() {
        let Some((partition, _)) = line.place else { continue };
        if line.mark == Mark::Start && line.at > from && line.at < to {
            let before = last.insert(partition, line.at).unwrap_or(from);
            longest = longest.max(line.at.saturating_sub(before));
        }
    }
    last.values().map(|at| to - *at).fold(longest, Duration::max)
}

/// A handler that takes longer than `max.poll.interval.ms`: the member keeps its partitions. When
/// another member joins meanwhile, the message goes to the new owner after the revoke drain, and is
/// handled there again.
pub async fn slow_handler(program: &'static str, joined: bool) -> Summary {
    let fixture = Fixture::new(Kind::Kafka, program, "slow", 2).await;
    let mut options = fixture.options();
    (options.concurrency, options.handler_ms) = (4, (0, 0));
    (options.session_timeout_ms, options.max_poll_interval_ms) = (6_000, 6_000);
    let slow: Vec<_> = (0..4).map(|n| Work::new(format!("slow{n}"), 0)).collect();
    let works = slow.iter().map(|work| work.clone().act(Act::Take(count(13_000, 20_000) as u64)));
    let mut published = fixture.publish(works).await;
    let mut outcomes = fixture.outcomes();
    let worker = fixture.start(&options, &mut outcomes).await;
    until("the slow ones run", async || outcomes.refresh().lines().len() == 4).await;
    let second = if joined {
        options.hurry = true;
        Some(fixture.start(&options, &mut outcomes).await)
    } else {
        None
    };
    handled(&mut outcomes, 4).await;
    // Later messages are received: no member was removed.
    published.add(fixture.publish(Work::over(100, 500)).await);
    until_within(Duration::from_secs(30), "the others", async || {
        outcomes.refresh().handled() == 504
    })
    .await;
    // The slow handlers of a member that lost their partition end as well.
    until("the slow ones to end", async || outcomes.refresh().interrupted().is_empty()).await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    if let Some(second) = second {
        assert!(second.stop().await.0.success());
    }
    fixture.settled(504).await;
    let repeated = slow.iter().filter(|work| outcomes.entry(&work.id()).starts == 2).count();
    let test = match joined {
        false => "Kafka slow handlers, max.poll.interval 6 s, alone",
        true => "Kafka slow handlers, max.poll.interval 6 s, a member joins",
    };
    let summary = outcomes.check(test, &published, &[]);
    let summary = summary.sound(format!("slow ones that were handled again {repeated} of 4"));
    match joined {
        false => assert_eq!(summary.duplicates, 0, "{summary}"),
        true => {
            assert!(summary.duplicates <= 4 && summary.most <= 2, "{summary}");
        }
    }
    fixture.clean().await;
    summary
}
