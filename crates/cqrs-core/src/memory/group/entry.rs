//! A message of one group, and the tag of its delivery. Used by the group.

use super::key_queue::QueueId;
use crate::consume::RetryState;
use crate::memory::stored::StoredMessage;

/// A message of one group, until it is settled.
#[derive(Debug, Clone)]
pub(in crate::memory) struct Entry {
    pub(in crate::memory) offset: u64,
    /// The number of its delivery tag, while it is in flight.
    pub(super) number: Option<u64>,
    /// The member that has it, while it is in flight.
    pub(super) member: u64,
    pub(in crate::memory) message: StoredMessage,
    /// The number of deliveries.
    pub(in crate::memory) attempt: u32,
    /// The earlier attempts, as its consumers recorded them.
    pub(in crate::memory) retry: RetryState,
    /// Set for a retry copy.
    pub(in crate::memory) delayed: bool,
    /// The queue of its key, if it is in one.
    pub(super) queue: Option<QueueId>,
}

/// The delivery tag of a message in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::memory) struct Tag {
    /// Unique per delivery, so that a revoked one settles nothing.
    pub(super) number: u64,
    pub(super) entry: EntryId,
}

/// The place of a message among the unsettled ones of its group.
pub(super) type EntryId = usize;

impl Entry {
    pub(super) fn new(offset: u64, message: StoredMessage) -> Self {
        let retry = RetryState::default();
        Self {
            offset,
            number: None,
            member: 0,
            message,
            attempt: 0,
            retry,
            delayed: false,
            queue: None,
        }
    }
}
