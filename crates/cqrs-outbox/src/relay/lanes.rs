//! The lanes that a relay owns: what to read, what to publish next, and what became of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::effects::{
    Delete, Effects, LaneEpoch, LateRow, Load, Move, Outcome, Publish, ReadAnswer, ReadStep, RowId,
};
use super::lane::{Backoff, Capacity, Entry, Lane, ParkedEntry};
use super::reader::Reader;

#[derive(Debug)]
pub(super) struct Lanes<P> {
    lanes: BTreeMap<i16, Lane<P>>,
    effects: Effects,
    reader: Reader<P>,
    /// The lanes that drain.
    draining: usize,
    /// Set if parked rows may wait for room in memory.
    has_starved: bool,
    /// Of all lanes together.
    capacity: Capacity,
    backoff: Backoff,
}

impl<P> Lanes<P> {
    pub(super) fn new(capacity: Capacity, backoff: Backoff, longest_transaction: Duration) -> Self {
        Self {
            lanes: BTreeMap::new(),
            effects: Effects::default(),
            reader: Reader::new(longest_transaction),
            draining: 0,
            has_starved: false,
            capacity,
            backoff,
        }
    }

    // Ownership.

    pub(super) fn owned(&self) -> impl ExactSizeIterator<Item = LaneEpoch> {
        self.lanes.values().map(|lane| lane.at)
    }

    /// Adds lanes that were just taken, with their parked rows.
    pub(super) fn take(&mut self, lanes: Vec<LaneEpoch>, parked: Vec<ParkedEntry>, now: Duration) {
        let mut of_lane: HashMap<i16, Vec<ParkedEntry>> = HashMap::new();
        for entry in parked {
            of_lane.entry(entry.lane).or_default().push(entry);
        }
        for at in lanes {
            let parked = of_lane.remove(&at.lane).unwrap_or_default();
            let before = self.lanes.insert(at.lane, Lane::new(at, parked, now, &mut self.effects));
            self.draining -= usize::from(before.is_some_and(|lane| lane.is_draining));
        }
    }

    /// Drops a lane that another relay owns now.
    pub(super) fn lose(&mut self, at: LaneEpoch) {
        if let Some(lane) = self.get(at) {
            self.draining -= usize::from(lane.is_draining);
            self.lanes.remove(&at.lane);
        }
    }

    /// Starts nothing new in `count` more lanes, so that they can be released.
    pub(super) fn drain(&mut self, count: usize) {
        let lanes = self.lanes.values_mut().rev().filter(|lane| !lane.is_draining);
        for lane in lanes.take(count) {
            lane.is_draining = true;
            self.draining += 1;
        }
    }

    pub(super) fn draining(&self) -> usize {
        self.draining
    }

    /// The lanes to release. They are [lost](Self::lose) when that is done.
    pub(super) fn drained(&self) -> Vec<LaneEpoch> {
        if self.draining == 0 {
            return Vec::new();
        }
        self.lanes.values().filter(|lane| lane.is_drained()).map(|lane| lane.at).collect()
    }

    // Reading: see `Reader`.

    /// There may be new rows in every lane.
    pub(super) fn wake(&mut self) {
        self.lanes.values_mut().for_each(|lane| lane.has_more = true);
    }

    /// The next read looks at all rows of all lanes: the proof that none was skipped.
    pub(super) fn sweep(&mut self) {
        for lane in self.lanes.values_mut() {
            (lane.late_from, lane.has_more) = (Some(i64::MIN), true);
        }
    }

    /// After an error of the database nothing is known of what happened meanwhile.
    pub(super) fn reset(&mut self) {
        self.reader.reset(&mut self.lanes);
    }

    /// The first statement of a read; [`End`](ReadStep::End) if there is nothing to read or no room.
    pub(super) fn start_read(&mut self) -> ReadStep {
        self.reader.start(&mut self.lanes, self.capacity)
    }

    /// The rows of the hot read.
    pub(super) fn hot_rows(&mut self, answer: ReadAnswer<Entry<P>>) -> ReadStep {
        let ReadAnswer { rows, lost, late } = answer;
        lost.into_iter().for_each(|at| self.lose(at));
        self.reader.hot_rows(&mut self.lanes, rows, late, &mut self.effects)
    }

    /// The ids of the late read.
    pub(super) fn late_ids(&mut self, answer: ReadAnswer<LateRow>) -> ReadStep {
        let ReadAnswer { rows, lost, late } = answer;
        lost.into_iter().for_each(|at| self.lose(at));
        let share = self.share();
        self.reader.late_ids(&mut self.lanes, share, &rows, late, &mut self.effects)
    }

    /// The rows of the ids that were unknown.
    pub(super) fn late_rows(&mut self, answer: ReadAnswer<Entry<P>>) -> ReadStep {
        answer.lost.into_iter().for_each(|at| self.lose(at));
        self.reader.admit(&mut self.lanes, answer.rows, &mut self.effects)
    }

    /// The read took too long. What it was to find is read again, in smaller parts.
    pub(super) fn read_timed_out(&mut self) {
        self.reader.timed_out(&mut self.lanes);
    }

    /// `true` while a read runs.
    pub(super) fn is_reading(&self) -> bool {
        self.reader.is_reading()
    }

    /// The highest id read, to be taken before a writing statement begins.
    pub(super) fn highest(&self) -> i64 {
        self.reader.highest()
    }

    /// A statement of ours had the transaction `xid`, and began when `highest` was the highest id read.
    pub(super) fn mark(&mut self, xid: u64, highest: i64) {
        self.reader.mark(xid, highest);
    }

    // Publishing.

    /// The next row to publish.
    pub(super) fn next_publish(&mut self) -> Option<Publish<P>> {
        while let Some((at, order)) = self.effects.ready.pop_front() {
            let Some(lane) = self.get(at).filter(|lane| !lane.is_draining) else { continue };
            if let Some((row, table, payload)) = lane.start(&order) {
                return Some(Publish { lane: at, order, row, table, payload });
            }
        }
        None
    }

    /// `true` if a row may be ready to publish.
    pub(super) fn has_ready(&self) -> bool {
        !self.effects.ready.is_empty()
    }

    /// What became of a row. Its payload is in the outcome if it is needed again.
    pub(super) fn published<Q>(
        &mut self,
        publish: &Publish<Q>,
        outcome: Outcome<P>,
        now: Duration,
    ) {
        let Publish { lane: at, order, row, table, .. } = publish;
        let (at, row, table) = (*at, *row, *table);
        let (backoff, effects) = (self.backoff, &mut self.effects);
        let lane = self.lanes.get_mut(&at.lane).filter(|lane| lane.at == at);
        let Some(lane) = lane else {
            if matches!(outcome, Outcome::Confirmed) {
                // The lane is lost, but nobody needs to publish this row again.
                effects.deletes.push(Delete { lane: at, row, table });
            }
            return;
        };
        match outcome {
            Outcome::Confirmed => lane.confirmed(order, row, now, effects),
            Outcome::Returned(payload) => lane.returned(order, row, payload, effects),
            Outcome::Failed(error) => lane.park(order, row, error, backoff, now, effects),
            Outcome::Refused(error) => lane.refused(order, row, error, now, effects),
        }
    }

    /// Publishes without an outcome yet, in owned lanes.
    pub(super) fn in_flight(&self) -> usize {
        self.lanes.values().map(Lane::in_flight).sum()
    }

    // Statements.

    pub(super) fn pending_deletes(&self) -> usize {
        self.effects.deletes.len()
    }

    /// Confirmed rows to delete.
    pub(super) fn take_deletes(&mut self, most: usize) -> Vec<Delete> {
        let count = self.effects.deletes.len().min(most);
        self.effects.deletes.drain(..count).collect()
    }

    pub(super) fn deleted(&mut self, rows: &[Delete]) {
        let is_reading = self.is_reading();
        for Delete { lane, row, table } in rows {
            if let Some(lane) = self.get(*lane) {
                lane.removed(*row, *table, is_reading);
            }
        }
    }

    /// The statement failed: its rows are deleted with the next one.
    pub(super) fn not_deleted(&mut self, rows: Vec<Delete>) {
        self.effects.deletes.extend(rows);
    }

    /// Rows to park, to park for longer, and to declare dead: at most one change per row.
    pub(super) fn take_moves(&mut self, most: usize) -> Vec<Move> {
        let count = self.effects.moves.len().min(most);
        self.effects.moves.drain(..count).collect()
    }

    /// The statement is through; `owned` are the lanes that it found owned by this relay.
    pub(super) fn moved(&mut self, moves: &[Move], owned: &[i16]) {
        let is_reading = self.is_reading();
        for Move { lane: at, row, order, from, .. } in moves {
            if !owned.contains(&at.lane) {
                self.lose(*at);
                continue;
            }
            let lane = self.lanes.get_mut(&at.lane).filter(|lane| lane.at == *at);
            if let Some(lane) = lane {
                lane.removed(*row, *from, is_reading);
                lane.moved(order, *row, &mut self.effects);
            }
        }
    }

    /// The statement failed, and is to be made again.
    pub(super) fn not_moved(&mut self, mut moves: Vec<Move>) {
        moves.append(&mut self.effects.moves);
        self.effects.moves = moves;
    }

    /// The database refuses the move: those of other keys go first.
    pub(super) fn postpone(&mut self, refused: Move) {
        let moves = std::mem::take(&mut self.effects.moves);
        let (same, others): (Vec<_>, Vec<_>) =
            moves.into_iter().partition(|of| of.lane == refused.lane && of.order == refused.order);
        self.effects.moves = others;
        self.effects.moves.push(refused);
        self.effects.moves.extend(same);
    }

    // Parked rows.

    /// The time of the next attempt of a parked key.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.effects.due.peek().map(|Reverse((due, ..))| *due)
    }

    /// Parked rows to load now.
    pub(super) fn next_load(&mut self, now: Duration) -> Option<Load> {
        let share = self.share();
        if self.has_starved {
            for lane in self.lanes.values_mut() {
                let starved = lane.next_starved(share);
                self.effects.due.extend(starved.map(|of| Reverse((Duration::ZERO, lane.at, of))));
            }
            self.has_starved = self.lanes.values().any(Lane::has_starved);
        }
        while self.next_due().is_some_and(|due| due <= now) {
            let Reverse((_, at, order)) = self.effects.due.pop()?;
            let Some(lane) = self.get(at).filter(|lane| !lane.is_draining) else { continue };
            if let Some(rows) = lane.load(&order, share, now) {
                return Some(Load { lane: at, order, rows });
            }
            self.has_starved |= lane.has_starved();
        }
        None
    }

    /// The answer to a load; `None` if it failed.
    pub(super) fn loaded(&mut self, load: &Load, rows: Option<HashMap<RowId, P>>, now: Duration) {
        let Load { lane: at, order, rows: asked } = load;
        let lane = self.lanes.get_mut(&at.lane).filter(|lane| lane.at == *at);
        match (lane, rows) {
            (Some(lane), Some(rows)) => lane.loaded(order, asked, rows, now, &mut self.effects),
            (Some(lane), None) => lane.load_failed(order, &mut self.effects),
            (None, _) => {}
        }
    }

    /// The part of each lane in what may be in memory.
    fn share(&self) -> Capacity {
        self.capacity.per_lane(self.lanes.len())
    }

    fn get(&mut self, at: LaneEpoch) -> Option<&mut Lane<P>> {
        self.lanes.get_mut(&at.lane).filter(|lane| lane.at == at)
    }
}

#[cfg(test)]
mod tests;
