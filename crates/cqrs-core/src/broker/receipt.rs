//! The receipt of a message for its publisher, and the pending confirm for its broker.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use super::error::{PublishError, PublishErrorKind};
use super::window::Slot;
use crate::message::Message;

/// The place of a confirmed message, as far as the broker reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Confirmation {
    /// Kafka: the partition.
    pub partition: Option<i32>,
    /// Kafka: the offset in the partition.
    pub offset: Option<i64>,
}

impl Confirmation {
    /// A confirm with a partition and an offset.
    pub fn at(partition: i32, offset: i64) -> Self {
        Self { partition: Some(partition), offset: Some(offset) }
    }
}

/// Finds the cause of an expired deadline. See [`Intake::with_cause`](super::Intake::with_cause).
#[derive(Clone)]
pub(super) struct ExpiryCause(Arc<CauseFn>);

type CauseFn = dyn Fn() -> Option<Box<dyn Error + Send + Sync>> + Send + Sync;

impl ExpiryCause {
    pub(super) fn new(
        cause: impl Fn() -> Option<Box<dyn Error + Send + Sync>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(cause))
    }

    pub(super) fn attach(cause: Option<&Self>, error: PublishError) -> PublishError {
        match cause.and_then(|cause| (cause.0)()) {
            Some(source) => error.with_source(source),
            None => error,
        }
    }
}

impl fmt::Debug for ExpiryCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExpiryCause")
    }
}

/// The state shared by the publisher's [`Receipt`] and the broker's [`PendingConfirm`].
///
/// Invariant: `phase` leaves `QUEUED` once, either to `SENT` (the broker began to write it) or to `EXPIRED`
/// (its deadline passed first). So `NotSent` is certain: an expired message is never written later.
#[derive(Debug)]
struct PublishState {
    message: Arc<Message>,
    deadline: Instant,
    phase: AtomicU8,
    cause: Option<ExpiryCause>,
}

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const EXPIRED: u8 = 2;

impl PublishState {
    fn leave_queue(&self, phase: u8) -> bool {
        self.phase.compare_exchange(QUEUED, phase, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn expired_error(&self) -> PublishError {
        let message = Arc::clone(&self.message);
        let error = if self.leave_queue(EXPIRED) || self.phase.load(Ordering::Acquire) == EXPIRED {
            let detail = "it waited for the broker until its deadline; check the broker's state";
            PublishError::new(PublishErrorKind::NotSent, message, detail)
        } else {
            let detail = "sent, but no confirm came before its deadline";
            PublishError::new(PublishErrorKind::Unknown, message, detail)
        };
        ExpiryCause::attach(self.cause.as_ref(), error)
    }
}

/// The future of a message's confirm. Resolves within the publish deadline, whatever the broker does.
///
/// Dropping it cancels nothing: the message is still sent and keeps its slot in the window until its
/// confirm. Must be polled inside a tokio runtime with time enabled.
#[must_use = "only the receipt tells whether the broker confirmed the message"]
pub struct Receipt {
    state: Arc<PublishState>,
    outcome: oneshot::Receiver<Result<Confirmation, PublishError>>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Receipt {
    /// The message of this receipt.
    pub fn message(&self) -> &Message {
        &self.state.message
    }

    pub(crate) fn shared_message(&self) -> Arc<Message> {
        Arc::clone(&self.state.message)
    }
}

impl Future for Receipt {
    type Output = Result<Confirmation, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        match Pin::new(&mut this.outcome).poll(cx) {
            Poll::Ready(Ok(outcome)) => return Poll::Ready(outcome),
            Poll::Ready(Err(_gone)) => {
                let kind = match this.state.leave_queue(EXPIRED) {
                    true => PublishErrorKind::NotSent,
                    false => PublishErrorKind::Unknown,
                };
                let detail = "the broker value was dropped before the confirm";
                let message = Arc::clone(&this.state.message);
                return Poll::Ready(Err(PublishError::new(kind, message, detail)));
            }
            Poll::Pending => {}
        }
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(this.state.deadline)));
        timer.as_mut().poll(cx).map(|()| Err(this.state.expired_error()))
    }
}

crate::debug_fields!(Receipt {}, |it| message: it.state.message);

/// The broker's half of a [`Receipt`]: holds the message and its slot in the window until the outcome.
///
/// Dropped without an outcome, the receipt ends as `NotSent` or, once sending began, as `Unknown`.
#[must_use = "dropping it fails the receipt"]
pub struct PendingConfirm {
    state: Arc<PublishState>,
    /// Before `outcome`, since fields are dropped in this order: see `settle`.
    slot: Slot,
    outcome: oneshot::Sender<Result<Confirmation, PublishError>>,
}

impl PendingConfirm {
    pub(super) fn new(
        message: Message,
        deadline: Instant,
        slot: Slot,
        cause: Option<ExpiryCause>,
    ) -> (Self, Receipt) {
        let phase = AtomicU8::new(QUEUED);
        let state = Arc::new(PublishState { message: Arc::new(message), deadline, phase, cause });
        let (outcome, receiver) = oneshot::channel();
        let receipt = Receipt { state: Arc::clone(&state), outcome: receiver, timer: None };
        (Self { state, outcome, slot }, receipt)
    }

    /// The message to send.
    pub fn message(&self) -> &Message {
        &self.state.message
    }

    /// The message to send, for a broker that keeps it: no copy is made.
    pub fn shared_message(&self) -> Arc<Message> {
        Arc::clone(&self.state.message)
    }

    /// The deadline of the publish.
    pub fn deadline(&self) -> Instant {
        self.state.deadline
    }

    /// Must be called right before the message is written (again). `false`: its deadline passed and its
    /// receipt ended as `NotSent`, so it must not be written; drop this value.
    #[must_use = "an expired message must not be written"]
    pub fn start_sending(&self) -> bool {
        self.state.leave_queue(SENT) || self.state.phase.load(Ordering::Acquire) == SENT
    }

    /// `true` once sending began, so that the broker may have the message.
    pub fn is_sent(&self) -> bool {
        self.state.phase.load(Ordering::Acquire) == SENT
    }

    /// Ends the publish: the broker stored the message.
    pub fn confirm(self, confirmation: Confirmation) {
        self.settle(Ok(confirmation));
    }

    /// Ends the publish without a confirm. See [`PublishError::new`] for `detail`.
    pub fn fail(
        self,
        kind: PublishErrorKind,
        detail: impl Into<Cow<'static, str>>,
        source: Option<Box<dyn Error + Send + Sync>>,
    ) {
        let mut error = PublishError::new(kind, Arc::clone(&self.state.message), detail);
        if let Some(source) = source {
            error = error.with_source(source);
        }
        self.settle(Err(error));
    }

    /// Ends the publish at its deadline: `NotSent`, or `Unknown` once sending began. Without a `source` the
    /// cause of [`Intake::with_cause`](super::Intake::with_cause) is used.
    pub fn expire(self, source: Option<Box<dyn Error + Send + Sync>>) {
        let mut error = self.state.expired_error();
        if let Some(source) = source {
            error = error.with_source(source);
        }
        self.settle(Err(error));
    }

    /// Frees the slot first, so that a caller that sees the outcome also sees a free slot.
    fn settle(self, outcome: Result<Confirmation, PublishError>) {
        drop(self.slot);
        let _receipt_dropped = self.outcome.send(outcome);
    }

    /// Returns the message without a receipt, for a publish that failed before it was accepted.
    pub fn reject(
        self,
        kind: PublishErrorKind,
        detail: impl Into<Cow<'static, str>>,
    ) -> PublishError {
        PublishError::new(kind, Arc::clone(&self.state.message), detail)
    }
}

crate::debug_fields!(PendingConfirm { state });
