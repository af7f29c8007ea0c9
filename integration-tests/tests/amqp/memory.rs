//! The memory of a RabbitMQ source over lost connections.

use std::time::Duration;

use cqrs_amqp::AmqpMessageBroker;
use cqrs_core::consume::{SourceStatus, SubscribeRequest};
use cqrs_testkit::FaultProxy;
use integration_tests::amqp::{self, Raw, fresh};
use integration_tests::consuming::Opened;
use integration_tests::consuming::stand::until_within;
use lapin::BasicProperties;

const PREFETCH: usize = 16;
const BODY: usize = 1 << 20;
const LOSSES: usize = 12;
/// For each wait: the server may be busy with other tests.
const LIMIT: Duration = Duration::from_secs(300);

/// The resident memory of this process in bytes. Other tests run in it, with small messages.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_channels_leave_no_messages_in_memory() {
    let (name, raw) = (fresh("memory"), Raw::connect().await);
    let queue = format!("{name}.g");
    let proxy = FaultProxy::start("127.0.0.1:0", amqp::address()).await.unwrap();
    let config = amqp::config_at(format!("amqp://guest:guest@{}", proxy.address()), &name);
    let broker = AmqpMessageBroker::connect(config).await.unwrap();
    let bounded = |request: &mut SubscribeRequest| request.max_unsettled = Some(PREFETCH);
    let mut opened = Opened::open(&broker, &[&name], "g", bounded).await;
    for _ in 0..PREFETCH {
        raw.put(&queue, &vec![7; BODY], BasicProperties::default()).await;
    }
    // Slow handlers: as many messages are in flight as may be, and the source is not polled.
    let running = opened.take(PREFETCH).await;
    let before = memory();
    for _ in 0..LOSSES {
        proxy.refuse(true);
        proxy.cut();
        opened
            .status_within(LIMIT, |status| matches!(status, SourceStatus::Disconnected { .. }))
            .await;
        proxy.refuse(false);
        opened.status_within(LIMIT, |status| *status == SourceStatus::Consuming).await;
        until_within(LIMIT, "a full prefetch", async || {
            amqp::unacknowledged(&queue).await >= Some(PREFETCH)
        })
        .await;
    }
    let bound = before + 5 * PREFETCH * BODY;
    until_within(LIMIT, "the memory of lost channels is freed", async || memory() < bound).await;
    // The bound holds over all channels: the deliveries of lost ones are still running.
    opened.nothing_within(Duration::from_millis(300)).await;
    drop(running);
    for _ in 0..PREFETCH {
        let mut delivery = opened.next().await;
        delivery.settle.ack().await.unwrap();
    }
    opened.close(Duration::from_secs(50)).await.1.unwrap();
    raw.clean(&[&queue, &format!("{queue}.dead")], &[&name]).await;
}
