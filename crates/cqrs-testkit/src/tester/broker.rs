//! [`TesterBroker`]: an in-memory broker that records what happens on it for a tester.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Receipt, ShutdownReport};
use cqrs_core::consume::{
    DeadLetter, Delayed, Fetch, RetryState, Settle, SettleError, Source, SourceDelivery,
    SourceError, SubscribeError, SubscribeRequest, TopicSet,
};
use cqrs_core::{MemoryBroker, Message, MessageBroker, PublishError, Subscribe};

use super::journal::{Journal, Outcome, Subject};

/// The broker of a [`ServiceTester`](super::ServiceTester): a [`MemoryBroker`] that records what
/// happens on it. Clones are the same broker.
#[derive(Clone)]
pub struct TesterBroker {
    pub(super) memory: MemoryBroker,
    pub(super) journal: Arc<Journal>,
}

impl TesterBroker {
    fn note_published(&self, message: Message) {
        self.journal.change(|state| state.published.push(message));
    }
}

cqrs_core::debug_fields!(TesterBroker { memory });

impl MessageBroker for TesterBroker {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(async move {
            let receipt = self.memory.enqueue(message).await?;
            self.note_published(receipt.message().clone());
            Ok(receipt)
        })
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        let receipt = self.memory.try_enqueue(message)?;
        self.note_published(receipt.message().clone());
        Ok(receipt)
    }

    fn state(&self) -> BrokerState {
        self.memory.state()
    }

    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.memory.shutdown(deadline)
    }
}

impl Subscribe for TesterBroker {
    fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
        self.memory.check(requests)
    }

    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        Box::pin(async move {
            let (topics, group) = (request.topics.clone(), Arc::clone(&request.group));
            let inner = Subscribe::subscribe(&self.memory, request).await?;
            let journal = Arc::clone(&self.journal);
            journal.change(|state| {
                state.subscriptions += 1;
                if let TopicSet::Named(topics) = topics {
                    let opened = topics.into_iter().map(|topic| (topic, Arc::clone(&group)));
                    state.opened.extend(opened);
                }
            });
            Ok(Box::new(Recorded { inner, group, journal }) as Box<dyn Source>)
        })
    }
}

/// A source whose deliveries record their outcome.
#[derive(Debug)]
struct Recorded {
    inner: Box<dyn Source>,
    group: Arc<str>,
    journal: Arc<Journal>,
}

impl Recorded {
    fn record(&self, delivery: SourceDelivery) -> SourceDelivery {
        let SourceDelivery { message, retry, delayed, settle } = delivery;
        let subject = Arc::new(Subject::new(&message, &self.group));
        self.journal.note(&subject, Outcome::Delivered { attempts: retry.attempts });
        let journal = Arc::clone(&self.journal);
        let pending = PendingOutcome::Handled;
        let settle = Box::new(RecordedSettle { inner: settle, subject, journal, pending });
        SourceDelivery { message, retry, delayed, settle }
    }
}

impl Source for Recorded {
    fn poll_fetch(
        &mut self,
        cx: &mut Context<'_>,
        fetch: &mut Fetch,
    ) -> Poll<Option<Result<(), SourceError>>> {
        fetch.poll_fill(|_| {
            let next = ready!(self.inner.poll_next(cx));
            Poll::Ready(next.map(|delivery| Ok(self.record(delivery?))))
        })
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        self.inner.stop()
    }

    fn close(self: Box<Self>, deadline: Duration) -> BoxFuture<'static, Result<(), SourceError>> {
        self.inner.close(deadline)
    }
}

struct RecordedSettle {
    inner: Box<dyn Settle>,
    subject: Arc<Subject>,
    journal: Arc<Journal>,
    pending: PendingOutcome,
}

/// Outcome an ack means now, or a drop.
enum PendingOutcome {
    Handled,
    DeadLettered(DeadLetter),
    /// A copy is scheduled, which is recorded already.
    Scheduled,
    /// The outcome is recorded.
    Recorded,
}

impl RecordedSettle {
    fn note(&self, outcome: Outcome) {
        self.journal.note(&self.subject, outcome);
    }

    fn note_error<T>(&self, what: &'static str, result: &Result<T, SettleError>) {
        if let Err(error) = result {
            self.note(Outcome::NotConfirmed { what, error: error.to_string() });
        }
    }
}

impl Settle for RecordedSettle {
    fn begin(&mut self) -> bool {
        let is_ours = self.inner.begin();
        if !is_ours {
            self.note(Outcome::Revoked);
            self.pending = PendingOutcome::Recorded;
        }
        is_ours
    }

    fn postpone(&mut self) {
        self.inner.postpone();
    }

    fn note_attempt(&mut self, state: &RetryState) {
        self.inner.note_attempt(state);
    }

    fn is_revoked(&self) -> bool {
        self.inner.is_revoked()
    }

    fn poll_ack(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SettleError>> {
        let acked = ready!(self.inner.poll_ack(cx));
        self.note_error("ack", &acked);
        if acked.is_ok() {
            match std::mem::replace(&mut self.pending, PendingOutcome::Recorded) {
                PendingOutcome::Handled => self.note(Outcome::Handled),
                PendingOutcome::DeadLettered(letter) => self.note(Outcome::DeadLettered(letter)),
                PendingOutcome::Scheduled | PendingOutcome::Recorded => {}
            }
        }
        Poll::Ready(acked)
    }

    fn retry_later(
        &mut self,
        delay: Duration,
        state: &RetryState,
    ) -> BoxFuture<'_, Result<Delayed, SettleError>> {
        let state = *state;
        Box::pin(async move {
            let delayed = self.inner.retry_later(delay, &state).await;
            self.note_error("retry", &delayed);
            if let Ok(delayed) = delayed {
                self.note(Outcome::Retried { delay, attempts: state.attempts });
                if delayed == Delayed::Scheduled {
                    self.pending = PendingOutcome::Scheduled;
                }
            }
            delayed
        })
    }

    fn dead_letter(&mut self, letter: &DeadLetter) -> BoxFuture<'_, Result<(), SettleError>> {
        let letter = letter.clone();
        Box::pin(async move {
            let stored = self.inner.dead_letter(&letter).await;
            self.note_error("dead letter", &stored);
            if stored.is_ok() {
                self.pending = PendingOutcome::DeadLettered(letter);
            }
            stored
        })
    }
}

impl Drop for RecordedSettle {
    fn drop(&mut self) {
        if !matches!(self.pending, PendingOutcome::Recorded) {
            let revoked = self.inner.is_revoked();
            self.note(if revoked { Outcome::Revoked } else { Outcome::Requeued });
        }
    }
}
