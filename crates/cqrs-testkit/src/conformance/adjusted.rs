//! [`Adjusted`]: a broker that changes the requests of its subscriptions; used by harnesses.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Receipt, ShutdownReport};
use cqrs_core::consume::{Source, SubscribeError, SubscribeRequest};
use cqrs_core::{Message, MessageBroker, PublishError, Subscribe};

/// A broker whose requests are changed before they reach it: for a harness that has to add options which
/// the suite does not know, or wants to see what is subscribed to.
#[derive(Clone)]
pub struct Adjusted {
    broker: Arc<dyn Subscribe>,
    adjust: Arc<dyn Fn(&mut SubscribeRequest) + Send + Sync>,
}

impl Adjusted {
    /// Calls `adjust` with each request for `broker`.
    pub fn new(
        broker: Arc<dyn Subscribe>,
        adjust: impl Fn(&mut SubscribeRequest) + Send + Sync + 'static,
    ) -> Self {
        Self { broker, adjust: Arc::new(adjust) }
    }

    fn adjusted(&self, mut request: SubscribeRequest) -> SubscribeRequest {
        (self.adjust)(&mut request);
        request
    }
}

cqrs_core::debug_fields!(Adjusted { broker });

impl MessageBroker for Adjusted {
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

impl Subscribe for Adjusted {
    fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
        let requests: Vec<_> =
            requests.iter().map(|request| self.adjusted(request.clone())).collect();
        self.broker.check(&requests)
    }

    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        self.broker.subscribe(self.adjusted(request))
    }
}
