//! The fault tests of consuming and their parts, and the opening of a [`TestSource`] for tests of a source.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

pub mod audit;
pub mod cases;
pub mod fixture;
pub mod journal;
pub mod outcomes;
pub mod process;
pub mod run;
pub mod work;

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::consume::{
    SourceStatus, StatusReporter, Subscribe, SubscribeError, SubscribeRequest, TopicSet,
};
use cqrs_testkit::source::{is_consuming, is_disconnected};
use cqrs_testkit::{FaultProxy, TestSource};
use tokio::sync::watch;

/// The limit of every wait on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A request for `topics` with the defaults, and the receiver of its status.
pub fn request(
    topics: &[&str],
    group: &str,
    change: impl FnOnce(&mut SubscribeRequest),
) -> (SubscribeRequest, watch::Receiver<SourceStatus>) {
    let (reporter, status) = StatusReporter::new();
    let topics = TopicSet::Named(topics.iter().map(|topic| Arc::from(*topic)).collect());
    let mut request = SubscribeRequest::new(topics, group, reporter);
    change(&mut request);
    (request, status)
}

/// Opens a source of `topics`.
pub async fn open(
    broker: &impl Subscribe,
    topics: &[&str],
    group: &str,
    change: impl FnOnce(&mut SubscribeRequest),
) -> TestSource {
    try_open(broker, topics, group, change).await.unwrap()
}

/// Opens a source of `topics`.
///
/// # Errors
/// The broker's.
pub async fn try_open(
    broker: &impl Subscribe,
    topics: &[&str],
    group: &str,
    change: impl FnOnce(&mut SubscribeRequest),
) -> Result<TestSource, SubscribeError> {
    let (request, _status) = request(topics, group, change);
    TestSource::open(broker, request, TIMEOUT).await
}

/// Cuts all connections of `proxy`, and waits until `source` consumes again.
pub async fn interrupt(proxy: &FaultProxy, source: &mut TestSource) {
    proxy.refuse(true);
    proxy.cut();
    source.wait_for(is_disconnected).await;
    proxy.refuse(false);
    source.wait_for(is_consuming).await;
}
