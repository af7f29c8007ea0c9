//! Test of a RabbitMQ source's memory over lost connections, in a process without the memory of other tests.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

use std::time::Duration;

use cqrs_core::consume::SubscribeRequest;
use cqrs_testkit::TestSource;
use integration_tests::amqp::{self, Raw, fresh};
use integration_tests::consuming::fixture::until_within;
use integration_tests::consuming::{interrupt, request};
use lapin::BasicProperties;

const PREFETCH: usize = 16;
const BODY: usize = 1 << 20;
const LOSSES: usize = 12;
/// For each wait: the server may be busy with other tests.
const LIMIT: Duration = Duration::from_secs(300);

/// The resident memory of this process in bytes.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_channels_leave_no_messages_in_memory() {
    let (name, raw) = (fresh("memory"), Raw::connect().await);
    let queue = format!("{name}.g");
    let (proxy, broker) = amqp::through_proxy(&name).await;
    let bounded = |request: &mut SubscribeRequest| request.max_unsettled = Some(PREFETCH);
    let (request, _status) = request(&[&name], "g", bounded);
    let mut source = TestSource::open(&broker, request, LIMIT).await.unwrap();
    for _ in 0..PREFETCH {
        raw.put(&queue, &vec![7; BODY], BasicProperties::default()).await;
    }
    // Slow handlers: as many messages are in flight as may be, and the source is not polled.
    let running = source.take(PREFETCH).await;
    let before = memory();
    for _ in 0..LOSSES {
        interrupt(&proxy, &mut source).await;
        amqp::until_unacknowledged(&queue, PREFETCH).await;
    }
    let bound = before + 5 * PREFETCH * BODY;
    until_within(LIMIT, "the memory of lost channels is freed", async || memory() < bound).await;
    // The bound holds over all channels: the deliveries of lost ones are still running.
    source.nothing_within(Duration::from_millis(300)).await;
    drop(running);
    for _ in 0..PREFETCH {
        let mut delivery = source.next().await;
        delivery.settle.ack().await.unwrap();
    }
    source.close().await;
    raw.clean(&[&queue, &format!("{queue}.dead")], &[&name]).await;
}
