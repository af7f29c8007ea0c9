use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use cqrs_core::broker::BoxFuture;
use cqrs_core::consume::{Source, SourceDelivery, SourceError};
use tokio::time::Sleep;

use super::again::Again;
use super::partition::Partition;
use super::plan::Plan;
use super::record::Record;
use super::settle::KafkaSettle;
use super::shared::{Batch, Ending, Shared};

/// How long a source that is dropped without a close tries to commit.
const DROPPED: Duration = Duration::from_secs(5);
/// Longer than anybody waits, and far from the end of time.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The async side of a subscription: hands out what the poll thread fetched.
///
/// Dropped without [`close`](Source::close), it commits and leaves the group in the background.
pub(super) struct KafkaSource {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    batches: VecDeque<Batch>,
    again: Again,
    /// Until the next one of `again` is due.
    sleep: Option<(Instant, Pin<Box<Sleep>>)>,
    failed: bool,
}

impl KafkaSource {
    pub(super) fn new(plan: Arc<Plan>, shared: Arc<Shared>) -> Self {
        Self {
            plan,
            shared,
            batches: VecDeque::new(),
            again: Again::default(),
            sleep: None,
            failed: false,
        }
    }

    fn deliver(&self, partition: Arc<Partition>, record: Record) -> SourceDelivery {
        let retry = partition.attempts(&record);
        // A retry copy comes when its delay is over, if nothing failed since.
        let delayed = partition.is_retry && record.retry_state().attempts >= retry.attempts;
        let message = record.to_incoming(&partition.topic, partition.id, partition.is_retry);
        let settle = KafkaSettle::new(Arc::clone(&self.plan), partition, record);
        let mut delivery = SourceDelivery::new(message, settle);
        (delivery.retry, delivery.delayed) = (retry, delayed);
        delivery
    }

    /// What was dropped and whose time has come.
    fn next_again(&mut self, cx: &mut Context<'_>) -> Option<(Arc<Partition>, Record)> {
        let now = Instant::now();
        while let Some((partition, record)) = self.again.next(now) {
            if !partition.is_revoked() {
                return Some((partition, record));
            }
            self.shared.forget(&partition, 1, record.size());
        }
        let due = self.again.next_due()?;
        if self.sleep.as_ref().is_none_or(|(until, _)| *until != due) {
            self.sleep = Some((due, Box::pin(tokio::time::sleep_until(due.into()))));
        }
        if let Some((_, sleep)) = &mut self.sleep
            && sleep.as_mut().poll(cx).is_ready()
        {
            self.sleep = None;
            cx.waker().wake_by_ref();
        }
        None
    }

    /// What was fetched, without what must wait for its key.
    fn next_fetched(&mut self) -> Option<(Arc<Partition>, Record)> {
        loop {
            let batch = self.batches.front_mut()?;
            if batch.partition.is_revoked() {
                let bytes = batch.records.iter().map(Record::size).sum();
                self.shared.forget(&batch.partition, batch.records.len(), bytes);
                self.batches.pop_front();
                continue;
            }
            let Some(record) = batch.records.pop_front() else {
                self.batches.pop_front();
                continue;
            };
            let Some(record) = self.again.pass(&batch.partition, record) else { continue };
            return Some((Arc::clone(&batch.partition), record));
        }
    }

    /// Throws away what is here and was not handed out: it comes again when the source is opened anew.
    fn discard(&mut self) {
        for Batch { partition, records } in self.batches.drain(..) {
            let bytes = records.iter().map(Record::size).sum();
            self.shared.forget(&partition, records.len(), bytes);
        }
        for (partition, record) in self.again.clear().into_iter().chain(self.shared.take_returned())
        {
            self.shared.forget(&partition, 1, record.size());
        }
        self.sleep = None;
    }
}

impl Source for KafkaSource {
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<SourceDelivery, SourceError>>> {
        loop {
            if self.failed || self.shared.is_stopped() {
                return Poll::Ready(None);
            }
            if self.shared.has_returned() {
                let now = Instant::now();
                for (partition, record) in self.shared.take_returned() {
                    self.again.put(partition, record, now);
                }
            }
            if !self.again.is_empty()
                && let Some((partition, record)) = self.next_again(cx)
            {
                return Poll::Ready(Some(Ok(self.deliver(partition, record))));
            }
            if let Some((partition, record)) = self.next_fetched() {
                return Poll::Ready(Some(Ok(self.deliver(partition, record))));
            }
            match self.shared.take_batches(&mut self.batches, cx.waker()) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(error) => {
                    self.failed = true;
                    self.discard();
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        self.shared.stop();
        self.discard();
        Box::pin(std::future::ready(()))
    }

    fn close(
        mut self: Box<Self>,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<(), SourceError>> {
        let end = Instant::now() + deadline.min(FAR);
        self.shared.close(end);
        self.discard();
        let mut ending = self.shared.ending.subscribe();
        let name = Arc::clone(&self.plan.request.name);
        Box::pin(async move {
            // The poll thread keeps the deadline; it is late by a tick at most.
            let grace = Duration::from_millis(500);
            let ended = ending.wait_for(Option::is_some);
            let ended = tokio::time::timeout_at((end + grace).into(), ended).await;
            let why = match ended {
                Ok(Ok(ending)) => match &*ending {
                    Some(Ending::Clean) => return Ok(()),
                    Some(Ending::Uncommitted(why)) => why.to_string(),
                    None => "it did not say how it ended".to_owned(),
                },
                Ok(Err(_)) => "its thread is gone".to_owned(),
                Err(_) => "it did not end in time".to_owned(),
            };
            let text = format!("subscription {name}: the last commit failed: {why}");
            Err(SourceError::new(text))
        })
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.shared.close(Instant::now() + DROPPED);
        self.discard();
    }
}

impl fmt::Debug for KafkaSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSource")
            .field("subscription", &self.plan.request.name)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}
