//! [`KafkaSubscription`]: the options of a subscription that only Kafka has.

use std::collections::BTreeMap;
use std::time::Duration;

use cqrs_config::{Secret, text_enum};

/// The options of a subscription that only Kafka has; an entry of its
/// [`options`](cqrs_core::consume::SubscribeRequest::options). Without it the defaults hold. Servers,
/// login and encryption are those of the broker's [`KafkaConfig`](crate::KafkaConfig).
///
/// Offsets are committed by one rule, whatever the options: up to the lowest unfinished record of a
/// partition, every [`commit_interval`](Self::with_commit_interval), when the partition is
/// revoked, and at the end. A record that was not handled is never committed.
///
/// ```
/// use std::time::Duration;
/// use cqrs_kafka::{Assignor, KafkaSubscription, RetryMode};
///
/// let options = KafkaSubscription::new()
///     .with_assignors([Assignor::CooperativeSticky])
///     .with_retry_mode(RetryMode::Topics)
///     .with_group_instance_id("mailer-1")
///     .with_revoke_drain(Duration::from_secs(5));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[must_use = "give it to a subscription"]
pub struct KafkaSubscription {
    pub(crate) assignors: Vec<Assignor>,
    pub(crate) group_instance_id: Option<String>,
    pub(crate) session_timeout: Duration,
    pub(crate) max_poll_interval: Duration,
    pub(crate) commit_interval: Duration,
    pub(crate) revoke_drain: Duration,
    pub(crate) isolation_level: IsolationLevel,
    pub(crate) retry_mode: RetryMode,
    pub(crate) max_unsettled_bytes: usize,
    pub(crate) prefetch_bytes: usize,
    pub(crate) create_topics: Option<NewTopics>,
    pub(crate) raw: BTreeMap<String, Secret>,
}

text_enum! {
    /// The way in which partitions are assigned to the members of a group
    /// (`partition.assignment.strategy`).
    pub enum Assignor {
        /// Neighbouring partitions of each topic to one member. Java's first choice.
        Range = "range",
        /// One after the other. aiokafka's (FastStream's) default.
        RoundRobin = "roundrobin",
        /// As few moves as possible, and only partitions that move are revoked (KIP-429). A group cannot
        /// mix it with the others: all its members must have it.
        CooperativeSticky = "cooperative-sticky",
    }
}

impl Assignor {
    pub(crate) fn is_cooperative(self) -> bool {
        self == Self::CooperativeSticky
    }
}

text_enum! {
    /// The records of transactions that are read (`isolation.level`).
    #[derive(Default)]
    pub enum IsolationLevel {
        /// Those of committed ones. Records behind an open transaction wait for its end. The default.
        #[default]
        ReadCommitted = "read_committed",
        /// All. Gives up: records of aborted transactions are handled, too.
        ReadUncommitted = "read_uncommitted",
    }
}

text_enum! {
    /// The place where a failed message waits for its next attempt.
    #[derive(Default)]
    pub enum RetryMode {
        /// The consumer: the message's key waits, and so the order of each key holds. The attempts are
        /// kept in the metadata of the commits, so a restart or a rebalance does not begin anew. The
        /// partition's committed offset stays at the record until it is settled; records behind it that
        /// were handled meanwhile are redelivered after a restart. The default.
        #[default]
        Ordered = "ordered",
        /// Topics, one for each delay: `{topic}.{group}.retry.{delay}`, each dot of the group doubled.
        /// Gives up the order of the message's key: later messages overtake it.
        Topics = "topics",
    }
}

/// The properties of new dead-letter and retry topics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NewTopics {
    pub(crate) partitions: Option<i32>,
    pub(crate) replication: Option<i32>,
}

impl NewTopics {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    cqrs_core::setters! {
        /// The number of partitions; by default that of the topic that the copies come from.
        pub fn with_partitions(partitions: i32) { self.partitions = Some(partitions) }

        /// The number of replicas; the broker's own default by default.
        pub fn with_replication(replication: i32) { self.replication = Some(replication) }
    }
}

impl Default for KafkaSubscription {
    fn default() -> Self {
        Self {
            assignors: vec![Assignor::Range, Assignor::RoundRobin],
            group_instance_id: None,
            session_timeout: Duration::from_secs(45),
            max_poll_interval: Duration::from_secs(300),
            commit_interval: Duration::from_secs(1),
            revoke_drain: Duration::from_secs(10),
            isolation_level: IsolationLevel::default(),
            retry_mode: RetryMode::default(),
            max_unsettled_bytes: 64 << 20,
            prefetch_bytes: 4 << 20,
            create_topics: Some(NewTopics::default()),
            raw: BTreeMap::new(),
        }
    }
}

impl KafkaSubscription {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// For a group that is shared with members of aiokafka (FastStream, python-cqrs): range and
    /// round-robin. The same as the defaults, and stays so if those change.
    pub fn python_compatible() -> Self {
        Self::default().with_assignors([Assignor::Range, Assignor::RoundRobin])
    }

    cqrs_core::setters! {
        /// The way in which partitions are assigned, the preferred one first
        /// (`partition.assignment.strategy`). All members of a group must have one in common. Default range,
        /// then round-robin, which fits the defaults of Java and aiokafka.
        pub fn with_assignors(assignors: impl IntoIterator<Item = Assignor>) {
            self.assignors = assignors.into_iter().collect()
        }

        /// Makes this a static member (`group.instance.id`, KIP-345): when it restarts within
        /// [`session_timeout`](Self::with_session_timeout), it gets its partitions back without a rebalance.
        /// Must be unique in the group. Default none.
        pub fn with_group_instance_id(id: impl Into<String>) {
            self.group_instance_id = Some(id.into())
        }

        /// The time after which the group removes a silent member (`session.timeout.ms`). Default 45 s.
        pub fn with_session_timeout(timeout: Duration) { self.session_timeout = timeout }

        /// The time in which a member must give up its partitions when the group rebalances
        /// (`max.poll.interval.ms`). Handlers may take longer: polling goes on while they run. Default
        /// 5 min.
        pub fn with_max_poll_interval(interval: Duration) { self.max_poll_interval = interval }

        /// The time between two commits. Default 1 s.
        pub fn with_commit_interval(interval: Duration) { self.commit_interval = interval }

        /// The time that a revoked partition waits for running handlers. Default 10 s; at most half
        /// of [`max_poll_interval`](Self::with_max_poll_interval) is used.
        pub fn with_revoke_drain(drain: Duration) { self.revoke_drain = drain }

        /// The records of transactions that are read. Default [`IsolationLevel::ReadCommitted`].
        pub fn with_isolation_level(level: IsolationLevel) { self.isolation_level = level }

        /// The place where a failed message waits for its next attempt. Default [`RetryMode::Ordered`].
        pub fn with_retry_mode(mode: RetryMode) { self.retry_mode = mode }

        /// The largest number of bytes that are fetched and not settled (one more record may exceed it). Like
        /// `max_unsettled` it is divided among the assigned partitions; one whose share is full is not
        /// fetched, the others go on.
        /// Records up to 2 KiB, key and headers included, share buffers of 6 KiB. One that is not settled for long, or
        /// whose bytes a handler keeps, keeps its buffer as well, which counts here as its own bytes alone: at most
        /// `max_unsettled` times 6 KiB. Up to 6 MiB of these buffers are kept for later records. Default 64 MiB. Above 512 GiB, or with a `max_unsettled` above 8,388,608, the
        /// subscription is refused.
        pub fn with_max_unsettled_bytes(bytes: usize) { self.max_unsettled_bytes = bytes }

        /// The largest number of bytes that wait in the client for each partition, beside
        /// [`max_unsettled_bytes`](Self::with_max_unsettled_bytes) (`queued.max.messages.kbytes`). Default 4 MiB.
        pub fn with_prefetch_bytes(bytes: usize) { self.prefetch_bytes = bytes }

        /// The properties of new dead-letter and retry topics. Default: as many partitions as the topic and
        /// the broker's default replication. `None`: missing topics are not created, and copies wait until
        /// they exist.
        pub fn with_create_topics(topics: impl Into<Option<NewTopics>>) {
            self.create_topics = topics.into()
        }

        /// Sets any other of [librdkafka's options](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md),
        /// applied last. `Debug` shows the names only.
        pub fn with_raw(option: impl Into<String>, value: impl Into<Secret>) {
            self.raw.insert(option.into(), value.into())
        }
    }
}
