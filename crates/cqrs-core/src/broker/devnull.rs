//! A broker that confirms and drops every message, for tests and for services that publish nothing yet.

use std::time::Duration;

use super::BoxFuture;
use super::contract::{BrokerState, MessageBroker, ShutdownReport};
use super::error::PublishError;
use super::intake::Intake;
use super::receipt::{Confirmation, Receipt};
use crate::message::Message;

/// Confirms every message and stores none: for tests and for services that publish nothing yet.
#[derive(Debug, Clone, Default)]
pub struct DevnullMessageBroker {
    intake: Intake,
}

impl DevnullMessageBroker {
    /// A broker that drops every message.
    pub fn new() -> Self {
        Self::default()
    }
}

impl MessageBroker for DevnullMessageBroker {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(async move {
            // `admit` seldom waits, and a task must yield from time to time.
            tokio::task::coop::consume_budget().await;
            let (pending, receipt) = self.intake.admit(message).await?;
            pending.confirm(Confirmation::default());
            Ok(receipt)
        })
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        let (pending, receipt) = self.intake.try_admit(message)?;
        pending.confirm(Confirmation::default());
        Ok(receipt)
    }

    fn state(&self) -> BrokerState {
        match self.intake.is_closed() {
            true => BrokerState::Closed,
            false => BrokerState::Ready,
        }
    }

    fn shutdown(&self, _deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.intake.close();
        Box::pin(async { ShutdownReport::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MessageBrokerExt, PublishErrorKind};

    #[tokio::test]
    async fn confirms_until_it_is_shut_down() {
        let broker = DevnullMessageBroker::new();
        for _ in 0..2_000 {
            broker.publish(Message::new("t", "b")).await.unwrap();
        }
        assert_eq!(broker.shutdown(Duration::ZERO).await.undelivered, 0);
        let error = broker.publish(Message::new("t", "b")).await.unwrap_err();
        assert_eq!(error.kind(), PublishErrorKind::Closed);
        assert_eq!(broker.state(), BrokerState::Closed);
    }
}
