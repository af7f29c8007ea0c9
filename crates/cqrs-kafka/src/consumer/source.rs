//! The consumer's [`Source`]: delivers the records that the poll thread fetched, and dropped deliveries again. Used
//! by the runtime.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use cqrs_core::broker::BoxFuture;
use cqrs_core::consume::support::far_deadline;
use cqrs_core::consume::{Fetch, Source, SourceDelivery, SourceError};
use tokio::time::Sleep;

use super::partition::Partition;
use super::record::Record;
use super::redelivery::Redelivery;
use super::settle::KafkaSettle;
use super::subscription_state::{Batch, CloseOutcome, SubscriptionState};

/// The time in which a source that is dropped without a close tries to commit.
const DROPPED: Duration = Duration::from_secs(5);

/// The async side of a subscription: delivers the fetched records.
///
/// Dropped without [`close`](Source::close), it commits and leaves the group in the background.
pub(super) struct KafkaSource {
    state: Arc<SubscriptionState>,
    batches: VecDeque<Batch>,
    redelivery: Redelivery,
    /// The wait until the next redelivery is due.
    sleep: Option<(Instant, Pin<Box<Sleep>>)>,
    failed: bool,
}

impl KafkaSource {
    pub(super) fn new(state: Arc<SubscriptionState>) -> Self {
        Self {
            state,
            batches: VecDeque::new(),
            redelivery: Redelivery::default(),
            sleep: None,
            failed: false,
        }
    }

    fn deliver(
        state: &Arc<SubscriptionState>,
        partition: &Arc<Partition>,
        record: Record,
        fetch: &mut Fetch,
    ) -> SourceDelivery {
        let retry = partition.attempts(&record);
        // A retry copy is delivered after its delay, unless an attempt failed since.
        let delayed = partition.is_retry && record.retry_state().attempts >= retry.attempts;
        let message = fetch.message_of(&partition.topic, |message| {
            record.fill(message, partition.id, partition.is_retry);
        });
        let settle = KafkaSettle::boxed(fetch.spare_settle(), state, partition, record);
        SourceDelivery { message, retry, delayed, settle }
    }

    /// The next dropped delivery that is due.
    fn next_redelivered(&mut self, cx: &mut Context<'_>) -> Option<(Arc<Partition>, Record)> {
        let now = Instant::now();
        while let Some((partition, record)) = self.redelivery.next(now) {
            if !partition.is_revoked() {
                return Some((partition, record));
            }
            self.state.release(&partition, 1, record.size());
        }
        let due = self.redelivery.next_due()?;
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

    /// The next fetched record, of the first batch, unless it has to wait for a redelivery of its key.
    fn next_fetched(&mut self) -> Option<Record> {
        loop {
            let batch = self.batches.front_mut()?;
            if batch.partition.is_revoked() {
                let bytes = batch.records.iter().map(Record::size).sum();
                self.state.release(&batch.partition, batch.records.len(), bytes);
                self.batches.pop_front();
                continue;
            }
            let Some(record) = batch.records.pop_front() else {
                self.batches.pop_front();
                continue;
            };
            let Some(record) = self.redelivery.pass(&batch.partition, record) else { continue };
            return Some(record);
        }
    }

    /// Discards records that were not delivered. They are redelivered to the next consumer.
    fn discard(&mut self) {
        for Batch { partition, records } in self.batches.drain(..) {
            let bytes = records.iter().map(Record::size).sum();
            self.state.release(&partition, records.len(), bytes);
        }
        for (partition, record) in
            self.redelivery.clear().into_iter().chain(self.state.take_returned())
        {
            self.state.release(&partition, 1, record.size());
        }
        self.sleep = None;
    }

    fn poll_delivery(
        &mut self,
        cx: &mut Context<'_>,
        fetch: &mut Fetch,
    ) -> Poll<Option<Result<SourceDelivery, SourceError>>> {
        loop {
            if self.failed || self.state.is_stopped() {
                return Poll::Ready(None);
            }
            if self.state.has_returned() {
                let now = Instant::now();
                for (partition, record) in self.state.take_returned() {
                    self.redelivery.put(partition, record, now);
                }
            }
            if !self.redelivery.is_empty()
                && let Some((partition, record)) = self.next_redelivered(cx)
            {
                let delivery = Self::deliver(&self.state, &partition, record, fetch);
                return Poll::Ready(Some(Ok(delivery)));
            }
            if let Some(record) = self.next_fetched()
                && let Some(Batch { partition, .. }) = self.batches.front()
            {
                let delivery = Self::deliver(&self.state, partition, record, fetch);
                return Poll::Ready(Some(Ok(delivery)));
            }
            match self.state.take_batches(&mut self.batches, cx.waker()) {
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
}

impl Source for KafkaSource {
    fn poll_fetch(
        &mut self,
        cx: &mut Context<'_>,
        fetch: &mut Fetch,
    ) -> Poll<Option<Result<(), SourceError>>> {
        fetch.poll_fill(|fetch| self.poll_delivery(cx, fetch))
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        self.state.stop();
        self.discard();
        Box::pin(std::future::ready(()))
    }

    fn close(
        mut self: Box<Self>,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<(), SourceError>> {
        let end = far_deadline(deadline).into_std();
        self.state.close(end);
        self.discard();
        let mut closed = self.state.closed.subscribe();
        let name = Arc::clone(&self.state.plan.request.name);
        Box::pin(async move {
            // The poll thread keeps the deadline, but may be late by one poll.
            let grace = Duration::from_millis(500);
            let outcome = closed.wait_for(Option::is_some);
            let outcome = tokio::time::timeout_at((end + grace).into(), outcome).await;
            let reason = match outcome {
                Ok(Ok(outcome)) => match &*outcome {
                    Some(CloseOutcome::Clean) => return Ok(()),
                    Some(CloseOutcome::Uncommitted(reason)) => reason.to_string(),
                    None => "it gave no result".to_owned(),
                },
                Ok(Err(_)) => "its thread ended".to_owned(),
                Err(_) => "it did not end in time".to_owned(),
            };
            let text = format!("subscription {name}: the last commit failed: {reason}");
            Err(SourceError::new(text))
        })
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.state.close(Instant::now() + DROPPED);
        self.discard();
    }
}

cqrs_core::debug_fields!(KafkaSource {}, |it| subscription: it.state.plan.request.name);
