//! [`Flawed`]: the in-memory broker with one flaw in publishing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cqrs_core::broker::{
    BoxFuture, BrokerState, Confirmation, Intake, PendingConfirm, Receipt, ShutdownReport, Window,
};
use cqrs_core::consume::{Source, SubscribeError, SubscribeRequest};
use cqrs_core::{MemoryBroker, Message, MessageBroker, PublishError, PublishErrorKind, Subscribe};
use uuid::Uuid;

use super::Flaw;

#[derive(Debug)]
pub(super) struct Flawed {
    sound: MemoryBroker,
    flaw: Flaw,
    count: AtomicUsize,
    /// Makes receipts that say what the flaw wants.
    intake: Intake,
    held_back: Mutex<Option<(Message, PendingConfirm)>>,
    down: AtomicBool,
}

impl Flawed {
    pub(super) fn new(sound: MemoryBroker, flaw: Flaw) -> Self {
        let intake = Intake::new(Window::new(100_000, 1 << 30), Duration::from_secs(60));
        let (count, down) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { sound, flaw, count, intake, held_back: Mutex::new(None), down }
    }

    fn lie(&self, message: Message) -> Receipt {
        let (pending, receipt) = self.intake.try_admit(message).unwrap();
        pending.confirm(Confirmation::at(0, 0));
        receipt
    }

    /// A receipt of another message that ends as the true one does.
    fn relay(&self, pending: PendingConfirm, truth: Result<Receipt, PublishError>) {
        let wrong_place = self.flaw == Flaw::WrongPlace;
        tokio::spawn(async move {
            let verdict = match truth {
                Ok(receipt) => receipt.await,
                Err(error) => Err(error),
            };
            match verdict {
                Ok(_) if wrong_place => pending.confirm(Confirmation::at(0, 0)),
                Ok(place) => pending.confirm(place),
                Err(error) => pending.fail(error.kind(), error.detail().to_owned(), None),
            }
        });
    }

    /// Flaws that answer in the sound broker's place.
    fn instead(&self, message: &Message) -> Option<Result<Receipt, PublishError>> {
        let is_large = message.body.len() > 2 * 1024 * 1024;
        let nth = self.count.fetch_add(1, Ordering::Relaxed);
        let answers = match self.flaw {
            Flaw::LostConfirm => nth % 997 == 996,
            Flaw::SkipsEmptyBodies => message.body.is_empty(),
            Flaw::AcceptsTooLarge => is_large,
            Flaw::AcceptsInvalidTopic => message.topic.len() > 255,
            Flaw::DoesNotFlush => nth >= 96 && message.key.as_deref() == Some(b"k"),
            Flaw::AcceptsAfterShutdown => self.down.load(Ordering::Relaxed),
            Flaw::RefusesLarge if message.body.len() == 20_000 => {
                let kind = PublishErrorKind::TooLarge;
                return Some(Err(PublishError::new(kind, message.clone(), "")));
            }
            Flaw::WrongOrder if nth % 100 == 90 && nth < 800 => {
                let mut held_back = self.held_back.lock().unwrap();
                // One at a time: a second one would push the first out, and lose it.
                if held_back.is_none() {
                    let (pending, receipt) = self.intake.try_admit(message.clone()).unwrap();
                    *held_back = Some((message.clone(), pending));
                    return Some(Ok(receipt));
                }
                false
            }
            _ => false,
        };
        answers.then(|| Ok(self.lie(message.clone())))
    }

    fn change(&self, message: &mut Message) {
        match self.flaw {
            Flaw::ForgetsHeaders => message.headers = Default::default(),
            Flaw::ForgetsContentType => message.content_type = None,
            Flaw::AddsHeader => drop(message.headers.insert("sent-by", "us")),
            Flaw::TakesBodiesForText => {
                message.body = String::from_utf8_lossy(&message.body).into_owned().into();
            }
            Flaw::NewIds => message.id = Uuid::now_v7(),
            Flaw::SwallowsUnroutable => message.mandatory = false,
            Flaw::IgnoresOptOut => message.mandatory = true,
            _ => {}
        }
    }

    fn after(
        &self,
        original: Message,
        sent: Result<Receipt, PublishError>,
    ) -> Result<Receipt, PublishError> {
        match sent {
            Err(error) if self.flaw == Flaw::LosesMessage => {
                Err(PublishError::new(error.kind(), Message::new("", ""), ""))
            }
            Err(error) => Err(PublishError::new(error.kind(), original, "")),
            // Only the message on the wire was changed.
            Ok(truth) if *truth.message() != original || self.flaw == Flaw::WrongPlace => {
                let (pending, receipt) = self.intake.try_admit(original).unwrap();
                self.relay(pending, Ok(truth));
                Ok(receipt)
            }
            Ok(receipt) => Ok(receipt),
        }
    }
}

impl MessageBroker for Flawed {
    fn enqueue(&self, mut message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        if self.flaw == Flaw::SendsUnpolled
            && let Ok(receipt) = self.sound.try_enqueue(message.clone())
        {
            return Box::pin(async { Ok(receipt) });
        }
        Box::pin(async move {
            if let Some(answer) = self.instead(&message) {
                return answer;
            }
            let original = message.clone();
            self.change(&mut message);
            if self.flaw == Flaw::DoubleDelivery
                && self.count.load(Ordering::Relaxed).is_multiple_of(997)
            {
                drop(self.sound.enqueue(message.clone()).await);
            }
            let key = message.key.clone();
            let sent = self.sound.enqueue(message).await;
            let held_back = self.held_back.lock().unwrap().take_if(|(held, _)| held.key == key);
            if let Some((message, pending)) = held_back {
                self.relay(pending, self.sound.enqueue(message).await);
            }
            self.after(original, sent)
        })
    }

    fn try_enqueue(&self, mut message: Message) -> Result<Receipt, PublishError> {
        if let Some(answer) = self.instead(&message) {
            return answer;
        }
        let original = message.clone();
        self.change(&mut message);
        self.after(original, self.sound.try_enqueue(message))
    }

    fn state(&self) -> BrokerState {
        match (self.flaw, self.sound.state()) {
            (Flaw::NeverReady, BrokerState::Ready) => BrokerState::Connecting { last_error: None },
            (_, state) => state,
        }
    }

    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        let end = self.sound.shutdown(deadline);
        self.down.store(true, Ordering::Relaxed);
        Box::pin(async move {
            let report = end.await;
            match self.flaw {
                Flaw::ReportsNothing => ShutdownReport::new(0),
                _ => report,
            }
        })
    }
}

impl Subscribe for Flawed {
    fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
        self.sound.check(requests)
    }

    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        Subscribe::subscribe(&self.sound, request)
    }
}
