//! [`FlawedSettle`]: the settlement of a delivery with one flaw.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, MessageBrokerExt};
use cqrs_core::consume::{
    DeadLetter, Delayed, Incoming, RetryState, Settle, SettleError, SubscribeRequest,
};
use cqrs_core::message::Headers;
use cqrs_core::{MemoryBroker, Message};

use super::Flaw;
use super::flawed::SourceState;

/// A delivery in flight, shared with its source.
pub(super) struct InFlight {
    /// `None` once it is settled, or while it is being settled.
    pub(super) inner: Mutex<Option<Box<dyn Settle>>>,
    pub(super) message: Incoming,
    pub(super) request: SubscribeRequest,
    pub(super) sound: MemoryBroker,
    /// Group, topic and offset.
    pub(super) place: (String, String, i64),
    pub(super) shared: Arc<SourceState>,
    pub(super) flaw: Flaw,
}

impl InFlight {
    fn take(&self) -> Option<Box<dyn Settle>> {
        self.inner.lock().unwrap().take()
    }

    pub(super) fn is_unsettled(&self) -> bool {
        self.inner.lock().unwrap().is_some()
    }

    pub(super) fn ack_now(&self) {
        if let Some(mut inner) = self.take() {
            let _acked = inner.poll_ack(&mut Context::from_waker(Waker::noop()));
        }
    }

    fn count_start(&self) {
        *self.shared.started.lock().unwrap().entry(self.place.clone()).or_default() += 1;
    }

    /// Removes a finished start.
    fn forget_start(&self) {
        self.shared.started.lock().unwrap().remove(&self.place);
    }

    /// The dead letter as this broker writes it.
    fn dead(&self, letter: &DeadLetter) -> Option<Message> {
        let came = &self.message;
        let mut letter = letter.clone();
        let mut message = Message::new(
            self.request.dead_letter_topic(&came.topic)?,
            came.body.clone().unwrap_or_default(),
        );
        message.key.clone_from(&came.key);
        message.headers = came.headers.clone();
        message.content_type.clone_from(&came.content_type);
        message.id = came.id.as_deref()?.parse().ok()?;
        message.name = came.name.clone().unwrap_or_default();
        message.mandatory = false;
        match self.flaw {
            Flaw::DeadLetterBodyChanged => {
                message.body = String::from_utf8_lossy(&message.body).trim().to_owned().into();
            }
            Flaw::DeadLetterKeyLost => message.key = None,
            Flaw::DeadLetterHeadersLost => message.headers = Headers::new(),
            Flaw::DeadLetterAttemptsLost => letter.attempts = 0,
            _ => {}
        }
        if self.flaw != Flaw::DeadLetterHasNoReason {
            for (name, value) in letter.to_headers() {
                message.headers.insert(name, value).unwrap();
            }
        }
        Some(message)
    }
}

pub(super) struct FlawedSettle {
    out: Arc<InFlight>,
    running: bool,
}

impl FlawedSettle {
    pub(super) fn new(out: Arc<InFlight>) -> Self {
        Self { out, running: false }
    }

    fn flaw(&self) -> Flaw {
        self.out.flaw
    }

    fn ended(&mut self) {
        if std::mem::take(&mut self.running) {
            self.out.forget_start();
        }
    }
}

fn gone() -> SettleError {
    SettleError::new("it was settled")
}

impl Settle for FlawedSettle {
    fn begin(&mut self) -> bool {
        let begun = self.out.inner.lock().unwrap().as_mut().is_some_and(|inner| inner.begin());
        if begun && !self.running {
            self.running = true;
            self.out.count_start();
        }
        begun || self.flaw() == Flaw::BeginLies
    }

    fn postpone(&mut self) {
        self.ended();
        if let Some(inner) = self.out.inner.lock().unwrap().as_mut() {
            inner.postpone();
        }
    }

    fn note_attempt(&mut self, state: &RetryState) {
        if self.flaw() != Flaw::ForgetsFailedAttempts
            && let Some(inner) = self.out.inner.lock().unwrap().as_mut()
        {
            inner.note_attempt(state);
        }
    }

    fn is_revoked(&self) -> bool {
        let revoked =
            self.out.inner.lock().unwrap().as_ref().is_none_or(|inner| inner.is_revoked());
        revoked && self.flaw() != Flaw::BeginLies
    }

    fn poll_ack(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SettleError>> {
        let Some(mut inner) = self.out.take() else { return Poll::Ready(Ok(())) };
        let acked = inner.poll_ack(cx);
        match acked {
            Poll::Ready(Ok(())) => self.ended(),
            Poll::Ready(Err(_)) | Poll::Pending => *self.out.inner.lock().unwrap() = Some(inner),
        }
        acked
    }

    fn retry_later(
        &mut self,
        delay: Duration,
        state: &RetryState,
    ) -> BoxFuture<'_, Result<Delayed, SettleError>> {
        let state = *state;
        Box::pin(async move {
            self.ended();
            let Some(mut inner) = self.out.take() else { return Err(gone()) };
            let nothing = RetryState::default();
            let delayed = match self.flaw() {
                Flaw::RetryNeverComes => Ok(Delayed::Scheduled),
                Flaw::RetryHolds => Ok(Delayed::Hold),
                Flaw::RetryTooEarly => inner.retry_later(Duration::ZERO, &state).await,
                Flaw::RetryForgetsAttempts | Flaw::HoldForgetsAttempts => {
                    inner.retry_later(delay, &nothing).await
                }
                _ => inner.retry_later(delay, &state).await,
            };
            *self.out.inner.lock().unwrap() = Some(inner);
            delayed
        })
    }

    fn dead_letter(&mut self, letter: &DeadLetter) -> BoxFuture<'_, Result<(), SettleError>> {
        let message = self.out.dead(letter);
        Box::pin(async move {
            match message {
                Some(message) if self.flaw() != Flaw::DeadLetterNotWritten => {
                    let published = self.out.sound.publish(message).await;
                    published.map(drop).map_err(|error| SettleError::new(error.to_string()))
                }
                _ => Ok(()),
            }
        })
    }
}

impl Drop for FlawedSettle {
    fn drop(&mut self) {
        let is_alive = !self.is_revoked();
        if [Flaw::AcksOnReceive, Flaw::LosesDropped].contains(&self.flaw()) && is_alive {
            self.out.ack_now();
        }
        // After a crash the start stays unfinished.
        if is_alive {
            self.ended();
        }
        drop(self.out.take());
    }
}
