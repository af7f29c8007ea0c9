use super::broker::MemoryBroker;
use super::fault_plan::FaultPlan;

/// Lets things go wrong with a [`MemoryBroker`], as they do with a real one: to test how handlers and
/// publishers take it. Made by [`MemoryBroker::faults`].
///
/// What is told to happen to the next `n` happens to the next `n` of all topics, dead letters included;
/// `usize::MAX` means "until [`clear`](Self::clear)". Telling it again replaces what is left.
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
    /// Lets things go wrong, for tests of what publishes to this broker and consumes from it.
    pub fn faults(&self) -> MemoryFaults {
        MemoryFaults(self.clone())
    }
}

impl MemoryFaults {
    /// The next `n` messages are stored, but their confirms are lost with the connection: the publishes
    /// end as `Unknown` at once.
    pub fn lose_confirms(&self, n: usize) {
        self.plan().lost_confirms.set(n);
    }

    /// The next `n` messages are stored, but their confirms never come: the publishes end as `Unknown`
    /// at their deadlines, and keep their places in the window until then.
    pub fn withhold_confirms(&self, n: usize) {
        self.plan().withheld_confirms.set(n);
    }

    /// The next `n` messages are refused and not stored.
    pub fn refuse_messages(&self, n: usize) {
        self.plan().refused_messages.set(n);
    }

    /// The next `n` messages stand in their topics twice, one behind the other, with the same id: as
    /// after a publisher that did not see the confirm and sent them again. A topic that has room for one
    /// more only takes no second one.
    pub fn duplicate_messages(&self, n: usize) {
        self.plan().duplicates.set(n);
    }

    /// The next `n` acks fail, by subscriptions: their messages come again, though they were handled.
    pub fn fail_acks(&self, n: usize) {
        self.plan().failed_acks.set(n);
    }

    /// The next `n` dead letters are not confirmed, and not stored.
    pub fn fail_dead_letters(&self, n: usize) {
        self.plan().failed_dead_letters.set(n);
    }

    /// The next `n` times that a failed message is to come again later, the broker does not confirm it.
    pub fn fail_retries(&self, n: usize) {
        self.plan().failed_retries.set(n);
    }

    /// Takes away what `group` has in its hands, as a Kafka rebalance does and as a lost connection does
    /// to RabbitMQ: those messages come again at once, in their order, to whichever member is first.
    ///
    /// Of what was taken away no handler starts any more; those that run go on, and their acks fail.
    /// Returns how many messages that were.
    pub fn revoke(&self, topic: &str, group: &str) -> usize {
        self.0.with_topic(topic, |topic| topic.revoke(group)).unwrap_or_default()
    }

    /// Hands the last `n` messages that `group` settled out again, as after a crash before Kafka's
    /// commit. What was not settled is behind them, key by key; their attempts begin anew.
    ///
    /// Returns how many messages that were: fewer than `n` when the group has settled fewer, or the topic
    /// no longer keeps them.
    pub fn redeliver(&self, topic: &str, group: &str, n: usize) -> usize {
        self.0.with_topic(topic, |topic| topic.redeliver(group, n)).unwrap_or_default()
    }

    /// Lets nothing go wrong any more. Publishes whose confirms are withheld stay as they are.
    pub fn clear(&self) {
        self.plan().clear();
    }

    fn plan(&self) -> &FaultPlan {
        self.0.fault_plan()
    }
}
