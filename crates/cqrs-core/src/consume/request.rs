//! The request that opens a subscription, built by the service and read by broker crates.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::retry::Retry;
use super::status::StatusReporter;
use super::support::topic_group_name;
use crate::message::Name;

/// The number of crashes after which a message becomes a dead letter.
pub(crate) const DEFAULT_MAX_CRASHES: u32 = 3;

/// The request of the runtime to a broker: one subscription, without its handler.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SubscribeRequest {
    /// The name of the subscription in logs, errors and health reports.
    pub name: Arc<str>,
    /// The topics to consume.
    pub topics: TopicSet,
    /// Consumers of one group share the messages; every group gets all of them.
    pub group: Arc<str>,
    /// The start of a new group.
    pub start: StartAt,
    /// The number of messages its handlers may have at once: the concurrency, or the size of a batch.
    pub concurrency: usize,
    /// The number of deliveries that may be in flight at once. `None`: the broker's default (RabbitMQ:
    /// three times the concurrency, at least 16 and at most 300; Kafka: 10,000).
    pub max_unsettled: Option<usize>,
    /// The retry schedule; a broker with one queue per delay makes these queues.
    pub retry: Retry,
    /// The target of dead letters.
    pub dead_letter: DeadLetterTarget,
    /// The number of crashes after which a message becomes a dead letter. The source counts them
    /// (`RetryState::crashes`). 3 by default. 0: no crash is counted, and a source does nothing special
    /// after a crash.
    pub max_crashes: u32,
    /// Options that only one broker knows, each of its own type.
    pub options: BrokerOptions,
    /// Takes the status of the source.
    pub status: StatusReporter,
}

impl SubscribeRequest {
    /// A request with the defaults, to be changed field by field.
    pub fn new(topics: TopicSet, group: impl Into<Name>, status: StatusReporter) -> Self {
        let group = group.into().0;
        Self {
            name: format!("{group}@{topics}").into(),
            topics,
            group,
            start: StartAt::default(),
            concurrency: 1,
            max_unsettled: None,
            retry: Retry::default(),
            dead_letter: DeadLetterTarget::default(),
            max_crashes: DEFAULT_MAX_CRASHES,
            options: BrokerOptions::default(),
            status,
        }
    }

    /// The topic or queue for dead letters of `topic`; `None` if they are discarded.
    ///
    /// By default `{topic}.{group}.dead`, each dot of the group doubled ([`topic_group_name`]); RabbitMQ uses `{queue}.dead`, which is the same unless the
    /// queue was given a name.
    pub fn dead_letter_topic(&self, topic: &str) -> Option<String> {
        match &self.dead_letter {
            DeadLetterTarget::Default => {
                Some(format!("{}.dead", topic_group_name(topic, &self.group)))
            }
            DeadLetterTarget::Named(name) => Some(name.to_string()),
            DeadLetterTarget::Discard => None,
        }
    }
}

/// The topics of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicSet {
    /// These topics.
    Named(Vec<Arc<str>>),
    /// Every topic whose whole name matches this regular expression, new ones included. Only Kafka.
    Pattern(Arc<str>),
}

impl TopicSet {
    /// `true` if a name is missing.
    pub(crate) fn is_unnamed(&self) -> bool {
        match self {
            Self::Named(topics) => topics.is_empty() || topics.iter().any(|topic| topic.is_empty()),
            Self::Pattern(pattern) => pattern.is_empty(),
        }
    }
}

impl fmt::Display for TopicSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(topics) => f.write_str(&topics.join(",")),
            Self::Pattern(pattern) => write!(f, "/{pattern}/"),
        }
    }
}

/// The start of a group without a committed offset. It does not apply to RabbitMQ's queues: they hold the
/// messages published since they were declared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartAt {
    /// At the oldest message. The default: nothing is missed.
    #[default]
    Earliest,
    /// At the next message that is published.
    Latest,
    /// At the first message that is not older. Not on RabbitMQ's classic and quorum queues.
    Time(SystemTime),
}

/// The target of dead letters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeadLetterTarget {
    /// `{topic}.{group}.dead` (RabbitMQ: `{queue}.dead`).
    #[default]
    Default,
    /// The topic or queue of this name.
    Named(Arc<str>),
    /// Nowhere: they are logged, counted and acked. What they held is lost.
    Discard,
}

/// Options by type: each broker reads its own and ignores the others, so a service can set those of several
/// brokers.
#[derive(Clone, Default)]
pub struct BrokerOptions(HashMap<TypeId, (&'static str, Arc<dyn Any + Send + Sync>)>);

impl BrokerOptions {
    /// Stores `options` under its type, replacing earlier ones.
    pub fn insert<T: Send + Sync + 'static>(&mut self, options: T) {
        let name = std::any::type_name::<T>();
        self.0.insert(TypeId::of::<T>(), (name, Arc::new(options)));
    }

    /// The options of type `T`.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.0.get(&TypeId::of::<T>())?.1.downcast_ref()
    }
}

impl fmt::Debug for BrokerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.values().map(|(name, _)| name)).finish()
    }
}
