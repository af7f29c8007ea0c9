//! The rows of one key of a lane: waiting, in flight, or parked; used by the lane.

use std::collections::VecDeque;
use std::time::Duration;

use super::effects::{Effects, LaneEpoch, Move, OrderKey, RowId, Table, Target};

#[derive(Debug)]
pub(super) struct Key<P> {
    /// In order of their ids.
    pub(super) waiting: VecDeque<(RowId, P)>,
    pub(super) in_flight: Option<(RowId, Table)>,
    pub(super) parked: Option<Parked<P>>,
}

/// The parked rows of a key. The rows that are read meanwhile are parked, too, unless it recovers.
#[derive(Debug)]
pub(super) struct Parked<P> {
    pub(super) rows: VecDeque<ParkedRow<P>>,
    /// Failed attempts of the first row.
    pub(super) attempts: u32,
    pub(super) due: Duration,
    pub(super) is_loading: bool,
    /// Set if its last attempt succeeded: rows that are read now wait in memory, behind the parked ones.
    pub(super) recovers: bool,
}

#[derive(Debug)]
pub(super) struct ParkedRow<P> {
    pub(super) row: RowId,
    /// The bytes of its body.
    pub(super) size: usize,
    pub(super) payload: Option<P>,
    /// Unset while the statement that parks it is not through.
    pub(super) is_moved: bool,
}

impl<P> Parked<P> {
    pub(super) fn new(attempts: u32, due: Duration) -> Self {
        Self { rows: VecDeque::new(), attempts, due, is_loading: false, recovers: false }
    }

    /// Parks a row that was read, and returns its place among the rows of the key.
    pub(super) fn follow(
        &mut self,
        lane: LaneEpoch,
        row: RowId,
        size: usize,
        order: OrderKey,
        effects: &mut Effects,
    ) -> usize {
        let place = self.rows.iter().rposition(|of| of.row < row).map_or(0, |place| place + 1);
        self.rows.insert(place, ParkedRow { row, size, payload: None, is_moved: false });
        effects.moves.push(Move {
            lane,
            row,
            order,
            from: Table::Pending,
            to: Target::Parked(Duration::ZERO),
            attempts: 0,
            error: "waits for an earlier row of its key".into(),
        });
        place
    }
}

impl<P> Key<P> {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new(), in_flight: None, parked: None }
    }

    /// Takes the first row, if it is in memory.
    pub(super) fn pop(&mut self) -> Option<(RowId, Table, P)> {
        let Some(parked) = &mut self.parked else {
            return self.waiting.pop_front().map(|(row, payload)| (row, Table::Pending, payload));
        };
        let first = parked.rows.front_mut()?;
        first.payload.take().map(|payload| (first.row, Table::Parked, payload))
    }

    pub(super) fn is_ready(&self) -> bool {
        let has_first = match &self.parked {
            Some(parked) => parked.rows.front().is_some_and(|first| first.payload.is_some()),
            None => !self.waiting.is_empty(),
        };
        has_first && self.in_flight.is_none()
    }

    pub(super) fn insert_waiting(&mut self, row: RowId, payload: P) {
        let place = self.waiting.partition_point(|(other, _)| *other < row);
        self.waiting.insert(place, (row, payload));
    }
}
