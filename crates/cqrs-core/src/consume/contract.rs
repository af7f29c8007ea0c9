//! The consuming contract of a message broker, which the service runtime calls and broker crates implement.

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::dead_letter::DeadLetter;
use super::error::{SettleError, SourceError, SubscribeError};
use super::fetch::Fetch;
use super::incoming::Incoming;
use super::request::SubscribeRequest;
use super::retry::RetryState;
use crate::broker::{BoxFuture, MessageBroker};

/// A message broker that can also be consumed from. A [`Service`](crate::Service) runs on it.
///
/// The conformance suite of `cqrs-testkit` checks an implementation against this and the promises of
/// [`Source`] and [`Settle`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be consumed from: give a `KafkaMessageBroker`, an `AmqpMessageBroker`, a \
               `MemoryBroker`, or one in an `Arc`",
    label = "not a broker that can be consumed from"
)]
pub trait Subscribe: MessageBroker {
    /// The errors in `requests`, taken together, that can be found without a connection: options that
    /// contradict each other, or two subscriptions that declare one queue with different arguments. Each
    /// error names its subscription and the remedy.
    fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError>;

    /// Opens one subscription. Waits for the broker as long as it takes when it cannot be reached,
    /// and reports that through the request's status.
    ///
    /// # Errors
    /// Errors that retrying cannot fix: see [`SubscribeErrorKind`](super::SubscribeErrorKind).
    ///
    /// # Cancel safety
    /// A dropped call leaves nothing that consumes.
    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>>;
}

/// As for [`MessageBroker`]: `Arc<dyn Subscribe>` and `Box<dyn Subscribe>`, too.
macro_rules! impl_for_pointer {
    ($($pointer:ident),*) => {$(
        impl<B: Subscribe + ?Sized> Subscribe for $pointer<B> {
            fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
                (**self).check(requests)
            }

            fn subscribe(
                &self,
                request: SubscribeRequest,
            ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
                (**self).subscribe(request)
            }
        }
    )*};
}
impl_for_pointer!(Arc, Box);

/// One subscription's stream of deliveries, as a broker implements it.
///
/// # What an implementation promises
/// * **At least once.** Every message of the topics is delivered until a delivery of it is acked. A message
///   that is given back is redelivered, at the latest when the source is opened anew.
/// * **Order.** Messages of one topic and key are delivered in the broker's order. (A retry copy is
///   delivered when its delay is over.)
/// * **Bounds.** At most [`SubscribeRequest::max_unsettled`](super::SubscribeRequest) deliveries are in
///   flight at once; dropped and settled ones no longer count.
/// * **Recovery.** Lost connections, channels, consumers and topology are made again forever, with backoff,
///   and reported through the request's [`StatusReporter`](super::StatusReporter). Only an error that
///   retrying cannot fix ends the source.
/// * **No blocking.** Nothing here blocks the calling thread.
pub trait Source: fmt::Debug + Send + 'static {
    /// Adds the next deliveries to `fetch`, in order: all that are there, as far as it has room. `Pending` if there is
    /// none. `None` only after [`stop`](Self::stop).
    ///
    /// # Errors
    /// If the subscription cannot go on; no delivery follows. What was added before counts.
    fn poll_fetch(
        &mut self,
        cx: &mut Context<'_>,
        fetch: &mut Fetch,
    ) -> Poll<Option<Result<(), SourceError>>>;

    /// Stops fetching: no further delivery follows. Those in flight can be settled until
    /// [`close`](Self::close).
    fn stop(&mut self) -> BoxFuture<'_, ()>;

    /// Gives back unsettled deliveries, makes settlements durable (Kafka: commits) and leaves the broker.
    /// Ends within about `deadline`, whatever the broker does.
    ///
    /// # Errors
    /// If settlements may be lost, so that settled messages can be redelivered.
    fn close(self: Box<Self>, deadline: Duration) -> BoxFuture<'static, Result<(), SourceError>>;
}

impl dyn Source {
    /// The next delivery alone. The runtime takes several at once; see [`poll_fetch`](Source::poll_fetch).
    ///
    /// # Errors
    /// As [`poll_fetch`](Source::poll_fetch).
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<SourceDelivery, SourceError>>> {
        let mut fetch = Fetch::new(1);
        let end = ready!(fetch.poll(self, cx)).and_then(Result::err);
        Poll::Ready(fetch.into_first().map(Ok).or(end.map(Err)))
    }
}

/// One message delivered to the runtime. Dropped, it is given back, never acked.
#[must_use = "dropping it gives the message back"]
pub struct SourceDelivery {
    /// The message. A broker in memory shares it with its log.
    pub message: Arc<Incoming>,
    /// The earlier attempts, in this process or another.
    pub retry: RetryState,
    /// Set if the broker has delayed this attempt already: the message is a retry copy. Otherwise the
    /// runtime holds a message that failed before until the delay after its last failure is over.
    pub delayed: bool,
    /// Settles it.
    pub settle: Box<dyn Settle>,
}

impl SourceDelivery {
    /// A delivery of `message` without earlier attempts.
    pub fn new(message: impl Into<Arc<Incoming>>, settle: impl Settle) -> Self {
        let (retry, settle) = (RetryState::default(), Box::new(settle));
        Self { message: message.into(), retry, delayed: false, settle }
    }
}

crate::debug_fields!(SourceDelivery { message, retry });

/// Settles one delivery. Dropping it gives the message back.
///
/// Implementations do not lose a message on a cancel: a dropped future of a method settles nothing, or
/// leaves a copy beside an original that is redelivered.
pub trait Settle: Any + Send + Sync {
    /// Called before a handler starts, and again before each start after a [`Delayed::Hold`]. `false`:
    /// the message is no longer this consumer's (its Kafka partition was revoked); drop the delivery.
    ///
    /// From `true` on the delivery counts as running until it is settled, dropped, held or
    /// [postponed](Self::postpone); a further call while it runs changes nothing.
    fn begin(&mut self) -> bool;

    /// Called when the runtime postpones a started delivery without counting a failed attempt:
    /// [`begin`](Self::begin) is called again. Until then the delivery does not count as running.
    fn postpone(&mut self);

    /// Called after each failed attempt, with the attempts so far. A broker that can keep `state` delivers
    /// it with the message if this delivery ends unsettled, in this process or in another one, so that the
    /// next attempt continues the count. Cheap: no I/O, no waiting. A broker that cannot keep it does
    /// nothing and says so in its documentation.
    fn note_attempt(&mut self, state: &RetryState);

    /// `true` if [`begin`](Self::begin) would return `false` now: the message was revoked. Called from time
    /// to time for a held delivery, so that its key does not wait in vain. It is called under a lock of the
    /// runtime: it must be cheap, take no lock that is held while a delivery is dropped, and not panic.
    fn is_revoked(&self) -> bool;

    /// Acks the message: it is done and is not redelivered. After `Ready(Ok)`, dropping this does nothing.
    ///
    /// Release here what this holds: the message, its place within the bounds. If the source uses
    /// [`Fetch::spare_settle`], an acked settlement is not dropped but kept for a later delivery.
    ///
    /// The first poll begins the ack. `Pending`: it is on its way to the broker, and a further poll continues it.
    /// [`ack`](trait.Settle.html#method.ack) is the future of it. An ack is a poll and not a future, because most
    /// messages are acked and most brokers need not wait for that: they write the acks of several messages together, a
    /// moment later (Kafka its offsets, RabbitMQ one frame). A message whose ack is lost after that is redelivered.
    ///
    /// # Errors
    /// If the ack cannot be written. It can be tried again if the cause may pass. If the channel is
    /// lost, no further try succeeds: the message is redelivered, and this must be dropped.
    fn poll_ack(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SettleError>>;

    /// Makes sure that the message is redelivered after `delay`, with `state`.
    ///
    /// [`Scheduled`](Delayed::Scheduled): the broker confirmed a copy; ack this one.
    /// [`Hold`](Delayed::Hold): there is no copy; keep this one, let its key wait, and
    /// [`begin`](Self::begin) it again after the delay. Dropping it instead gives it back, with `state`
    /// kept if the broker can keep it.
    ///
    /// # Errors
    /// If the broker did not confirm; nothing is settled, try again.
    fn retry_later(
        &mut self,
        delay: Duration,
        state: &RetryState,
    ) -> BoxFuture<'_, Result<Delayed, SettleError>>;

    /// Stores the message as a dead letter: key, body and headers as they came, and those of `letter`.
    /// On `Ok` the broker confirmed it; ack this one.
    ///
    /// # Errors
    /// If the broker did not confirm; nothing is settled, try again. A revoked message is no error: it is
    /// stored all the same, and the ack fails then.
    fn dead_letter(&mut self, letter: &DeadLetter) -> BoxFuture<'_, Result<(), SettleError>>;
}

impl dyn Settle {
    /// Acks the message; see [`poll_ack`](Settle::poll_ack).
    ///
    /// # Errors
    /// As [`poll_ack`](Settle::poll_ack).
    ///
    /// # Cancel safety
    /// A dropped call may have acked the message. A further call continues it.
    pub async fn ack(&mut self) -> Result<(), SettleError> {
        poll_fn(|cx| self.poll_ack(cx)).await
    }
}

/// The place where a message waits for its next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delayed {
    /// With the broker: a copy is delivered. Order per key is given up for it.
    Scheduled,
    /// With the consumer, which keeps the delivery and lets its key wait.
    Hold,
}
