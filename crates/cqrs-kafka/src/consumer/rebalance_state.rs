//! The rebalance that a session is answering. Part of the [`session`](super::session); [`rebalance`](super::rebalance)
//! moves it on.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::TopicPartitionList;

use super::clerk::Drafts;
use super::partition::Partition;

/// What is being answered. librdkafka asks one thing at a time and waits for the answer; heartbeats and
/// polling go on meanwhile.
#[derive(Debug, Default)]
pub(super) enum RebalanceState {
    #[default]
    Idle,
    /// The committed offsets of new partitions are looked up.
    Assigning {
        list: TopicPartitionList,
        ticket: u64,
        /// When to look up again; `None` while the look-up runs.
        again: Option<Instant>,
    },
    /// Handlers that run are waited for.
    Draining { list: TopicPartitionList, partitions: Vec<Arc<Partition>>, until: Instant },
    /// The last commits are waited for.
    Committing {
        list: TopicPartitionList,
        drafts: Drafts,
        ticket: u64,
        /// When to commit again; `None` while the commit runs.
        again: Option<Instant>,
        until: Instant,
    },
}

impl RebalanceState {
    pub(super) fn is_idle(&self) -> bool {
        matches!(self, Self::Idle)
    }

    /// Partitions that are being given up and whose books may be open.
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
