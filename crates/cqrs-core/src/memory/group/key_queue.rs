//! The queue of one key in a group. Used by the group.

use std::collections::VecDeque;

use bytes::Bytes;
use slab::Slab;

use super::entry::{Entry, EntryId};

/// The position of an entry in the order of delivery: its offset. One that was given back goes behind all
/// messages that the topic had then, so that a message that keeps failing does not block other keys.
pub(super) type Position = (u64, u64);

/// The place of a key's queue among those of its group.
pub(super) type QueueId = usize;

/// The messages of one key. Exists while one of them is ready or in flight.
#[derive(Debug)]
pub(super) struct KeyQueue {
    pub(super) key: Bytes,
    /// Behind those that are ready or in flight.
    pub(super) waiting: VecDeque<EntryId>,
    /// The number in flight. While it is not 0, none is ready.
    pub(super) in_flight: usize,
    /// The member that has them and may take the next ones, too.
    pub(super) holder: Option<u64>,
    /// The position of the next one in `reserved`.
    pub(super) position: Option<Position>,
}

impl KeyQueue {
    pub(super) fn new(key: Bytes) -> Self {
        Self { key, waiting: VecDeque::new(), in_flight: 0, holder: None, position: None }
    }

    /// Inserts by offset. Copies have the offsets of their originals and keep their places.
    pub(super) fn insert(&mut self, id: EntryId, entries: &Slab<Entry>) {
        let offset = |id: EntryId| entries.get(id).map(|entry| entry.offset);
        let later = self.waiting.iter().position(|waiting| offset(*waiting) > offset(id));
        self.waiting.insert(later.unwrap_or(self.waiting.len()), id);
    }
}
