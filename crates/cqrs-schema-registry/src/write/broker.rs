//! [`FramedBroker`]: a message broker that frames what it publishes.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Receipt, ShutdownReport};
use cqrs_core::consume::{Source, SubscribeError, SubscribeRequest};
use cqrs_core::{Message, MessageBroker, PublishError, Subscribe};

use super::Framing;

/// A broker that puts the frame on every message before the broker inside publishes it. All promises
/// are the inner broker's; a subscription is its own too, and sees the messages as they came.
///
/// ```
/// use cqrs_core::{MemoryBroker, Message, MessageBrokerExt};
/// use cqrs_schema_registry::{Frame, FramedBroker, Framing};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let framing = Framing::new().event("UserCreated", Frame::new(7));
/// let broker = FramedBroker::new(MemoryBroker::new(), framing);
/// broker.publish(Message::new("user_events", "{}").with_name("UserCreated")).await?;
/// assert_eq!(broker.inner().messages("user_events")[0].body, &b"\0\0\0\0\x07{}"[..]);
/// # Ok(())
/// # }
/// ```
///
/// A publish error gives the message back with its frame. Published again through this broker it does
/// not get a second one.
#[derive(Debug, Clone)]
pub struct FramedBroker<B> {
    inner: B,
    framing: Arc<Framing>,
}

impl<B> FramedBroker<B> {
    /// Frames what `inner` publishes.
    pub fn new(inner: B, framing: impl Into<Arc<Framing>>) -> Self {
        Self { inner, framing: framing.into() }
    }

    /// The broker inside.
    pub fn inner(&self) -> &B {
        &self.inner
    }
}

impl<B: MessageBroker> MessageBroker for FramedBroker<B> {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        match self.framing.apply(message) {
            Ok(framed) => self.inner.enqueue(framed),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        self.inner.try_enqueue(self.framing.apply(message)?)
    }

    fn state(&self) -> BrokerState {
        self.inner.state()
    }

    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.inner.shutdown(deadline)
    }
}

impl<B: Subscribe> Subscribe for FramedBroker<B> {
    fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
        self.inner.check(requests)
    }

    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        self.inner.subscribe(request)
    }
}
