//! Tests of the Kafka producer while the broker's process dies or hangs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_core::{Message, MessageBroker, MessageBrokerExt, PublishErrorKind};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
use integration_tests::control::{Restore, brokers, full};
use integration_tests::kafka::{Record, create_topic, fresh_topic, read_all};
use integration_tests::servers;
use tokio::sync::Mutex;

use crate::KAFKA;

const TASKS: usize = 64;
const KEYS: usize = 16;
/// From the server's return to the last confirm of what waited for it: the longest pause between
/// reconnects, and some for the requests.
const RECOVERY: Duration = Duration::from_secs(10);
/// The allowed time beyond a deadline on a busy machine.
const LATE: Duration = Duration::from_secs(30);

/// The publish results of a task.
#[derive(Default)]
struct Seen {
    confirmed: HashSet<String>,
    errors: BTreeMap<String, usize>,
    /// Messages with an error that excludes them from the log.
    certainly_absent: HashSet<String>,
    slowest: Duration,
    without_cause: usize,
}

/// `TASKS` tasks publish `events` in all, each message numbered per key in the order of `enqueue`.
/// `midway` runs when a third is confirmed.
async fn publish_all(
    broker: &KafkaMessageBroker,
    topic: &str,
    events: usize,
    midway: impl Future<Output = ()>,
) -> Seen {
    let numbers: Arc<Vec<Mutex<usize>>> = Arc::new((0..KEYS).map(|_| Mutex::new(0)).collect());
    let (progress, mut third) = tokio::sync::watch::channel(0_usize);
    let progress = Arc::new(progress);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (broker, topic) = (broker.clone(), topic.to_owned());
        let (numbers, progress) = (Arc::clone(&numbers), Arc::clone(&progress));
        tasks.spawn(async move {
            let mut seen = Seen::default();
            for n in 0..events / TASKS {
                let key = (task + n) % KEYS;
                let mut number = numbers[key].lock().await;
                let body = format!("{key}:{number}");
                let message = Message::new(&*topic, body.clone()).with_key(key.to_string());
                let started = Instant::now();
                let enqueued = broker.enqueue(message).await;
                *number += 1;
                drop(number);
                let outcome = match enqueued {
                    Ok(receipt) => receipt.await,
                    Err(error) => Err(error),
                };
                seen.slowest = seen.slowest.max(started.elapsed());
                match outcome {
                    Ok(_) => drop(seen.confirmed.insert(body)),
                    Err(error) => {
                        *seen.errors.entry(format!("{:?}", error.kind())).or_default() += 1;
                        seen.without_cause += usize::from(error.source().is_none());
                        if error.kind().is_certain() {
                            seen.certainly_absent.insert(body);
                        }
                    }
                }
                progress.send_modify(|count| *count += 1);
            }
            seen
        });
    }
    let midway = async {
        drop(third.wait_for(|&count| count >= events / 3).await.unwrap());
        midway.await;
    };
    let everything = async {
        let mut all = Seen::default();
        while let Some(seen) = tasks.join_next().await {
            let seen = seen.unwrap();
            all.confirmed.extend(seen.confirmed);
            all.certainly_absent.extend(seen.certainly_absent);
            for (kind, count) in seen.errors {
                *all.errors.entry(kind).or_default() += count;
            }
            all.slowest = all.slowest.max(seen.slowest);
            all.without_cause += seen.without_cause;
        }
        all
    };
    tokio::join!(everything, midway).0
}

/// Checks that no confirmed message is missing, none is duplicated or reported as absent, and order per key
/// holds.
fn check(records: &[Record], seen: &Seen) {
    let mut last: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut stored = HashSet::new();
    for record in records {
        let body = String::from_utf8(record.body.clone().unwrap()).unwrap();
        let number: usize = body.split_once(':').unwrap().1.parse().unwrap();
        let before = last.insert(record.key.clone().unwrap(), number);
        assert!(before.is_none_or(|before| before < number), "{body} after {before:?}");
        assert!(stored.insert(body.clone()), "{body} twice");
    }
    let lost: Vec<_> = seen.confirmed.difference(&stored).take(5).collect();
    assert!(lost.is_empty(), "confirmed and lost: {lost:?}");
    let lies: Vec<_> = seen.certainly_absent.intersection(&stored).take(5).collect();
    assert!(lies.is_empty(), "said to be absent, but stored: {lies:?}");
}

/// Publishes until a message is confirmed, with numbers from `first`: the deadline may be shorter than
/// what a server that has just started needs.
async fn publish_after(broker: &KafkaMessageBroker, topic: &str, first: usize) {
    let end = Instant::now() + Duration::from_secs(60);
    for number in first.. {
        let message = Message::new(topic, format!("0:{number}")).with_key("0");
        match broker.publish(message).await {
            Ok(_) => break,
            Err(error) => assert!(Instant::now() < end, "after the outage: {error:?}"),
        }
    }
}

async fn outage(
    name: &str,
    down: &str,
    up: [&'static str; 2],
    outage: Duration,
    timeout: Duration,
) {
    let _alone = KAFKA.write().await;
    let events = if full() { 100_000 } else { 12_800 };
    let mut config = KafkaConfig::new([servers::kafka()]);
    config.publish_timeout = timeout;
    let broker = servers::connected(|| KafkaMessageBroker::connect(config.clone())).await;
    let topic = fresh_topic(name);
    create_topic(&topic, 4, &[]).await;
    let restore = Restore::by(up);
    let started = Instant::now();
    // The time without an answer: the outage and the start of the server.
    let mut down_for = Duration::ZERO;
    let seen = publish_all(&broker, &topic, events, async {
        let since = Instant::now();
        brokers(&[down, "kafka"]).await;
        // The length of the outage is the subject.
        tokio::time::sleep(outage).await;
        brokers(&up).await;
        down_for = since.elapsed();
    })
    .await;
    drop(restore);
    let took = started.elapsed();
    publish_after(&broker, &topic, events).await;
    assert_eq!(broker.shutdown(Duration::from_secs(10)).await.undelivered, 0);
    let records = read_all(&topic).await;
    check(&records, &seen);
    assert_eq!(seen.without_cause, 0, "errors without a cause");
    println!(
        "SUMMARY kafka {name} outage={outage:?} down_for={down_for:.1?} deadline={timeout:?} \
         events={events} confirmed={} errors={:?} lost=0 duplicates=0 reordered=0 stored={} \
         slowest_publish={:.1?} took={took:.1?}",
        seen.confirmed.len(),
        seen.errors,
        records.len(),
        seen.slowest,
    );
    let slowest = seen.slowest;
    assert!(slowest < timeout + LATE, "a publish took {slowest:?}");
    if down_for > timeout {
        assert!(!seen.errors.is_empty(), "the outage was longer than the deadline");
    } else if down_for + RECOVERY < timeout {
        assert_eq!(seen.confirmed.len(), events / TASKS * TASKS, "{:?}", seen.errors);
        assert!(slowest < down_for + RECOVERY + LATE, "a publish took {slowest:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_killed_within_deadline_loses_nothing() {
    let length = Duration::from_secs(if full() { 10 } else { 3 });
    // Room for a slow start of the server.
    outage("killed-short", "kill", ["start", "kafka"], length, Duration::from_secs(90)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_killed_past_deadline_is_reported() {
    let (length, timeout) = if full() { (40, 30) } else { (10, 6) };
    outage(
        "killed-long",
        "kill",
        ["start", "kafka"],
        Duration::from_secs(length),
        Duration::from_secs(timeout),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_hanging_within_deadline_loses_nothing() {
    let length = Duration::from_secs(if full() { 12 } else { 3 });
    outage("paused-short", "pause", ["resume", "kafka"], length, Duration::from_secs(30)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_hanging_past_deadline_is_reported() {
    let (length, timeout) = if full() { (40, 30) } else { (10, 6) };
    outage(
        "paused-long",
        "pause",
        ["resume", "kafka"],
        Duration::from_secs(length),
        Duration::from_secs(timeout),
    )
    .await;
}

#[tokio::test]
async fn shutdown_of_a_hanging_broker_ends_and_counts() {
    let _alone = KAFKA.write().await;
    let mut config = KafkaConfig::new([servers::kafka()]);
    // The shutdown does not wait for it.
    config.publish_timeout = 3 * LATE;
    let broker = KafkaMessageBroker::connect(config).await.unwrap();
    let topic = fresh_topic("shutdown");
    broker.publish(Message::new(&*topic, "first")).await.unwrap();
    let restore = Restore::by(["resume", "kafka"]);
    brokers(&["pause", "kafka"]).await;
    let mut receipts = Vec::new();
    for n in 0..100 {
        receipts.push(broker.enqueue(Message::new(&*topic, n.to_string())).await.unwrap());
    }
    let started = Instant::now();
    let deadline = Duration::from_secs(2);
    let report = broker.shutdown(deadline).await;
    let took = started.elapsed();
    drop(restore);
    assert_eq!(report.undelivered, 100);
    assert!(took < deadline + LATE, "{took:?}");
    for receipt in receipts {
        assert_eq!(receipt.await.unwrap_err().kind(), PublishErrorKind::Unknown);
    }
    println!("SUMMARY kafka shutdown-hung deadline=2s took={took:.1?} undelivered=100");
}
