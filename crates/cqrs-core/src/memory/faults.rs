//! Injected faults of a memory broker, for tests of handlers and publishers.

use super::broker::MemoryBroker;
use super::fault_plan::{Fault, FaultPlan};

/// Injects faults into a [`MemoryBroker`], to test handlers and publishers. Made by
/// [`MemoryBroker::faults`].
///
/// A fault for the next `n` messages counts the messages of all topics, dead letters included; `usize::MAX`
/// means "until [`clear`](Self::clear)". A further call replaces the remaining number.
///
/// ```
/// use cqrs_core::{MemoryBroker, Message, MessageBrokerExt, PublishErrorKind};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let broker = MemoryBroker::new();
/// broker.faults().lose_confirms(1);
/// let error = broker.publish(Message::new("user_events", "{}")).await.unwrap_err();
/// assert_eq!(error.kind(), PublishErrorKind::Unknown);
/// assert_eq!(broker.messages("user_events").len(), 1, "it is there all the same");
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct MemoryFaults(pub(super) MemoryBroker);

impl MemoryBroker {
    /// Injects faults, for tests of publishers and consumers.
    pub fn faults(&self) -> MemoryFaults {
        MemoryFaults(self.clone())
    }
}

impl MemoryFaults {
    /// The next `n` messages are stored, but their confirms are lost with the connection: the publishes
    /// end as `Unknown` at once.
    pub fn lose_confirms(&self, n: usize) {
        self.plan().set(Fault::LostConfirm, n);
    }

    /// The next `n` messages are stored, but never confirmed: the publishes end as `Unknown` at their
    /// deadlines, and keep their slots in the window until then.
    pub fn withhold_confirms(&self, n: usize) {
        self.plan().set(Fault::WithheldConfirm, n);
    }

    /// The next `n` messages are refused and not stored.
    pub fn refuse_messages(&self, n: usize) {
        self.plan().set(Fault::RefusedMessage, n);
    }

    /// The next `n` messages are stored twice, in a row, with the same id: as after a publisher that missed
    /// the confirm and sent them again. A topic with room for one message stores only one.
    pub fn duplicate_messages(&self, n: usize) {
        self.plan().set(Fault::Duplicate, n);
    }

    /// The next `n` acks of subscriptions fail: the messages are redelivered, although they were handled.
    pub fn fail_acks(&self, n: usize) {
        self.plan().set(Fault::FailedAck, n);
    }

    /// The next `n` dead letters are not confirmed, and not stored.
    pub fn fail_dead_letters(&self, n: usize) {
        self.plan().set(Fault::FailedDeadLetter, n);
    }

    /// The next `n` delayed retries are not confirmed.
    pub fn fail_retries(&self, n: usize) {
        self.plan().set(Fault::FailedRetry, n);
    }

    /// Revokes the deliveries of `group` that are in flight, as a Kafka rebalance or a lost RabbitMQ
    /// connection does. The messages are redelivered at once, in order, to any member.
    ///
    /// No handler of a revoked delivery starts. Running handlers go on, and their acks fail. Returns the
    /// number of revoked messages.
    pub fn revoke(&self, topic: &str, group: &str) -> usize {
        self.0.with_topic(topic, |topic| topic.revoke(group)).unwrap_or_default()
    }

    /// Redelivers the last `n` messages that `group` settled, as after a crash before Kafka's commit.
    /// Unsettled messages of their keys come after them. Their attempts start anew.
    ///
    /// Returns the number of messages: fewer than `n` if the group has settled fewer, or if the topic no
    /// longer keeps them.
    pub fn redeliver(&self, topic: &str, group: &str, n: usize) -> usize {
        self.0.with_topic(topic, |topic| topic.redeliver(group, n)).unwrap_or_default()
    }

    /// Removes all faults. Withheld confirms stay withheld.
    pub fn clear(&self) {
        self.plan().clear();
    }

    fn plan(&self) -> &FaultPlan {
        self.0.fault_plan()
    }
}
