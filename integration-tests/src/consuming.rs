//! A source in the hands of a test, as the runtime would hold it.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

pub mod audit;
pub mod cases;
pub mod journal;
pub mod ledger;
pub mod process;
pub mod run;
pub mod stand;
pub mod work;

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_core::consume::{
    Source, SourceDelivery, SourceError, SourceStatus, StatusReporter, Subscribe, SubscribeError,
    SubscribeRequest, TopicSet,
};
use tokio::sync::watch;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A request for `topics`, with the defaults, and where its status is seen.
pub fn request(
    topics: &[&str],
    group: &str,
    change: impl FnOnce(&mut SubscribeRequest),
) -> (SubscribeRequest, watch::Receiver<SourceStatus>) {
    let (status, seen) = StatusReporter::new();
    let topics = TopicSet::Named(topics.iter().map(|topic| Arc::from(*topic)).collect());
    let mut request = SubscribeRequest::new(topics, group, status);
    change(&mut request);
    (request, seen)
}

/// An open source and its status.
pub struct Opened {
    /// The source.
    pub source: Box<dyn Source>,
    /// What it tells of itself.
    pub status: watch::Receiver<SourceStatus>,
}

impl Opened {
    /// Opens it; must succeed.
    pub async fn open(
        broker: &impl Subscribe,
        topics: &[&str],
        group: &str,
        change: impl FnOnce(&mut SubscribeRequest),
    ) -> Self {
        Self::try_open(broker, topics, group, change).await.unwrap()
    }

    /// Opens it.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn try_open(
        broker: &impl Subscribe,
        topics: &[&str],
        group: &str,
        change: impl FnOnce(&mut SubscribeRequest),
    ) -> Result<Self, SubscribeError> {
        let (request, status) = request(topics, group, change);
        let opening = tokio::time::timeout(PATIENCE, broker.subscribe(request)).await;
        Ok(Self { source: opening.expect("opened in time")?, status })
    }

    /// The next delivery, or the end of the source.
    pub async fn poll(&mut self) -> Option<Result<SourceDelivery, SourceError>> {
        poll_fn(|cx| self.source.poll_next(cx)).await
    }

    /// The next delivery.
    pub async fn next(&mut self) -> SourceDelivery {
        let next = tokio::time::timeout(PATIENCE, self.poll()).await.expect("a delivery in time");
        next.expect("not stopped").unwrap()
    }

    /// The next `count` deliveries.
    pub async fn take(&mut self, count: usize) -> Vec<SourceDelivery> {
        let mut taken = Vec::new();
        while taken.len() < count {
            taken.push(self.next().await);
        }
        taken
    }

    /// The next `count` bodies as text, acknowledged.
    pub async fn acked(&mut self, count: usize) -> Vec<String> {
        let mut bodies = Vec::new();
        for mut delivery in self.take(count).await {
            bodies.push(body(&delivery));
            delivery.settle.ack().await.unwrap();
        }
        bodies
    }

    /// Fails when something comes within `silence`.
    pub async fn nothing_within(&mut self, silence: Duration) {
        if let Ok(next) = tokio::time::timeout(silence, self.poll()).await {
            panic!("expected nothing, got {next:?}");
        }
    }

    /// Waits until the status fulfils `condition`.
    pub async fn status(&mut self, condition: impl Fn(&SourceStatus) -> bool) -> SourceStatus {
        self.status_within(PATIENCE, condition).await
    }

    /// Waits until the status fulfils `condition`.
    pub async fn status_within(
        &mut self,
        limit: Duration,
        condition: impl Fn(&SourceStatus) -> bool,
    ) -> SourceStatus {
        let waiting = tokio::time::timeout(limit, self.status.wait_for(|now| condition(now)));
        waiting.await.expect("a status in time").unwrap().clone()
    }

    /// Closes it; how long that took, and how it ended.
    pub async fn close(self, deadline: Duration) -> (Duration, Result<(), SourceError>) {
        let start = Instant::now();
        let closing = self.source.close(deadline);
        let ended = tokio::time::timeout(PATIENCE, closing).await.expect("closed in time");
        (start.elapsed(), ended)
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

/// The body of a delivery as text.
pub fn body(delivery: &SourceDelivery) -> String {
    String::from_utf8(delivery.message.bytes().to_vec()).unwrap()
}
