//! The receipt of a message for its publisher, and the pending confirm for its broker.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::task::coop;
use tokio::time::Instant;

use super::error::{PublishError, PublishErrorKind};
use super::intake::IntakeState;
use super::timers::Timer;
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
pub(super) struct ExpiryCause(Box<CauseFn>);

type CauseFn = dyn Fn() -> Option<Box<dyn Error + Send + Sync>> + Send + Sync;

impl ExpiryCause {
    pub(super) fn new(
        cause: impl Fn() -> Option<Box<dyn Error + Send + Sync>> + Send + Sync + 'static,
    ) -> Self {
        Self(Box::new(cause))
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
/// Invariants:
/// * `phase` leaves `QUEUED` once, either to `SENT` (the broker began to write it) or to `EXPIRED` (its
///   deadline passed first). So `NotSent` is certain: an expired message is never written later.
/// * `outcome` becomes [`Ended`](OutcomeSlot::Ended) once, by the `PendingConfirm`; from then on no waker is
///   registered. Wakers are called and dropped after the lock is released.
#[derive(Debug)]
struct PublishState {
    message: Message,
    deadline: Instant,
    phase: AtomicU8,
    intake: Arc<IntakeState>,
    outcome: Mutex<OutcomeSlot>,
}

#[derive(Debug)]
enum OutcomeSlot {
    /// With the waker of the task that waits for the receipt.
    Open(Option<Waker>),
    /// `None` if the pending confirm was dropped, or the receipt has returned it.
    Ended(Option<Result<Confirmation, PublishError>>),
}

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const EXPIRED: u8 = 2;

impl PublishState {
    fn leave_queue(&self, phase: u8) -> bool {
        self.phase.compare_exchange(QUEUED, phase, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn expired_error(&self) -> PublishError {
        let message = self.message.clone();
        let error = if self.leave_queue(EXPIRED) || self.phase.load(Ordering::Acquire) == EXPIRED {
            let detail = "it waited for the broker until its deadline; check the broker's state";
            PublishError::new(PublishErrorKind::NotSent, message, detail)
        } else {
            let detail = "sent, but no confirm came before its deadline";
            PublishError::new(PublishErrorKind::Unknown, message, detail)
        };
        ExpiryCause::attach(self.intake.cause.as_ref(), error)
    }

    fn abandoned_error(&self) -> PublishError {
        let kind = match self.leave_queue(EXPIRED) {
            true => PublishErrorKind::NotSent,
            false => PublishErrorKind::Unknown,
        };
        let detail = "the broker value was dropped before the confirm";
        PublishError::new(kind, self.message.clone(), detail)
    }

    fn outcome(&self) -> MutexGuard<'_, OutcomeSlot> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the publish, and wakes the task that waits for the receipt.
    fn end(&self, outcome: Option<Result<Confirmation, PublishError>>) {
        let ended = OutcomeSlot::Ended(outcome);
        let before = std::mem::replace(&mut *self.outcome(), ended);
        if let OutcomeSlot::Open(Some(waker)) = before {
            waker.wake();
        }
    }

    /// The outcome, or `None` after the waker was registered.
    fn poll_outcome(&self, waker: &Waker) -> Option<Result<Confirmation, PublishError>> {
        let mut slot = self.outcome();
        match &mut *slot {
            OutcomeSlot::Open(Some(registered)) if registered.will_wake(waker) => None,
            OutcomeSlot::Open(registered) => {
                let replaced = registered.replace(waker.clone());
                drop((slot, replaced));
                None
            }
            OutcomeSlot::Ended(outcome) => {
                Some(outcome.take().unwrap_or_else(|| Err(self.abandoned_error())))
            }
        }
    }

    fn forget_waker(&self) {
        let waker = match &mut *self.outcome() {
            OutcomeSlot::Open(registered) => registered.take(),
            OutcomeSlot::Ended(_) => None,
        };
        drop(waker);
    }
}

/// The future of a message's confirm. Resolves within the publish deadline, whatever the broker does.
///
/// Dropping it cancels nothing: the message is still sent and keeps its slot in the window until its
/// confirm. Must be polled inside a tokio runtime with time enabled.
#[must_use = "only the receipt tells whether the broker confirmed the message"]
pub struct Receipt {
    state: Arc<PublishState>,
    /// Set once it was polled without an outcome.
    timer: Option<Timer>,
}

impl Receipt {
    /// The message of this receipt.
    pub fn message(&self) -> &Message {
        &self.state.message
    }

    pub(crate) fn shared_message(&self) -> SharedMessage {
        SharedMessage(Arc::clone(&self.state))
    }
}

impl Future for Receipt {
    type Output = Result<Confirmation, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A task that always finds a confirm must yield, too.
        let budget = ready!(coop::poll_proceed(cx));
        let this = &mut *self;
        if let Some(outcome) = this.state.poll_outcome(cx.waker()) {
            budget.made_progress();
            if let Some(timer) = this.timer.take() {
                this.state.intake.timers.keep(timer);
            }
            return Poll::Ready(outcome);
        }
        let state = &this.state;
        let timer = this.timer.get_or_insert_with(|| state.intake.timers.take(state.deadline));
        timer.sleep.as_mut().poll(cx).map(|()| Err(state.expired_error()))
    }
}

impl Drop for Receipt {
    /// Unregisters the waker, which keeps its task in memory.
    fn drop(&mut self) {
        if self.timer.is_some() {
            self.state.forget_waker();
        }
    }
}

crate::debug_fields!(Receipt {}, |it| message: it.state.message);

/// A published message that a broker keeps without a copy. Cloning it is cheap.
#[derive(Clone)]
pub struct SharedMessage(Arc<PublishState>);

impl Deref for SharedMessage {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.0.message
    }
}

crate::debug_fields!(SharedMessage {}, |it| message: it.0.message);

#[cfg(test)]
impl From<Message> for SharedMessage {
    fn from(message: Message) -> Self {
        let admitted = super::Intake::default().try_admit(message);
        admitted.map(|(pending, _receipt)| pending.shared_message()).unwrap()
    }
}

/// The broker's half of a [`Receipt`]: holds the message and its slot in the window until the outcome.
///
/// Dropped without an outcome, the receipt ends as `NotSent` or, once sending began, as `Unknown`.
#[must_use = "dropping it fails the receipt"]
pub struct PendingConfirm {
    state: Arc<PublishState>,
    /// `None` once it has an outcome.
    slot: Option<Slot>,
}

impl PendingConfirm {
    pub(super) fn new(
        message: Message,
        deadline: Instant,
        slot: Slot,
        intake: Arc<IntakeState>,
    ) -> (Self, Receipt) {
        let phase = AtomicU8::new(QUEUED);
        let outcome = Mutex::new(OutcomeSlot::Open(None));
        let state = Arc::new(PublishState { message, deadline, phase, intake, outcome });
        let receipt = Receipt { state: Arc::clone(&state), timer: None };
        (Self { state, slot: Some(slot) }, receipt)
    }

    /// The message to send.
    pub fn message(&self) -> &Message {
        &self.state.message
    }

    /// The message to send, for a broker that keeps it: no copy is made.
    pub fn shared_message(&self) -> SharedMessage {
        SharedMessage(Arc::clone(&self.state))
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
        let mut error = PublishError::new(kind, self.state.message.clone(), detail);
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

    fn settle(mut self, outcome: Result<Confirmation, PublishError>) {
        self.end(Some(outcome));
    }

    /// Frees the slot first, so that a caller that sees the outcome also sees a free slot.
    fn end(&mut self, outcome: Option<Result<Confirmation, PublishError>>) {
        if let Some(slot) = self.slot.take() {
            drop(slot);
            self.state.end(outcome);
        }
    }

    /// Returns the message without a receipt, for a publish that failed before it was accepted.
    pub fn reject(
        self,
        kind: PublishErrorKind,
        detail: impl Into<Cow<'static, str>>,
    ) -> PublishError {
        PublishError::new(kind, self.state.message.clone(), detail)
    }
}

impl Drop for PendingConfirm {
    fn drop(&mut self) {
        self.end(None);
    }
}

crate::debug_fields!(PendingConfirm { state });

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;
    use std::time::Duration;

    use super::*;
    use crate::broker::{Intake, Window};

    fn admit() -> (PendingConfirm, Receipt) {
        let intake = Intake::new(Window::default(), Duration::from_secs(3600));
        intake.try_admit(Message::new("t", "")).unwrap()
    }

    #[derive(Default)]
    struct CountWakes(AtomicUsize);

    impl Wake for CountWakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll(receipt: &mut Receipt, wakes: &Arc<CountWakes>) -> bool {
        let waker = Waker::from(Arc::clone(wakes));
        Pin::new(receipt).poll(&mut Context::from_waker(&waker)).is_ready()
    }

    #[tokio::test]
    async fn confirm_wakes_the_task_that_polled_last() {
        let (first, last) = (Arc::<CountWakes>::default(), Arc::<CountWakes>::default());
        let (pending, mut receipt) = admit();
        for waker in [&first, &last, &last] {
            assert!(!poll(&mut receipt, waker));
        }
        pending.confirm(Confirmation::default());
        assert_eq!((first.0.load(Ordering::SeqCst), last.0.load(Ordering::SeqCst)), (0, 1));
        assert!(poll(&mut receipt, &last));
    }

    #[tokio::test]
    async fn dropped_receipt_keeps_no_waker() {
        let wakes = Arc::<CountWakes>::default();
        let (pending, mut receipt) = admit();
        assert!(!poll(&mut receipt, &wakes));
        drop(receipt);
        // The timer's driver drops its waker, too.
        assert_eq!(Arc::strong_count(&wakes), 1);
        pending.confirm(Confirmation::default());
        assert_eq!(wakes.0.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn confirms_of_other_threads_reach_all_receipts() {
        let (confirms, receiver) = std::sync::mpsc::channel::<PendingConfirm>();
        let broker = std::thread::spawn(move || {
            for (number, pending) in receiver.into_iter().enumerate() {
                match number % 3 {
                    0 => drop(pending),
                    _ => pending.confirm(Confirmation::default()),
                }
            }
        });
        for number in 0..20_000_usize {
            let (pending, receipt) = admit();
            confirms.send(pending).unwrap();
            let outcome = tokio::time::timeout(Duration::from_secs(60), receipt).await;
            assert_eq!(outcome.expect("a wake-up was lost").is_err(), number % 3 == 0);
        }
        drop(confirms);
        broker.join().unwrap();
    }
}
