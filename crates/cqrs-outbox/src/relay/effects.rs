//! What the lanes of a relay want done: publishes, loads of parked rows, and statements.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::snapshot::Snapshot;

/// The rows that keep their order: those of one topic and key. A row without a key is alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum OrderKey {
    Key { topic: Arc<str>, key: Bytes },
    Row(RowId),
}

/// A lane under one ownership: each change of the owner has an epoch of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LaneEpoch {
    pub(super) lane: i16,
    pub(super) epoch: i64,
}

/// The identity of a row in its lane, in the order of the ids. An id alone is none: after a failover that lost
/// the end of the sequence, ids are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RowId {
    pub(super) id: i64,
    pub(super) event_id: Uuid,
}

/// The table that a row is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Table {
    Pending,
    Parked,
}

/// A confirmed row, to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delete {
    pub(super) lane: LaneEpoch,
    pub(super) row: RowId,
    pub(super) table: Table,
}

/// A row that goes to another table, or is parked for longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) lane: LaneEpoch,
    pub(super) row: RowId,
    pub(super) order: OrderKey,
    pub(super) from: Table,
    pub(super) to: Target,
    /// Failed attempts. 0 for a row that waits behind another of its key.
    pub(super) attempts: u32,
    pub(super) error: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// To be tried again after the delay.
    Parked(Duration),
    Dead,
}

/// A part of a hot read: rows of a lane above an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LaneRead {
    pub(super) lane: LaneEpoch,
    pub(super) above: i64,
    pub(super) limit: usize,
    /// The last row is the one whose body reaches so many bytes, together with those before it.
    pub(super) bytes: usize,
}

/// A part of a late read: the ids of a lane above one id, up to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LaneRange {
    pub(super) lane: LaneEpoch,
    pub(super) above: i64,
    pub(super) up_to: i64,
    pub(super) limit: usize,
}

/// A row that a late read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LateRow {
    pub(super) row: RowId,
    /// The bytes of its body.
    pub(super) size: usize,
}

/// The next statement of a read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadStep {
    Hot(Vec<LaneRead>),
    /// The ids of rows that may have become visible late.
    Ids(Vec<LaneRange>),
    /// The rows of these ids.
    Rows(Vec<(LaneEpoch, RowId)>),
    End,
}

/// The answer to a statement of a read.
#[derive(Debug)]
pub(super) struct ReadAnswer<T> {
    /// By lane, in order of the ids.
    pub(super) rows: Vec<(i16, T)>,
    /// The asked lanes that this relay did not own in the snapshot of the statement. They have no rows here.
    pub(super) lost: Vec<LaneEpoch>,
    pub(super) late: Late,
}

/// The rows that may have become visible below those that were read before.
#[cfg_attr(
    not(all(feature = "mysql", feature = "postgres")),
    allow(dead_code, reason = "each database has its own")
)]
#[derive(Debug)]
pub(super) enum Late {
    /// None: ids are in the order of commits, or an earlier statement of the read told.
    None,
    /// Those of transactions that have finished since.
    Since(Snapshot),
    /// Those of transactions that were open at an earlier read. The read ran in this time, on a database that tells no
    /// snapshot. Nor is the one that it has made in an instant: it may have a row, and none that was committed before
    /// that one was inserted.
    Between(Instant, Instant),
}

/// A row to publish.
#[derive(Debug)]
pub(super) struct Publish<P> {
    pub(super) lane: LaneEpoch,
    pub(super) order: OrderKey,
    pub(super) row: RowId,
    pub(super) table: Table,
    pub(super) payload: P,
}

/// The outcome of a publish.
#[derive(Debug)]
pub(super) enum Outcome<P> {
    Confirmed,
    /// The broker is away: again, later, without counting it.
    Returned(P),
    /// The key waits for its next attempt.
    Failed(Arc<str>),
    /// For good.
    Refused(Arc<str>),
}

/// Parked rows to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) lane: LaneEpoch,
    pub(super) order: OrderKey,
    pub(super) rows: Vec<RowId>,
}

/// Work that the lanes ask for. Times are since the start of the relay.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Keys with a row that may be published now.
    pub(super) ready: VecDeque<(LaneEpoch, OrderKey)>,
    /// Parked keys, by the time of their next attempt.
    pub(super) due: BinaryHeap<Reverse<(Duration, LaneEpoch, OrderKey)>>,
    pub(super) moves: Vec<Move>,
    pub(super) deletes: Vec<Delete>,
}
