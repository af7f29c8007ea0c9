//! A source in the hands of a case, as the runtime would hold it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::time::{Duration, Instant};

use cqrs_core::consume::{Source, SourceDelivery, SourceStatus};

use super::super::stage::chain;
use super::stage::Status;

pub(super) struct Opened {
    source: Box<dyn Source>,
    pub(super) status: Status,
    patience: Duration,
    /// What came while something else was waited for.
    early: VecDeque<SourceDelivery>,
}

impl Opened {
    pub(super) fn new(source: Box<dyn Source>, status: Status, patience: Duration) -> Self {
        Self { source, status, patience, early: VecDeque::new() }
    }

    async fn poll(&mut self) -> Option<SourceDelivery> {
        match self.early.pop_front() {
            Some(delivery) => Some(delivery),
            None => poll(&mut *self.source).await,
        }
    }

    /// The next delivery.
    pub(super) async fn next(&mut self) -> SourceDelivery {
        let patience = self.patience;
        let next = self.next_within(patience).await;
        next.unwrap_or_else(|| panic!("no delivery within {patience:?}"))
    }

    /// The next delivery, if one comes within `time`.
    pub(super) async fn next_within(&mut self, time: Duration) -> Option<SourceDelivery> {
        let next = tokio::time::timeout(time, self.poll()).await.ok()?;
        Some(next.expect("a source ends only after it was stopped"))
    }

    /// The next `count` deliveries.
    pub(super) async fn take(&mut self, count: usize) -> Vec<SourceDelivery> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            taken.push(self.next().await);
        }
        taken
    }

    /// Acks the next delivery.
    pub(super) async fn acked(&mut self) -> String {
        let patience = self.patience;
        let acked = self.acked_within(patience).await;
        acked.unwrap_or_else(|| panic!("no delivery within {patience:?}"))
    }

    /// Acks the next delivery, if one comes within `time`.
    pub(super) async fn acked_within(&mut self, time: Duration) -> Option<String> {
        let end = Instant::now() + time;
        loop {
            let delivery = self.next_within(end.saturating_duration_since(Instant::now())).await?;
            let text = text(&delivery);
            if ack(delivery).await {
                return Some(text);
            }
        }
    }

    /// Acks the next `count` deliveries.
    pub(super) async fn all_acked(&mut self, count: usize) -> Vec<String> {
        let mut acked = Vec::with_capacity(count);
        while acked.len() < count {
            acked.push(self.acked().await);
        }
        acked
    }

    /// Fails when something comes within `time`.
    pub(super) async fn nothing_within(&mut self, time: Duration) {
        // One that has been stopped may say so.
        if let Ok(Some(delivery)) = tokio::time::timeout(time, self.poll()).await {
            panic!("{:?} came", text(&delivery));
        }
    }

    pub(super) async fn wait_until_consuming(&mut self) {
        self.wait_for("Consuming", |status| *status == SourceStatus::Consuming).await;
    }

    /// Waits for a status, and takes what comes meanwhile: a source may do nothing unless it is polled.
    pub(super) async fn wait_for(&mut self, what: &str, is: impl Fn(&SourceStatus) -> bool) {
        let Self { source, status, early, .. } = self;
        let waiting = async {
            loop {
                tokio::select! {
                    told = status.wait_for(|now| is(now)) => return told.is_ok(),
                    next = poll(&mut **source) => early.extend(next),
                }
            }
        };
        let is_so = tokio::time::timeout(self.patience, waiting).await.unwrap_or(false);
        let status = self.status.borrow();
        assert!(is_so, "{what}: not after {:?}, but {status:?}", self.patience);
    }

    pub(super) async fn stop(&mut self) {
        let stopped = tokio::time::timeout(self.patience, self.source.stop()).await;
        assert!(stopped.is_ok(), "stop: not after {:?}", self.patience);
    }

    /// Closes it as the runtime does; all must be well.
    pub(super) async fn close(self) {
        let patience = self.patience;
        self.close_within(patience).await;
    }

    /// Closes it with that deadline; how long that took.
    pub(super) async fn close_within(mut self, deadline: Duration) -> Duration {
        self.stop().await;
        let (patience, start) = (self.patience, Instant::now());
        let closed = tokio::time::timeout(deadline + patience, self.source.close(deadline)).await;
        match closed {
            Ok(Ok(())) => start.elapsed(),
            Ok(Err(error)) => panic!("close: {}", chain(&error)),
            Err(_) => panic!("close: not {patience:?} after its deadline"),
        }
    }

    /// The same where the server cannot be told: how it ends does not matter.
    pub(super) async fn give_up_within(self, deadline: Duration) -> Duration {
        let start = Instant::now();
        let closing = self.source.close(deadline);
        let closed = tokio::time::timeout(deadline + self.patience, closing).await;
        assert!(closed.is_ok(), "close: not {:?} after its deadline", self.patience);
        start.elapsed()
    }

    /// As a process that dies.
    pub(super) fn crash(self) {}
}

async fn poll(source: &mut dyn Source) -> Option<SourceDelivery> {
    let next = poll_fn(|cx| source.poll_next(cx)).await;
    next.map(|next| next.unwrap_or_else(|error| panic!("the source failed: {}", chain(&error))))
}

/// The body as text.
pub(super) fn text(delivery: &SourceDelivery) -> String {
    String::from_utf8_lossy(&delivery.message.bytes()).into_owned()
}

/// Settles as the runtime does. `false`: it was taken away before that.
pub(super) async fn ack(mut delivery: SourceDelivery) -> bool {
    if !delivery.settle.begin() {
        return false;
    }
    match delivery.settle.ack().await {
        Ok(()) => true,
        Err(error) => panic!("ack: {}", chain(&error)),
    }
}
