//! The subscription options of the memory broker.

/// Options of a subscription that only the memory broker knows; give them to
/// [`Subscription::option`](crate::Subscription::option).
///
/// ```
/// use cqrs_core::Subscription;
/// use cqrs_core::memory::{MemoryRetry, MemorySubscription};
///
/// let like_rabbitmq = MemorySubscription::default().with_retry(MemoryRetry::Scheduled);
/// let mails = Subscription::to("user_events").group("mailer").option(like_rabbitmq);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemorySubscription {
    /// The place where a message waits for a delayed retry; [`MemoryRetry::Hold`] by default.
    pub retry: MemoryRetry,
}

impl MemorySubscription {
    /// Sets the place where a message waits for a delayed retry.
    #[must_use]
    pub fn with_retry(mut self, retry: MemoryRetry) -> Self {
        self.retry = retry;
        self
    }
}

/// The place where a message waits for a delayed retry on the memory broker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryRetry {
    /// In its position, as in Kafka's ordered mode: the later messages of its key wait.
    #[default]
    Hold,
    /// Aside, as in RabbitMQ's retry queues and Kafka's retry topics: its key goes on. A copy of it, with
    /// its attempts, is delivered after the delay, behind the messages that are there then.
    Scheduled,
}
