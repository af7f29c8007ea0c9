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

/// Where a confirmed message stands, as far as the broker tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Confirmation {
    /// Kafka: the partition.
    pub partition: Option<i32>,
    /// Kafka: the offset in the partition.
    pub offset: Option<i64>,
}

impl Confirmation {
    /// A confirm that names a place in a partitioned log.
    pub fn at(partition: i32, offset: i64) -> Self {
        Self { partition: Some(partition), offset: Some(offset) }
    }
}

/// Says why a deadline passed, for brokers that learn causes apart from the messages they hold up.
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

/// What a message's two holders share: the caller's [`Receipt`] and the broker's [`PendingConfirm`].
///
/// Invariant: `phase` leaves `QUEUED` once, either to `SENT` (the broker began to write it) or to
/// `EXPIRED` (its deadline came first). So an error "not sent" can be trusted: an expired message is
/// never written afterwards.
#[derive(Debug)]
struct Ticket {
    message: Arc<Message>,
    deadline: Instant,
    phase: AtomicU8,
    cause: Option<ExpiryCause>,
}

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const EXPIRED: u8 = 2;

impl Ticket {
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
/// Dropping it cancels nothing: the message is still delivered and keeps its place in the window until
/// its confirm. Must be polled inside a tokio runtime with time enabled.
#[must_use = "only the receipt tells whether the broker confirmed the message"]
pub struct Receipt {
    ticket: Arc<Ticket>,
    verdict: oneshot::Receiver<Result<Confirmation, PublishError>>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Receipt {
    /// The message this is the receipt of.
    pub fn message(&self) -> &Message {
        &self.ticket.message
    }

    pub(crate) fn shared_message(&self) -> Arc<Message> {
        Arc::clone(&self.ticket.message)
    }
}

impl Future for Receipt {
    type Output = Result<Confirmation, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        match Pin::new(&mut this.verdict).poll(cx) {
            Poll::Ready(Ok(verdict)) => return Poll::Ready(verdict),
            Poll::Ready(Err(_gone)) => {
                let kind = match this.ticket.leave_queue(EXPIRED) {
                    true => PublishErrorKind::NotSent,
                    false => PublishErrorKind::Unknown,
                };
                let detail = "the broker value was dropped before the confirm";
                let message = Arc::clone(&this.ticket.message);
                return Poll::Ready(Err(PublishError::new(kind, message, detail)));
            }
            Poll::Pending => {}
        }
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(this.ticket.deadline)));
        timer.as_mut().poll(cx).map(|()| Err(this.ticket.expired_error()))
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("message", &self.ticket.message).finish_non_exhaustive()
    }
}

/// The broker's half of a [`Receipt`]: holds the message and its place in the window until the verdict.
///
/// Dropped without a verdict, the receipt ends as `NotSent` or, once sending began, as `Unknown`.
#[must_use = "dropping it fails the receipt"]
pub struct PendingConfirm {
    ticket: Arc<Ticket>,
    /// Before `verdict`, since fields are dropped in this order: see `settle`.
    slot: Slot,
    verdict: oneshot::Sender<Result<Confirmation, PublishError>>,
}

impl PendingConfirm {
    pub(super) fn new(
        message: Message,
        deadline: Instant,
        slot: Slot,
        cause: Option<ExpiryCause>,
    ) -> (Self, Receipt) {
        let phase = AtomicU8::new(QUEUED);
        let ticket = Arc::new(Ticket { message: Arc::new(message), deadline, phase, cause });
        let (verdict, receiver) = oneshot::channel();
        let receipt = Receipt { ticket: Arc::clone(&ticket), verdict: receiver, timer: None };
        (Self { ticket, verdict, slot }, receipt)
    }

    /// The message to send.
    pub fn message(&self) -> &Message {
        &self.ticket.message
    }

    /// When the publish must have ended.
    pub fn deadline(&self) -> Instant {
        self.ticket.deadline
    }

    /// To be called right before the message is written (again). `false`: its deadline came first and
    /// its receipt said `NotSent`, so it must not be written; drop this value.
    #[must_use = "an expired message must not be written"]
    pub fn start_sending(&self) -> bool {
        self.ticket.leave_queue(SENT) || self.ticket.phase.load(Ordering::Acquire) == SENT
    }

    /// Whether sending began, so that the broker may have the message.
    pub fn is_sent(&self) -> bool {
        self.ticket.phase.load(Ordering::Acquire) == SENT
    }

    /// The broker stored the message.
    pub fn confirm(self, confirmation: Confirmation) {
        self.settle(Ok(confirmation));
    }

    /// The publish ended without a confirm. See [`PublishError::new`] for `detail`.
    pub fn fail(
        self,
        kind: PublishErrorKind,
        detail: impl Into<Cow<'static, str>>,
        source: Option<Box<dyn Error + Send + Sync>>,
    ) {
        let mut error = PublishError::new(kind, Arc::clone(&self.ticket.message), detail);
        if let Some(source) = source {
            error = error.with_source(source);
        }
        self.settle(Err(error));
    }

    /// The deadline passed: `NotSent`, or `Unknown` once sending began. `source` may say why; without
    /// one the cause of [`Intake::with_cause`](super::Intake::with_cause) does.
    pub fn expire(self, source: Option<Box<dyn Error + Send + Sync>>) {
        let mut error = self.ticket.expired_error();
        if let Some(source) = source {
            error = error.with_source(source);
        }
        self.settle(Err(error));
    }

    /// Frees the place first, so that whoever sees the verdict also sees the place free.
    fn settle(self, verdict: Result<Confirmation, PublishError>) {
        drop(self.slot);
        let _receipt_dropped = self.verdict.send(verdict);
    }

    /// Hands the message back without a receipt, for a publish that failed before it was accepted.
    pub fn reject(
        self,
        kind: PublishErrorKind,
        detail: impl Into<Cow<'static, str>>,
    ) -> PublishError {
        PublishError::new(kind, Arc::clone(&self.ticket.message), detail)
    }
}

impl fmt::Debug for PendingConfirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingConfirm").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}
