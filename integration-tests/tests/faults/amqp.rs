//! Tests of the RabbitMQ producer while its server or network fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, ErrorKind};
use cqrs_core::broker::BrokerState;
use cqrs_core::{Message, MessageBroker, MessageBrokerExt, PublishErrorKind};
use cqrs_testkit::FaultProxy;
use integration_tests::amqp::{self, Outcomes, Raw};
use integration_tests::consuming::fixture::until;
use integration_tests::control::{Restore, brokers, full};
use integration_tests::servers::connected;
use tokio::task::JoinHandle;

use crate::RABBITMQ;

/// The allowed time beyond a deadline on a busy machine.
const LATE: Duration = Duration::from_secs(30);

async fn through_proxy(config: &mut AmqpConfig) -> FaultProxy {
    let proxy = FaultProxy::start("127.0.0.1:0", amqp::address()).await.unwrap();
    config.dsn = format!("amqp://guest:guest@{}", proxy.address()).into();
    proxy
}

/// Waits until the broker value knows that its connection is lost.
async fn lost(broker: &AmqpMessageBroker) {
    until("the loss to be seen", async || {
        matches!(broker.state(), BrokerState::Disconnected { .. })
    })
    .await;
}

/// Publishers that go on until they are stopped, or until each has published its share. Every tenth message
/// waits for its confirm, the others are awaited in the background.
struct Load {
    tasks: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    outcomes: Arc<Outcomes>,
}

impl Load {
    fn start(broker: &Arc<AmqpMessageBroker>, tasks: usize, each: usize, pause: Duration) -> Self {
        let (stop, outcomes) = (Arc::new(AtomicBool::new(false)), Arc::new(Outcomes::default()));
        let tasks = (0..tasks)
            .map(|task| {
                let (broker, outcomes, stop) =
                    (Arc::clone(broker), Arc::clone(&outcomes), Arc::clone(&stop));
                tokio::spawn(async move {
                    let mut background = Vec::new();
                    for n in 0..each {
                        if stop.load(Ordering::Acquire) {
                            break;
                        }
                        let key = format!("{task}-{}", n % 8);
                        let message = Message::new("t", "{}").with_key(key.clone());
                        let (id, started) = (message.id, Instant::now());
                        match broker.enqueue(message).await {
                            Ok(receipt) => {
                                outcomes.attempt(&key, id);
                                let outcomes = Arc::clone(&outcomes);
                                let confirm = async move {
                                    let outcome = receipt.await;
                                    outcomes.outcome(id, started.elapsed(), outcome);
                                };
                                match n % 10 {
                                    0 => confirm.await,
                                    _ => background.push(tokio::spawn(confirm)),
                                }
                            }
                            Err(error) => {
                                outcomes.outcome::<()>(id, started.elapsed(), Err(error));
                            }
                        }
                        if !pause.is_zero() {
                            tokio::time::sleep(pause).await;
                        }
                    }
                    for confirm in background {
                        confirm.await.unwrap();
                    }
                })
            })
            .collect();
        Self { tasks, stop, outcomes }
    }

    /// Waits until `more` were confirmed on top of those so far.
    async fn confirms(&self, more: usize) {
        let goal = self.outcomes.confirmed() + more;
        until("more confirms", async || self.outcomes.confirmed() >= goal).await;
    }

    async fn stop(self) -> Arc<Outcomes> {
        self.stop.store(true, Ordering::Release);
        self.join().await
    }

    async fn join(self) -> Arc<Outcomes> {
        for task in self.tasks {
            task.await.unwrap();
        }
        self.outcomes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_connection_loses_nothing_and_keeps_order() {
    let _alone = RABBITMQ.write().await;
    let (name, raw, mut config) = amqp::with_queue("cut", "quorum", "t").await;
    let proxy = through_proxy(&mut config).await;
    let broker = Arc::new(AmqpMessageBroker::connect(config).await.unwrap());
    let each = if full() { 100_000 / 64 } else { 20_000 / 64 };
    let load = Load::start(&broker, 64, each, Duration::ZERO);
    load.confirms(64 * each / 3).await;
    proxy.cut();
    let outcomes = load.join().await;
    let summary = outcomes.check("amqp cut in the middle", &raw.drain(&name).await);
    summary.assert_sound();
    assert_eq!(summary.confirmed, 64 * each, "{summary}");
    assert!(summary.duplicates <= 1_000, "more than the window: {summary}");
    let _ = broker.shutdown(Duration::from_secs(5)).await;
    raw.clean(&[&name], &[&name]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unconfirmed_is_republished_after_a_cut() {
    let _alone = RABBITMQ.write().await;
    let (name, raw, mut config) = amqp::with_queue("cuts", "classic", "t").await;
    (config.pool_size, config.channels_per_connection) = (2, 2);
    let proxy = through_proxy(&mut config).await;
    let broker = Arc::new(AmqpMessageBroker::connect(config).await.unwrap());
    let load = Load::start(&broker, 16, usize::MAX, Duration::from_millis(1));
    let cuts = if full() { 30 } else { 8 };
    for cut in 0..cuts {
        load.confirms(50).await;
        // A message is on its way at once; which part of it arrived, the moment decides.
        tokio::time::sleep(Duration::from_millis(cut)).await;
        proxy.cut();
    }
    load.confirms(500).await;
    let outcomes = load.stop().await;
    let summary = outcomes.check(&format!("amqp {cuts} cuts"), &raw.drain(&name).await);
    summary.assert_sound();
    assert_eq!(summary.confirmed, summary.attempted, "{summary}");
    let _ = broker.shutdown(Duration::from_secs(5)).await;
    raw.clean(&[&name], &[&name]).await;
}

async fn kill_and_start(kind: &str, down: Duration, timeout: Duration, test: &str) {
    let (name, raw, mut config) = amqp::with_queue("kill", kind, "t").await;
    config.publish_timeout = timeout;
    config.window_messages = 200;
    let broker = Arc::new(connected(|| AmqpMessageBroker::connect(config.clone())).await);
    let load = Load::start(&broker, 16, usize::MAX, Duration::from_millis(5));
    load.confirms(500).await;
    // RabbitMQ 4.3 forgets a quorum queue, content and all, when it is killed just after the queue was
    // declared ("configured member was not found on this node"). There is nothing to wait for but time.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let restore = Restore::by(["start", "rabbitmq"]);
    brokers(&["kill", "rabbitmq"]).await;
    drop(raw);
    let back = Instant::now() + down;
    lost(&broker).await;
    tokio::time::sleep_until(back.into()).await;
    brokers(&["start", "rabbitmq"]).await;
    std::mem::forget(restore);
    until("the broker to be ready by itself", async || broker.state().is_ready()).await;
    load.confirms(500).await;
    let outcomes = load.stop().await;
    let raw = Raw::connect().await;
    let summary = outcomes.check(test, &raw.drain(&name).await);
    summary.assert_sound();
    assert!(summary.slowest < timeout + LATE, "{summary}");
    assert!(summary.duplicates <= 200, "more than the window: {summary}");
    if down > timeout {
        assert!(outcomes.errors("Unknown") + outcomes.errors("NotSent") > 0, "{summary}");
    }
    let _ = broker.shutdown(Duration::from_secs(5)).await;
    raw.clean(&[&name], &[&name]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_killed_within_deadline_loses_nothing() {
    let _alone = RABBITMQ.write().await;
    let (down, timeout) = (Duration::from_secs(10), Duration::from_secs(90));
    kill_and_start("quorum", down, timeout, "amqp kill -9, back in time").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_down_past_deadline_fails_in_time() {
    let _alone = RABBITMQ.write().await;
    let (down, timeout) = match full() {
        true => (Duration::from_secs(40), Duration::from_secs(30)),
        false => (Duration::from_secs(6), Duration::from_secs(3)),
    };
    kill_and_start("classic", down, timeout, "amqp kill -9, past the deadline").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_alarm_is_reported_and_keeps_deadlines() {
    let _alone = RABBITMQ.write().await;
    let (name, raw, mut config) = amqp::with_queue("alarm", "classic", "t").await;
    let timeout = Duration::from_secs(2);
    config.publish_timeout = timeout;
    config.window_messages = 300;
    let broker = Arc::new(connected(|| AmqpMessageBroker::connect(config.clone())).await);
    let load = Load::start(&broker, 8, usize::MAX, Duration::from_millis(2));
    load.confirms(200).await;
    let restore = Restore::by(["ctl", "rabbitmq", "set_vm_memory_high_watermark", "0.6"]);
    brokers(&["ctl", "rabbitmq", "set_vm_memory_high_watermark", "0.00001"]).await;
    until("blocked to be seen", async || matches!(broker.state(), BrokerState::Blocked { .. }))
        .await;
    let BrokerState::Blocked { reason } = broker.state() else { panic!("{:?}", broker.state()) };
    assert!(reason.contains("memory"), "{reason}");
    // A second value is stopped by the alarm too; its shutdown waits neither for the server nor for the
    // deadline of a publish.
    config.publish_timeout = 2 * LATE;
    let other = AmqpMessageBroker::connect(config).await.unwrap();
    let receipt = other.enqueue(Message::new("t", "{}").with_mandatory(false)).await.unwrap();
    until("blocked", async || matches!(other.state(), BrokerState::Blocked { .. })).await;
    let started = Instant::now();
    let report = other.shutdown(Duration::from_millis(200)).await;
    assert!(started.elapsed() < LATE, "{:?}", started.elapsed());
    assert_eq!(report.undelivered, 1);
    assert_eq!(receipt.await.unwrap_err().kind(), PublishErrorKind::Unknown);
    // A message published now stays here, and is reported as not sent.
    let started = Instant::now();
    let error = broker.publish(Message::new("t", "{}").with_mandatory(false)).await.unwrap_err();
    assert!(started.elapsed() < timeout + LATE, "{:?}", started.elapsed());
    assert_eq!(error.kind(), PublishErrorKind::NotSent);
    let cause =
        std::error::Error::source(&error).unwrap().downcast_ref().map(cqrs_amqp::AmqpError::kind);
    assert_eq!(cause, Some(ErrorKind::Blocked));
    drop(restore);
    until("ready", async || broker.state().is_ready()).await;
    load.confirms(300).await;
    let outcomes = load.stop().await;
    let arrived: Vec<_> = raw
        .drain(&name)
        .await
        .into_iter()
        .filter(|delivery| delivery.properties.headers().is_some())
        .collect();
    let summary = outcomes.check("amqp memory alarm", &arrived);
    summary.assert_sound();
    assert!(summary.slowest < timeout + LATE, "{summary}");
    let _ = broker.shutdown(Duration::from_secs(5)).await;
    raw.clean(&[&name], &[&name]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_stops_reading_hangs_nothing() {
    let _alone = RABBITMQ.write().await;
    let (name, raw, mut config) = amqp::with_queue("pause", "quorum", "t").await;
    let timeout = Duration::from_secs(3);
    config.publish_timeout = timeout;
    config.heartbeat = Duration::from_secs(2);
    config.window_messages = 500;
    let broker = Arc::new(connected(|| AmqpMessageBroker::connect(config.clone())).await);
    let load = Load::start(&broker, 16, usize::MAX, Duration::from_millis(2));
    load.confirms(300).await;
    let restore = Restore::by(["resume", "rabbitmq"]);
    brokers(&["pause", "rabbitmq"]).await;
    // The heartbeat detects it; reconnecting gets no answer.
    lost(&broker).await;
    tokio::time::sleep(Duration::from_secs(if full() { 60 } else { 5 })).await;
    let started = Instant::now();
    let error = broker.publish(Message::new("t", "{}")).await.unwrap_err();
    assert!(started.elapsed() < timeout + LATE, "{:?}", started.elapsed());
    assert!(std::error::Error::source(&error).is_some(), "no cause: {error}");
    drop(restore);
    until("ready", async || broker.state().is_ready()).await;
    load.confirms(300).await;
    let outcomes = load.stop().await;
    // Messages of the abandoned connections may arrive late.
    let raw_now = Raw::connect().await;
    drop(raw);
    let arrived = raw_now.drain(&name).await;
    let summary = outcomes.check("amqp SIGSTOP", &arrived);
    summary.assert_sound();
    assert!(summary.slowest < timeout + LATE, "{summary}");
    let _ = broker.shutdown(Duration::from_secs(5)).await;
    raw_now.clean(&[&name], &[&name]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeat_detects_a_silent_network() {
    let _alone = RABBITMQ.write().await;
    let (name, raw, mut config) = amqp::with_queue("blackhole", "quorum", "t").await;
    let timeout = Duration::from_secs(4);
    config.publish_timeout = timeout;
    config.heartbeat = Duration::from_secs(1);
    config.window_messages = 500;
    let proxy = through_proxy(&mut config).await;
    let broker = Arc::new(connected(|| AmqpMessageBroker::connect(config.clone())).await);
    let load = Load::start(&broker, 16, usize::MAX, Duration::from_millis(2));
    load.confirms(300).await;
    proxy.blackhole(true);
    lost(&broker).await;
    tokio::time::sleep(Duration::from_secs(if full() { 60 } else { 4 })).await;
    proxy.blackhole(false);
    until("ready", async || broker.state().is_ready()).await;
    load.confirms(300).await;
    let outcomes = load.stop().await;
    let summary = outcomes.check("amqp blackhole", &raw.drain(&name).await);
    summary.assert_sound();
    assert!(summary.slowest < timeout + LATE, "{summary}");
    assert!(outcomes.errors("Unknown") > 0, "{summary}");
    let _ = broker.shutdown(Duration::from_secs(5)).await;
    raw.clean(&[&name], &[&name]).await;
}
