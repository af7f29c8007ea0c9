//! The window, the publish deadline and the closed state, used by the `enqueue` of every broker.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::{PublishError, PublishErrorKind};
use super::receipt::{ExpiryCause, PendingConfirm, Receipt};
use super::timers::Timers;
use super::window::{Slot, Window};
use crate::consume::support::far_deadline;
use crate::message::Message;

/// The front half of every broker's `enqueue`: the window, the publish deadline, and the closed state.
///
/// Clones share the window.
#[derive(Debug, Clone)]
pub struct Intake {
    window: Window,
    timeout: Duration,
    state: Arc<IntakeState>,
}

/// The parts of an intake that its messages need until their outcome.
#[derive(Debug, Default)]
pub(super) struct IntakeState {
    pub(super) cause: Option<ExpiryCause>,
    pub(super) timers: Timers,
}

impl Intake {
    /// The publish deadline by default (README, Guarantees).
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

    /// An intake with `window`; each publish ends within `timeout` of the start of its admission.
    pub fn new(window: Window, timeout: Duration) -> Self {
        Self { window, timeout, state: Arc::default() }
    }

    /// Sets the function that finds the cause of an expired deadline, for brokers whose clients report
    /// errors (a wrong password, say) apart from messages. The cause becomes the error's source, wherever
    /// the message waited. Called once per expired message; must not block.
    #[must_use]
    pub fn with_cause(
        mut self,
        cause: impl Fn() -> Option<Box<dyn Error + Send + Sync>> + Send + Sync + 'static,
    ) -> Self {
        let cause = Some(ExpiryCause::new(cause));
        self.state = Arc::new(IntakeState { cause, timers: Timers::default() });
        self
    }

    /// Waits for a slot in the window and starts the message's deadline, which includes the wait.
    ///
    /// Cancel safe: a cancelled wait holds nothing and sends nothing.
    ///
    /// # Errors
    /// `NotSent` if the window stayed full until the deadline; `Closed`.
    pub async fn admit(&self, message: Message) -> Result<(PendingConfirm, Receipt), PublishError> {
        let deadline = far_deadline(self.timeout);
        let slot = match self.window.try_acquire(message.size()) {
            Some(slot) => Ok(slot),
            // Boxed, so that the future of a message that does not wait is small.
            None => Box::pin(self.acquire(message.size(), deadline)).await,
        };
        match slot {
            Ok(slot) => Ok(self.pending(message, deadline, slot)),
            Err(PublishErrorKind::Closed) => Err(closed(message)),
            Err(kind) => {
                let detail = format!(
                    "the window of messages in flight stayed full for {:?}; \
                     the broker confirms too slowly or not at all",
                    self.timeout
                );
                let error = PublishError::new(kind, message, detail);
                Err(ExpiryCause::attach(self.state.cause.as_ref(), error))
            }
        }
    }

    /// Waits for a slot until the deadline.
    async fn acquire(&self, bytes: usize, deadline: Instant) -> Result<Slot, PublishErrorKind> {
        match tokio::time::timeout_at(deadline, self.window.acquire(bytes)).await {
            Ok(slot) => slot.ok_or(PublishErrorKind::Closed),
            Err(_elapsed) => Err(PublishErrorKind::NotSent),
        }
    }

    /// Takes a slot in the window now and starts the message's deadline.
    ///
    /// # Errors
    /// `Full`; `Closed`.
    pub fn try_admit(&self, message: Message) -> Result<(PendingConfirm, Receipt), PublishError> {
        match self.window.try_acquire(message.size()) {
            Some(slot) => Ok(self.pending(message, far_deadline(self.timeout), slot)),
            None if self.window.is_closed() => Err(closed(message)),
            None => Err(PublishError::new(PublishErrorKind::Full, message, "try again later")),
        }
    }

    #[cfg(test)]
    pub(super) fn timers(&self) -> &Timers {
        &self.state.timers
    }

    fn pending(
        &self,
        message: Message,
        deadline: Instant,
        slot: Slot,
    ) -> (PendingConfirm, Receipt) {
        PendingConfirm::new(message, deadline, slot, Arc::clone(&self.state))
    }

    /// Refuses all further messages and ends the waits of those without a slot.
    ///
    /// A message that was admitted just before may reach the broker's queue after this returns: a drain
    /// must check [`in_flight`](Self::in_flight), not the queue.
    pub fn close(&self) {
        self.window.close();
    }

    /// `true` once [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.window.is_closed()
    }

    /// The number of admitted messages without an outcome.
    pub fn in_flight(&self) -> usize {
        self.window.in_flight()
    }

    /// The bytes of admitted messages without an outcome.
    pub fn bytes_in_flight(&self) -> usize {
        self.window.bytes_in_flight()
    }
}

impl Default for Intake {
    fn default() -> Self {
        Self::new(Window::default(), Self::DEFAULT_TIMEOUT)
    }
}

fn closed(message: Message) -> PublishError {
    PublishError::new(PublishErrorKind::Closed, message, "shutdown was called on it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Confirmation;

    fn intake(messages: usize) -> Intake {
        Intake::new(Window::new(messages, 1 << 20), Duration::from_secs(5))
    }

    fn message() -> Message {
        Message::new("t", "body")
    }

    #[tokio::test(start_paused = true)]
    async fn one_deadline_spans_the_wait_and_the_confirm() {
        let intake = intake(1);
        let (first, _receipt) = intake.admit(message()).await.unwrap();
        let started = Instant::now();
        let waiting = tokio::spawn({
            let intake = intake.clone();
            async move { intake.admit(message()).await }
        });
        tokio::time::sleep(Duration::from_secs(3)).await;
        first.confirm(Confirmation::default());
        let (pending, receipt) = waiting.await.unwrap().unwrap();
        assert!(pending.start_sending());
        let error = receipt.await.unwrap_err();
        assert_eq!(error.kind(), PublishErrorKind::Unknown);
        assert_eq!(started.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_that_stays_full_is_not_sent() {
        let intake = intake(1);
        let _held = intake.admit(message()).await.unwrap();
        let refused = message();
        let error = intake.admit(refused.clone()).await.unwrap_err();
        assert_eq!(error.kind(), PublishErrorKind::NotSent);
        assert_eq!(error.into_message(), refused);
        assert_eq!(intake.try_admit(refused).unwrap_err().kind(), PublishErrorKind::Full);
    }

    #[tokio::test(start_paused = true)]
    async fn expired_deadline_names_its_cause() {
        let intake = intake(1).with_cause(|| Some("wrong password".into()));
        let (pending, receipt) = intake.try_admit(message()).unwrap();
        assert!(pending.start_sending());
        let in_window = intake.admit(message()).await.unwrap_err();
        let in_broker = receipt.await.unwrap_err();
        assert_eq!(in_broker.kind(), PublishErrorKind::Unknown);
        for error in [in_window, in_broker] {
            assert_eq!(error.source().unwrap().to_string(), "wrong password");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn not_sent_is_never_written_afterwards() {
        let (pending, receipt) = intake(1).try_admit(message()).unwrap();
        assert_eq!(receipt.await.unwrap_err().kind(), PublishErrorKind::NotSent);
        assert!(!pending.start_sending());
    }

    #[tokio::test]
    async fn dropped_receipt_keeps_slot_until_confirm() {
        let intake = intake(1);
        let (pending, receipt) = intake.try_admit(message()).unwrap();
        drop(receipt);
        assert_eq!(intake.in_flight(), 1);
        pending.confirm(Confirmation::default());
        assert_eq!(intake.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_broker_that_forgets_a_message_fails_its_receipt() {
        let intake = intake(2);
        let (queued, receipt) = intake.try_admit(message()).unwrap();
        drop(queued);
        assert_eq!(receipt.await.unwrap_err().kind(), PublishErrorKind::NotSent);
        let (sent, receipt) = intake.try_admit(message()).unwrap();
        assert!(sent.start_sending() && sent.start_sending(), "a resend is allowed");
        drop(sent);
        assert_eq!(receipt.await.unwrap_err().kind(), PublishErrorKind::Unknown);
    }

    #[tokio::test]
    async fn closing_refuses_the_new_and_the_waiting() {
        let intake = intake(1);
        let held = intake.try_admit(message()).unwrap();
        let waiting = tokio::spawn({
            let intake = intake.clone();
            async move { intake.admit(message()).await.unwrap_err().kind() }
        });
        tokio::task::yield_now().await;
        intake.close();
        assert_eq!(waiting.await.unwrap(), PublishErrorKind::Closed);
        drop(held);
        assert_eq!(intake.try_admit(message()).unwrap_err().kind(), PublishErrorKind::Closed);
        assert_eq!(intake.admit(message()).await.unwrap_err().kind(), PublishErrorKind::Closed);
    }
}
