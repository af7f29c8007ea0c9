//! The memory broker: its topics, and the publishing contract.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::sync::{Notify, OnceCell};
use tokio::time::Instant;

use super::fault_plan::FaultPlan;
use super::state::TopicLimits;
use super::subscriber::MemorySubscriber;
use super::topic::Topic;
use crate::broker::{
    BoxFuture, BrokerState, Intake, MessageBroker, PublishError, PublishErrorKind, Receipt,
    ShutdownReport,
};
use crate::consume::StartAt;
use crate::message::Message;

/// A broker inside the process. Clones share the topics. See the [module](super) for its rules.
///
/// Dropping the last clone ends its subscribers as a shutdown does.
#[derive(Clone)]
pub struct MemoryBroker(Arc<BrokerInner>);

struct BrokerInner {
    intake: Intake,
    limits: TopicLimits,
    faults: Arc<FaultPlan>,
    topics: RwLock<Topics>,
    progress: Arc<Notify>,
    shutdown: OnceCell<ShutdownReport>,
}

#[derive(Default)]
struct Topics {
    by_name: HashMap<Arc<str>, Arc<Topic>, RandomState>,
    closed: bool,
}

impl MemoryBroker {
    pub(super) fn from_parts(intake: Intake, limits: TopicLimits) -> Self {
        Self(Arc::new(BrokerInner {
            intake,
            limits,
            faults: Arc::default(),
            topics: RwLock::default(),
            progress: Arc::default(),
            shutdown: OnceCell::new(),
        }))
    }

    /// Joins `group`. A new group starts at the oldest kept message.
    ///
    /// Every group gets every message of the topic; the subscribers of one group share them. Works
    /// after a shutdown too, to read what is left.
    pub fn subscriber(&self, topic: &str, group: &str) -> MemorySubscriber {
        let topic = self.0.topic(topic);
        let (group, signal, _made) = topic.group(group, StartAt::Earliest);
        MemorySubscriber::new(topic, group, signal)
    }

    /// Makes `group` without joining it. `false` if it exists: it keeps its position.
    ///
    /// From then on the topic keeps the messages that this group did not settle, even without a subscriber.
    pub fn create_group(&self, topic: &str, group: &str, start: StartAt) -> bool {
        self.0.topic(topic).group(group, start).2
    }

    /// Deletes `group`: the topic no longer keeps messages for it. Its subscribers end, and their unsettled
    /// messages are not redelivered. `false` if there is no such group.
    pub fn delete_group(&self, topic: &str, group: &str) -> bool {
        self.0.known_topic(topic).is_some_and(|topic| topic.delete_group(group))
    }

    /// The messages that `topic` keeps, the oldest first, settled or not. For assertions in tests.
    pub fn messages(&self, topic: &str) -> Vec<Message> {
        self.0.known_topic(topic).map(|topic| topic.messages()).unwrap_or_default()
    }

    /// The number of messages of `topic` that the group has not settled; 0 if there is no such group. For
    /// assertions in tests.
    pub fn unsettled(&self, topic: &str, group: &str) -> usize {
        self.with_topic(topic, |topic| topic.unsettled(group)).unwrap_or_default()
    }

    pub(super) fn fault_plan(&self) -> &FaultPlan {
        &self.0.faults
    }

    /// Calls `act` with the topic, if it exists.
    pub(super) fn with_topic<R>(&self, topic: &str, act: impl FnOnce(&Topic) -> R) -> Option<R> {
        self.0.known_topic(topic).map(|topic| act(&topic))
    }

    /// The number of messages that wait for room in their topics.
    pub fn waiting(&self) -> usize {
        self.0.intake.in_flight()
    }

    fn check(&self, message: Message) -> Result<Message, PublishError> {
        let max = self.0.limits.max_message_size;
        if message.topic.is_empty() || message.topic.len() > 255 {
            let detail = "a topic's name has 1 to 255 bytes";
            return Err(PublishError::new(PublishErrorKind::Invalid, message, detail));
        }
        let size = message.content_size();
        if size > max {
            let detail = format!("{size} bytes with key and headers, max_message_size is {max}");
            return Err(PublishError::new(PublishErrorKind::TooLarge, message, detail));
        }
        Ok(message)
    }
}

crate::debug_fields!(MemoryBroker {}, |it|
    topics: it.0.topics().len(), waiting: it.waiting(), state: it.state());

impl BrokerInner {
    fn known_topic(&self, name: &str) -> Option<Arc<Topic>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.by_name.get(name).cloned()
    }

    fn topic(&self, name: &str) -> Arc<Topic> {
        if let Some(topic) = self.known_topic(name) {
            return topic;
        }
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        let Topics { by_name, closed } = &mut *topics;
        let topic = by_name.entry(name.into()).or_insert_with(|| {
            let faults = Arc::clone(&self.faults);
            Arc::new(Topic::new(self.limits, faults, Arc::clone(&self.progress), *closed))
        });
        Arc::clone(topic)
    }

    fn topics(&self) -> Vec<Arc<Topic>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.by_name.values().cloned().collect()
    }

    /// Closes all topics: a message that was admitted but not stored is refused, too.
    fn close(&self) {
        self.intake.close();
        self.topics.write().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.topics().iter().for_each(|topic| topic.close());
    }

    async fn drain(&self, deadline: Duration) -> ShutdownReport {
        let wait = async {
            loop {
                let progress = self.progress.notified();
                if !self.topics().iter().any(|topic| topic.has_waiting()) {
                    break;
                }
                progress.await;
            }
        };
        // A deadline past the end of the clock is never reached.
        let end = Instant::now().checked_add(deadline);
        match end {
            Some(end) => drop(tokio::time::timeout_at(end, wait).await),
            None => wait.await,
        }
        let mut undelivered = 0;
        for pending in self.topics().iter().flat_map(|topic| topic.take_waiting()) {
            undelivered += 1;
            let detail = "shut down before its topic had room";
            pending.fail(PublishErrorKind::Closed, detail, None);
        }
        ShutdownReport::new(undelivered)
    }
}

impl Drop for BrokerInner {
    fn drop(&mut self) {
        self.close();
    }
}

impl MessageBroker for MemoryBroker {
    /// See the contract. A message for a full topic is taken into the window and waits there.
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(async move {
            // A task that publishes without waiting must yield, too.
            tokio::task::coop::consume_budget().await;
            let (pending, receipt) = self.0.intake.admit(self.check(message)?).await?;
            let topic = self.0.topic(&receipt.message().topic);
            topic.publish(pending, true).map(|()| receipt)
        })
    }

    /// See the contract. The error is `Full` if the topic has no room, even if the window has.
    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        let (pending, receipt) = self.0.intake.try_admit(self.check(message)?)?;
        let topic = self.0.topic(&receipt.message().topic);
        topic.publish(pending, false).map(|()| receipt)
    }

    fn state(&self) -> BrokerState {
        match self.0.intake.is_closed() {
            true => BrokerState::Closed,
            false => BrokerState::Ready,
        }
    }

    /// See the contract. Subscribers receive the remaining messages, and then end.
    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.0.close();
        Box::pin(async move { *self.0.shutdown.get_or_init(|| self.0.drain(deadline)).await })
    }
}
