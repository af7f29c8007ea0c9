//! The state of a rebalance that is being answered. Part of the [`session`](super::session), advanced by
//! [`rebalance`](super::rebalance).

use std::sync::Arc;
use std::time::Instant;

use rdkafka::TopicPartitionList;

use super::committer::Drafts;
use super::partition::Partition;

/// librdkafka reports one rebalance at a time and waits for its answer. Heartbeats and polling continue meanwhile.
#[derive(Debug, Default)]
pub(super) enum RebalanceState {
    #[default]
    Idle,
    /// The committed offsets of new partitions are looked up.
    Assigning {
        list: TopicPartitionList,
        ticket: u64,
        /// The time of the next look-up; `None` while one runs.
        retry_at: Option<Instant>,
    },
    /// The session waits for running handlers.
    Draining { list: TopicPartitionList, partitions: Vec<Arc<Partition>>, until: Instant },
    /// The session waits for the last commits.
    Committing {
        list: TopicPartitionList,
        drafts: Drafts,
        ticket: u64,
        /// The time of the next commit; `None` while one runs.
        retry_at: Option<Instant>,
        until: Instant,
    },
}

impl RebalanceState {
    pub(super) fn is_idle(&self) -> bool {
        matches!(self, Self::Idle)
    }

    /// The partitions that are being revoked and may not be closed yet.
    pub(super) fn partitions(&self) -> Vec<Arc<Partition>> {
        match self {
            Self::Draining { partitions, .. } => partitions.clone(),
            Self::Committing { drafts, .. } => {
                drafts.iter().map(|(partition, _)| Arc::clone(partition)).collect()
            }
            _ => Vec::new(),
        }
    }
}
