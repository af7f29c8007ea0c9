//! [`Scribe`]: a broker that delivers messages and records all calls.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Receipt, ShutdownReport};
use cqrs_core::consume::{
    DeadLetter, Delayed, Fetch, Incoming, RetryState, Settle, SettleError, Source, SourceDelivery,
    SourceError, SourceStatus, SubscribeError, SubscribeRequest,
};
use cqrs_core::{Message, MessageBroker, NotificationEvent, PublishError, Subscribe};

use super::Ordered;
use super::support::{Log, RecordingBroker};

/// The behaviour of the broker.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Script {
    /// The broker schedules retry copies.
    pub(super) scheduled: bool,
    /// The first retry copies and dead letters, as many as given, are not confirmed.
    pub(super) copies_fail: usize,
    /// The copies of the first message are refused permanently, as often as given.
    pub(super) refusals: usize,
    pub(super) acks_fail: bool,
    /// Revoked before the handler starts.
    pub(super) revoked: bool,
    /// Revoked while it is held.
    pub(super) revoked_when_held: bool,
    /// Records `begin` and `postpone`, too.
    pub(super) writes_starts: bool,
    /// Records the drop of an acked settlement, too.
    pub(super) writes_drops: bool,
    /// The first message is revoked after the given time.
    pub(super) first_revoked_after: Option<Duration>,
    pub(super) crashes: u32,
}

/// Delivers messages and records their settlements.
#[derive(Debug, Clone)]
pub(super) struct Scribe {
    pub(super) inner: RecordingBroker,
    pub(super) log: Log,
    pub(super) script: Script,
    pub(super) messages: Arc<Mutex<VecDeque<Incoming>>>,
}

impl Scribe {
    pub(super) fn new(script: Script) -> Self {
        let log = Log::default();
        let body = serde_json::to_vec(&NotificationEvent::new(Ordered { number: 1 })).unwrap();
        let messages = VecDeque::from([Incoming::new("paid", body)]);
        let inner = RecordingBroker::with_log(&log);
        Self { inner, log, script, messages: Arc::new(Mutex::new(messages)) }
    }

    fn delivery(&self, message: Incoming) -> SourceDelivery {
        let settle = Written {
            log: self.log.clone(),
            number: message.key.as_ref().map_or(1, |key| u32::from(key[0])),
            script: self.script,
            failed: 0,
            held: false,
            settled: false,
            handed_out: tokio::time::Instant::now(),
        };
        let mut delivery = SourceDelivery::new(message, settle);
        delivery.retry.crashes = self.script.crashes;
        delivery
    }
}

impl MessageBroker for Scribe {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        self.inner.enqueue(message)
    }
    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        self.inner.try_enqueue(message)
    }
    fn state(&self) -> BrokerState {
        BrokerState::Ready
    }
    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.inner.shutdown(deadline)
    }
}

impl Subscribe for Scribe {
    fn check(&self, _: &[SubscribeRequest]) -> Vec<SubscribeError> {
        Vec::new()
    }
    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        request.status.report(SourceStatus::Consuming);
        let source = self.clone();
        Box::pin(async move { Ok(Box::new(source) as Box<dyn Source>) })
    }
}

impl Source for Scribe {
    fn poll_fetch(
        &mut self,
        _: &mut Context<'_>,
        fetch: &mut Fetch,
    ) -> Poll<Option<Result<(), SourceError>>> {
        fetch.poll_fill(|_| match self.messages.lock().unwrap().pop_front() {
            Some(message) => Poll::Ready(Some(Ok(self.delivery(message)))),
            None => Poll::Pending,
        })
    }
    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
    fn close(self: Box<Self>, _: Duration) -> BoxFuture<'static, Result<(), SourceError>> {
        self.log.add("closed");
        Box::pin(async { Ok(()) })
    }
}

struct Written {
    log: Log,
    number: u32,
    script: Script,
    failed: usize,
    held: bool,
    settled: bool,
    handed_out: tokio::time::Instant,
}

impl Written {
    fn copy(&mut self, what: String) -> Result<(), SettleError> {
        if self.number == 1 && self.failed < self.script.refusals {
            self.failed += 1;
            self.log.add(format!("{what} refused"));
            return Err(SettleError::new("too large").permanent());
        }
        if self.failed < self.script.copies_fail {
            self.failed += 1;
            self.log.add(format!("{what} not confirmed"));
            return Err(SettleError::new("no confirm"));
        }
        self.log.add(what);
        Ok(())
    }
}

impl Settle for Written {
    fn begin(&mut self) -> bool {
        if self.script.writes_starts {
            self.log.add("begin");
        }
        !self.is_revoked()
    }
    fn postpone(&mut self) {
        if self.script.writes_starts {
            self.log.add("postpone");
        }
    }
    fn note_attempt(&mut self, _: &RetryState) {}
    fn is_revoked(&self) -> bool {
        let taken_away =
            self.script.first_revoked_after.is_some_and(|after| self.handed_out.elapsed() >= after);
        self.script.revoked
            || (self.held && self.script.revoked_when_held)
            || (self.number == 1 && taken_away)
    }
    fn poll_ack(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SettleError>> {
        self.settled = !self.script.acks_fail;
        self.log.add(if self.settled { "ack" } else { "ack failed" });
        Poll::Ready(if self.settled { Ok(()) } else { Err(SettleError::new("channel gone")) })
    }
    fn retry_later(
        &mut self,
        delay: Duration,
        state: &RetryState,
    ) -> BoxFuture<'_, Result<Delayed, SettleError>> {
        let copied = self.copy(format!("copy {} in {delay:?}", state.attempts));
        self.held = copied.is_ok();
        let delayed = if self.script.scheduled { Delayed::Scheduled } else { Delayed::Hold };
        Box::pin(async move { copied.map(|()| delayed) })
    }
    fn dead_letter(&mut self, letter: &DeadLetter) -> BoxFuture<'_, Result<(), SettleError>> {
        let copied = self.copy(format!("dead {} {}", letter.reason, letter.attempts));
        Box::pin(async move { copied })
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if !self.settled {
            self.log.add("given back");
        } else if self.script.writes_drops {
            self.log.add(format!("drop {}", self.number));
        }
    }
}
