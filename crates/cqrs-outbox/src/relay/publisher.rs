//! The broker's side of a relay: publishes rows, and decides what an error means for them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, Confirmation, Receipt};
use cqrs_core::{Message, MessageBroker, PublishError, PublishErrorKind};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};

use super::effects::{Outcome, Publish};
use super::outage::{Outage, text_of};
use super::store::Payload;

/// While the broker is away, one row is tried after so long, whatever its state says.
const PROBE: Duration = Duration::from_secs(5);

/// The longest pause while the broker is away. Its state is known without asking it.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Between two looks at the broker's state while rows are in flight.
const OBSERVE_EVERY: Duration = Duration::from_millis(50);

/// A row that is published, and the time of its start.
#[derive(Debug)]
pub(super) struct Started {
    publish: Publish<()>,
    at: Duration,
}

/// The end of a publish.
pub(super) type Answer = (Started, Result<Confirmation, PublishError>);
type Enqueued = (Started, Result<Receipt, PublishError>);

/// A row in flight.
struct InFlight {
    started: Option<Started>,
    receipt: Receipt,
}

impl Future for InFlight {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match Pin::new(&mut self.receipt).poll(cx) {
            Poll::Ready(outcome) => match self.started.take() {
                Some(started) => Poll::Ready((started, outcome)),
                None => Poll::Pending,
            },
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Times are since the start of the relay.
pub(super) struct Publisher {
    broker: Arc<dyn MessageBroker>,
    /// Set if a message without a destination is refused for good.
    dead_letters_unroutable: bool,
    in_flight: FuturesUnordered<InFlight>,
    enqueueing: Option<BoxFuture<'static, Enqueued>>,
    outage: Outage,
    /// While the broker is away: the next try without regard to its state.
    probe_at: Duration,
    /// The last time when the broker was not ready.
    away_at: Option<Duration>,
    is_closed: bool,
}

impl Publisher {
    pub(super) fn new(broker: Arc<dyn MessageBroker>, dead_letters_unroutable: bool) -> Self {
        Self {
            broker,
            dead_letters_unroutable,
            in_flight: FuturesUnordered::new(),
            enqueueing: None,
            outage: Outage::new("broker", LONGEST_PAUSE),
            probe_at: Duration::ZERO,
            away_at: None,
            is_closed: false,
        }
    }

    /// `true` once the broker value is shut down.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// `true` while the last attempts met a broker that was away.
    pub(super) fn is_away(&self) -> bool {
        self.outage.retry_at().is_some()
    }

    /// `true` if nothing may be tried now.
    pub(super) fn waits(&self, now: Duration) -> bool {
        self.outage.waits(now)
    }

    /// Rows whose publish has not ended, with the one that waits for room.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len() + usize::from(self.enqueueing.is_some())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.enqueueing.is_none()
    }

    /// Gives up the row that waits for room in the broker's window. Nothing of it is sent.
    #[cfg(feature = "postgres")]
    pub(super) fn cancel_enqueueing(&mut self) {
        self.enqueueing = None;
    }

    /// Looks at the broker's state. An outage that nobody sees costs its rows an attempt.
    pub(super) fn observe(&mut self, now: Duration) {
        if !self.broker.state().is_ready() {
            self.away_at = Some(now);
        }
    }

    /// The time of the next look or attempt, if there is one.
    pub(super) fn wake_at(&self, now: Duration) -> Option<Duration> {
        let observe = (!self.is_idle()).then_some(now + OBSERVE_EVERY);
        observe.into_iter().chain(self.outage.retry_at()).filter(|at| *at > now).min()
    }

    /// `true` if nothing more may be [sent](Self::send) until an answer or the end of an outage.
    pub(super) fn is_held(&self, now: Duration) -> bool {
        self.enqueueing.is_some() || self.is_closed || self.outage.waits(now)
    }

    /// `Some` if a row may be [sent](Self::send) now: several until it is [held](Self::is_held), or one.
    pub(super) fn may_send(&mut self, now: Duration) -> Option<Sends> {
        if self.is_held(now) {
            return None;
        }
        let is_ready = self.broker.state().is_ready();
        if !is_ready && now < self.probe_at {
            self.outage.failed(now, format_args!("{:?}", self.broker.state()));
            return None;
        }
        self.probe_at = now + PROBE;
        Some(if is_ready { Sends::Many } else { Sends::One })
    }

    /// Starts a publish. `Some`: it ended at once.
    pub(super) fn send(
        &mut self,
        publish: Publish<()>,
        message: Message,
        now: Duration,
    ) -> Option<Answer> {
        let started = Started { publish, at: now };
        match self.broker.try_enqueue(message) {
            Ok(receipt) => self.in_flight.push(InFlight { started: Some(started), receipt }),
            Err(error) if error.kind() == PublishErrorKind::Full => {
                let broker = Arc::clone(&self.broker);
                let message = error.into_message();
                self.enqueueing = Some(Box::pin(async move {
                    let receipt = broker.enqueue(message).await;
                    (started, receipt)
                }));
            }
            Err(error) => return Some((started, Err(error))),
        }
        None
    }

    /// The answers of the broker that are there, at least one. Pending forever without a row in flight.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, it loses no answer.
    pub(super) async fn answers(&mut self) -> Vec<Answer> {
        tokio::select! {
            Some(first) = self.in_flight.next() => {
                // Most confirms come in batches.
                let mut answers = vec![first];
                while let Some(Some(answer)) = self.in_flight.next().now_or_never() {
                    answers.push(answer);
                }
                answers
            }
            (started, enqueued) = pending(&mut self.enqueueing) => {
                self.enqueueing = None;
                match enqueued {
                    Ok(receipt) => {
                        self.in_flight.push(InFlight { started: Some(started), receipt });
                        Vec::new()
                    }
                    Err(error) => vec![(started, Err(error))],
                }
            }
            else => std::future::pending().await,
        }
    }

    /// Answers have come, whose [outcomes](Self::outcome) are next.
    pub(super) fn answered(&mut self, now: Duration) {
        match self.broker.state().is_ready() {
            true => self.outage.succeeded(now),
            false => self.away_at = Some(now),
        }
    }

    /// What to do with a row whose publish ended.
    pub(super) fn outcome(
        &mut self,
        (started, result): Answer,
        now: Duration,
    ) -> (Publish<()>, Outcome<Payload>) {
        let Started { publish, at } = started;
        let outcome = match result {
            Ok(_) => Outcome::Confirmed,
            Err(error) => self.failure(error, at, now),
        };
        (publish, outcome)
    }

    fn failure(&mut self, error: PublishError, at: Duration, now: Duration) -> Outcome<Payload> {
        self.observe(now);
        let was_away = self.away_at.is_some_and(|away| away >= at);
        match error.kind() {
            PublishErrorKind::Closed => {
                self.is_closed = true;
                Outcome::Returned(Ok(error.into_message()))
            }
            // This says nothing about the message.
            kind if was_away && kind.is_retryable() => {
                if !self.broker.state().is_ready() && !self.outage.waits(now) {
                    self.outage.failed(now, text_of(&error));
                }
                Outcome::Returned(Ok(error.into_message()))
            }
            PublishErrorKind::Unroutable if !self.dead_letters_unroutable => {
                Outcome::Failed(text_of(&error))
            }
            kind if kind.is_retryable() => Outcome::Failed(text_of(&error)),
            _ => {
                let text = text_of(&error);
                tracing::error!(error = %text, "an event of the outbox is refused for good");
                Outcome::Refused(text)
            }
        }
    }
}

/// The rows that may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sends {
    Many,
    /// A probe of a broker that is away.
    One,
}

/// The future in the slot, or none.
async fn pending<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    match slot {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use cqrs_core::MemoryBroker;
    use cqrs_core::broker::{BrokerState, ShutdownReport};
    use uuid::Uuid;

    use super::*;
    use crate::relay::effects::{LaneEpoch, OrderKey, RowId, Table};

    /// A broker whose state the test sets.
    #[derive(Debug)]
    struct Switched(MemoryBroker, AtomicBool);

    impl MessageBroker for Switched {
        fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
            self.0.enqueue(message)
        }

        fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
            self.0.try_enqueue(message)
        }

        fn state(&self) -> BrokerState {
            match self.1.load(Ordering::Relaxed) {
                true => BrokerState::Ready,
                false => BrokerState::Disconnected { last_error: "gone".into() },
            }
        }

        fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
            self.0.shutdown(deadline)
        }
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn publisher(dead_letters_unroutable: bool) -> (Publisher, Arc<Switched>) {
        let broker = Arc::new(Switched(MemoryBroker::new(), AtomicBool::new(true)));
        (Publisher::new(broker.clone(), dead_letters_unroutable), broker)
    }

    /// The answer to a row that was sent at `sent`.
    fn answer(kind: PublishErrorKind, sent: Duration) -> Answer {
        let lane = LaneEpoch { lane: 0, epoch: 1 };
        let row = RowId { id: 1, event_id: Uuid::nil() };
        let (order, table) = (OrderKey::Row(row), Table::Pending);
        let publish = Publish { lane, order, row, table, payload: () };
        let error = PublishError::new(kind, Message::new("t", ""), "test");
        (Started { publish, at: sent }, Err(error))
    }

    #[test]
    fn answer_of_a_ready_broker_ends_its_outage() {
        let (mut publisher, broker) = publisher(false);
        broker.1.store(false, Ordering::Relaxed);
        publisher.observe(at(1));
        assert_eq!(publisher.may_send(at(1)), Some(Sends::One), "the first probe");
        assert_eq!(publisher.may_send(at(2)), None);
        assert!(publisher.is_away() && publisher.waits(at(3)));
        broker.1.store(true, Ordering::Relaxed);
        assert!(!publisher.waits(at(900)), "parked rows may be loaded");
        publisher.answered(at(901));
        let _failed = publisher.outcome(answer(PublishErrorKind::Refused, at(900)), at(901));
        assert!(!publisher.is_away());
    }

    #[test]
    fn past_retry_is_no_time_to_wake() {
        let (mut publisher, broker) = publisher(false);
        broker.1.store(false, Ordering::Relaxed);
        publisher.probe_at = at(5_000);
        assert_eq!(publisher.may_send(at(1)), None);
        assert_eq!(publisher.wake_at(at(2)), Some(at(101)));
        assert_eq!(publisher.wake_at(at(101)), None);
    }

    #[test]
    fn row_sent_before_an_outage_costs_no_attempt() {
        let (mut publisher, broker) = publisher(false);
        broker.1.store(false, Ordering::Relaxed);
        publisher.observe(at(20));
        broker.1.store(true, Ordering::Relaxed);
        let kind = PublishErrorKind::Unknown;
        let (_, before) = publisher.outcome(answer(kind, at(10)), at(30));
        let (_, after) = publisher.outcome(answer(kind, at(25)), at(30));
        assert!(matches!(before, Outcome::Returned(Ok(_))), "{before:?}");
        assert!(matches!(after, Outcome::Failed(_)), "{after:?}");
    }

    #[test]
    fn unsent_row_of_a_ready_broker_is_parked() {
        let (mut publisher, _broker) = publisher(false);
        let (_, outcome) = publisher.outcome(answer(PublishErrorKind::NotSent, at(1)), at(2));
        assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
        assert!(!publisher.is_away());
    }

    #[test]
    fn unroutable_row_is_dead_only_by_the_option() {
        let kind = PublishErrorKind::Unroutable;
        let (_, parked) = publisher(false).0.outcome(answer(kind, at(1)), at(2));
        let (_, dead) = publisher(true).0.outcome(answer(kind, at(1)), at(2));
        assert!(matches!(parked, Outcome::Failed(_)), "{parked:?}");
        assert!(matches!(dead, Outcome::Refused(_)), "{dead:?}");
    }
}
