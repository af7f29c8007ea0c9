use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use cqrs_config::Secret;

/// How a subscription consumes from Kafka: what only Kafka knows. Put it into the options of a
/// subscription; without it the defaults hold. Servers, login and encryption are those of the broker's
/// [`KafkaConfig`](crate::KafkaConfig).
///
/// Offsets are committed by one rule, whatever the options: only what lies before the lowest unfinished
/// record of a partition, every [`commit_interval`](Self::commit_interval), when the partition is
/// revoked, and at the end. There is no commit of what was not handled.
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
#[derive(Debug, Clone)]
#[non_exhaustive]
#[must_use = "give it to a subscription"]
pub struct KafkaSubscription {
    /// How partitions are shared out, most wanted first (`partition.assignment.strategy`). All members
    /// of a group must have one in common. Default range, then round-robin: that goes with Java's and
    /// with aiokafka's defaults.
    pub assignors: Vec<Assignor>,
    /// Makes this a static member (`group.instance.id`, KIP-345): when it restarts within
    /// [`session_timeout`](Self::session_timeout), it gets its partitions back and nobody rebalances.
    /// Must be unique in the group. Default none.
    pub group_instance_id: Option<String>,
    /// How long the group waits for a member that fell silent (`session.timeout.ms`). Default 45 s.
    pub session_timeout: Duration,
    /// How long a member may take to give up its partitions when the group rebalances
    /// (`max.poll.interval.ms`). Handlers may take longer: polling goes on while they run. Default
    /// 5 min.
    pub max_poll_interval: Duration,
    /// Between two commits. Default 1 s.
    pub commit_interval: Duration,
    /// How long a partition that is revoked waits for the handlers that run. Default 10 s; at most half
    /// of [`max_poll_interval`](Self::max_poll_interval) is used.
    pub revoke_drain: Duration,
    /// Which records of transactions are seen. Default [`IsolationLevel::ReadCommitted`].
    pub isolation_level: IsolationLevel,
    /// Where a failed message waits for its next attempt. Default [`RetryMode::Ordered`].
    pub retry_mode: RetryMode,
    /// Bytes of records that are fetched and not settled, at most (one more record may come on top). As
    /// `max_unsettled` it is shared out among the assigned partitions; one whose share is full is not
    /// fetched, the others go on.
    /// Records below 1 KiB share buffers of 4 KiB: one that is kept for long, because its key waits for a
    /// retry, keeps its buffer as well. Default 64 MiB.
    pub max_unsettled_bytes: usize,
    /// Bytes that wait in the client for each partition, at most, beside
    /// [`max_unsettled_bytes`](Self::max_unsettled_bytes) (`queued.max.messages.kbytes`). Default 4 MiB.
    pub prefetch_bytes: usize,
    /// How missing dead-letter and retry topics are made. Default: with as many partitions as the topic
    /// and the broker's default replication. `None`: they are not; copies wait until somebody made them.
    pub create_topics: Option<NewTopics>,
    /// Any other of [librdkafka's options](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md),
    /// applied last. `Debug` shows the names only.
    pub raw: BTreeMap<String, Secret>,
}

/// How partitions are shared out among the members of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Assignor {
    /// Neighbouring partitions of each topic to one member. Java's first choice.
    Range,
    /// One after the other. aiokafka's (FastStream's) default.
    RoundRobin,
    /// As few moves as possible, and only those partitions stop that move (KIP-429). A group cannot mix
    /// it with the others: all its members must have it.
    CooperativeSticky,
}

impl Assignor {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::RoundRobin => "roundrobin",
            Self::CooperativeSticky => "cooperative-sticky",
        }
    }

    pub(crate) fn is_cooperative(self) -> bool {
        self == Self::CooperativeSticky
    }
}

impl fmt::Display for Assignor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which records of transactions are seen (`isolation.level`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IsolationLevel {
    /// Those of committed ones. Records behind an open transaction wait for its end. The default.
    #[default]
    ReadCommitted,
    /// All. Gives up: records of aborted transactions are handled, too.
    ReadUncommitted,
}

impl IsolationLevel {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read_committed",
            Self::ReadUncommitted => "read_uncommitted",
        }
    }
}

/// Where a failed message waits for its next attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RetryMode {
    /// With the consumer: its key waits, and so the order of each key holds. The attempts are kept in
    /// the metadata of the commits, so a restart or a rebalance does not begin anew. The partition's
    /// committed offset stays at the record until it is done; what was handled behind it meanwhile comes
    /// again after a restart. The default.
    #[default]
    Ordered,
    /// In topics, one for each delay: `{topic}.{group}.retry.{delay}`, each dot of the group doubled. Gives up the order of the
    /// message's key: later messages overtake it.
    Topics,
}

/// How missing dead-letter and retry topics are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewTopics {
    /// How many partitions. `None`, the default: as many as the topic has that the copies come from.
    pub partitions: Option<i32>,
    /// How many replicas. `None`, the default: as the broker has it.
    pub replication: Option<i32>,
}

impl NewTopics {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many partitions new topics get.
    #[must_use]
    pub fn with_partitions(mut self, partitions: i32) -> Self {
        self.partitions = Some(partitions);
        self
    }

    /// Sets how many replicas new topics get.
    #[must_use]
    pub fn with_replication(mut self, replication: i32) -> Self {
        self.replication = Some(replication);
        self
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
    pub fn python() -> Self {
        Self::default().with_assignors([Assignor::Range, Assignor::RoundRobin])
    }

    /// Sets [`assignors`](Self::assignors).
    pub fn with_assignors(mut self, assignors: impl IntoIterator<Item = Assignor>) -> Self {
        self.assignors = assignors.into_iter().collect();
        self
    }

    /// Sets [`group_instance_id`](Self::group_instance_id).
    pub fn with_group_instance_id(mut self, id: impl Into<String>) -> Self {
        self.group_instance_id = Some(id.into());
        self
    }

    /// Sets [`session_timeout`](Self::session_timeout).
    pub fn with_session_timeout(mut self, timeout: Duration) -> Self {
        self.session_timeout = timeout;
        self
    }

    /// Sets [`max_poll_interval`](Self::max_poll_interval).
    pub fn with_max_poll_interval(mut self, interval: Duration) -> Self {
        self.max_poll_interval = interval;
        self
    }

    /// Sets [`commit_interval`](Self::commit_interval).
    pub fn with_commit_interval(mut self, interval: Duration) -> Self {
        self.commit_interval = interval;
        self
    }

    /// Sets [`revoke_drain`](Self::revoke_drain).
    pub fn with_revoke_drain(mut self, drain: Duration) -> Self {
        self.revoke_drain = drain;
        self
    }

    /// Sets [`isolation_level`](Self::isolation_level).
    pub fn with_isolation_level(mut self, level: IsolationLevel) -> Self {
        self.isolation_level = level;
        self
    }

    /// Sets [`retry_mode`](Self::retry_mode).
    pub fn with_retry_mode(mut self, mode: RetryMode) -> Self {
        self.retry_mode = mode;
        self
    }

    /// Sets [`max_unsettled_bytes`](Self::max_unsettled_bytes).
    pub fn with_max_unsettled_bytes(mut self, bytes: usize) -> Self {
        self.max_unsettled_bytes = bytes;
        self
    }

    /// Sets [`prefetch_bytes`](Self::prefetch_bytes).
    pub fn with_prefetch_bytes(mut self, bytes: usize) -> Self {
        self.prefetch_bytes = bytes;
        self
    }

    /// Sets [`create_topics`](Self::create_topics).
    pub fn with_create_topics(mut self, topics: impl Into<Option<NewTopics>>) -> Self {
        self.create_topics = topics.into();
        self
    }

    /// Sets one of librdkafka's own options.
    pub fn with_raw(mut self, option: impl Into<String>, value: impl Into<Secret>) -> Self {
        self.raw.insert(option.into(), value.into());
        self
    }
}
