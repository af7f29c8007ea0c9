use std::sync::Arc;
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Receipt, ShutdownReport};
use cqrs_core::consume::{Options, Source, SubscribeError, SubscribeRequest};
use cqrs_core::{Message, MessageBroker, PublishError, Subscribe};

/// A broker whose subscriptions all have the same options of their own: for a harness whose broker needs
/// some that the suite does not know.
#[derive(Debug)]
pub struct WithOptions {
    broker: Arc<dyn Subscribe>,
    options: Options,
}

impl WithOptions {
    /// Gives `options` to all subscriptions of `broker`.
    pub fn new(broker: Arc<dyn Subscribe>, options: Options) -> Self {
        Self { broker, options }
    }

    fn with_options(&self, mut request: SubscribeRequest) -> SubscribeRequest {
        request.options = self.options.clone();
        request
    }
}

impl MessageBroker for WithOptions {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        self.broker.enqueue(message)
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        self.broker.try_enqueue(message)
    }

    fn state(&self) -> BrokerState {
        self.broker.state()
    }

    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.broker.shutdown(deadline)
    }
}

impl Subscribe for WithOptions {
    fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
        let requests: Vec<_> =
            requests.iter().map(|request| self.with_options(request.clone())).collect();
        self.broker.check(&requests)
    }

    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        self.broker.subscribe(self.with_options(request))
    }
}
