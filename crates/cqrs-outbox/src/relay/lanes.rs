//! The lanes that a relay owns: what to read, what to publish next, and what became of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::effects::{
    Delete, Effects, LaneEpoch, LaneRange, LaneRead, Late, LateRow, Load, Move, Outcome, Publish,
    ReadAnswer, ReadStep, RowId,
};
use super::lane::{Backoff, Capacity, Entry, Lane, ParkedEntry};
use super::part::Part;
use super::snapshot::LateRows;

#[derive(Debug)]
pub(super) struct Lanes<P> {
    lanes: BTreeMap<i16, Lane<P>>,
    effects: Effects,
    late: LateRows,
    /// The hot rows of the running read. They wait until the late rows are known.
    reading: Option<Reading<P>>,
    /// The lanes, rows and bytes of one read.
    part: Part,
    /// The last lane that was read: the next read starts behind it.
    last_read: i16,
    /// Of all lanes together.
    capacity: Capacity,
    backoff: Backoff,
}

#[derive(Debug)]
struct Reading<P> {
    lanes: Vec<LaneRead>,
    ranges: Vec<LaneRange>,
    hot: Vec<(i16, Entry<P>)>,
    /// Rows above it may have become visible since the hot read.
    late_again: Option<i64>,
}

impl<P> Lanes<P> {
    pub(super) fn new(capacity: Capacity, backoff: Backoff) -> Self {
        Self {
            lanes: BTreeMap::new(),
            effects: Effects::default(),
            late: LateRows::default(),
            reading: None,
            part: Part::default(),
            last_read: i16::MAX,
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
            self.lanes.insert(at.lane, Lane::new(at, parked, now, &mut self.effects));
        }
    }

    /// Drops a lane that another relay owns now.
    pub(super) fn lose(&mut self, at: LaneEpoch) {
        if self.get(at).is_some() {
            self.lanes.remove(&at.lane);
        }
    }

    /// Starts nothing new in `count` more lanes, so that they can be released.
    pub(super) fn drain(&mut self, count: usize) {
        let lanes = self.lanes.values_mut().rev().filter(|lane| !lane.is_draining);
        lanes.take(count).for_each(|lane| lane.is_draining = true);
    }

    pub(super) fn draining(&self) -> usize {
        self.lanes.values().filter(|lane| lane.is_draining).count()
    }

    /// The lanes to release. They are [lost](Self::lose) when that is done.
    pub(super) fn drained(&self) -> Vec<LaneEpoch> {
        self.lanes.values().filter(|lane| lane.is_drained()).map(|lane| lane.at).collect()
    }

    // Reading.

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
        self.end_read();
        self.late = LateRows::default();
        for lane in self.lanes.values_mut() {
            (lane.highest, lane.late_from, lane.has_more) = (i64::MIN, None, true);
        }
    }

    /// The first statement of a read; [`End`](ReadStep::End) if there is nothing to read or no room.
    pub(super) fn start_read(&mut self) -> ReadStep {
        if self.reading.is_some() {
            return ReadStep::End;
        }
        let share = self.share();
        let held: usize = self.lanes.values().map(|lane| lane.held().bytes).sum();
        let mut free = self.capacity.bytes.saturating_sub(held);
        let most = self.part.of(self.lanes.len());
        let mut reads = Vec::new();
        let behind = |lane: i16| (lane <= self.last_read, lane);
        let mut lanes: Vec<_> = self.lanes.values_mut().collect();
        lanes.sort_unstable_by_key(|lane| behind(lane.at.lane));
        for lane in lanes.into_iter().filter(|lane| lane.has_more && !lane.is_draining) {
            if reads.len() >= most {
                break;
            }
            let held = lane.held();
            let limit = share.rows.saturating_sub(held.rows);
            let bytes = share.bytes.saturating_sub(held.bytes).min(free);
            if limit >= share.rows.div_ceil(4) && bytes >= share.bytes.div_ceil(4) {
                lane.has_more = false;
                free -= bytes;
                let (limit, bytes) = (self.part.of(limit), self.part.of(bytes));
                reads.push(LaneRead { lane: lane.at, above: lane.highest, limit, bytes });
            }
        }
        let Some(last) = reads.last() else { return ReadStep::End };
        self.last_read = last.lane.lane;
        self.reading = Some(Reading {
            lanes: reads.clone(),
            ranges: Vec::new(),
            hot: Vec::new(),
            late_again: None,
        });
        ReadStep::Hot(reads)
    }

    /// The rows of the hot read, by lane and id.
    pub(super) fn hot_rows(&mut self, answer: ReadAnswer<Entry<P>>) -> ReadStep {
        let ReadAnswer { rows, lost, late } = answer;
        lost.into_iter().for_each(|at| self.lose(at));
        if let Some(above) = self.observe(late) {
            self.late_from(above);
        }
        if let Some(highest) = rows.iter().map(|(_, entry)| entry.row.id).max() {
            self.late.read_up_to(highest);
        }
        let Some(mut reading) = self.reading.take() else { return ReadStep::End };
        for read in &reading.lanes {
            let Some(lane) = self.lanes.get_mut(&read.lane.lane) else { continue };
            if let Some(above) = lane.late_from.filter(|above| *above < lane.highest) {
                let (up_to, limit) = (lane.highest, lane.held().rows + read.limit + 1);
                reading.ranges.push(LaneRange { lane: lane.at, above, up_to, limit });
            } else {
                lane.late_from = None;
            }
        }
        reading.hot = rows;
        let step = match reading.ranges.is_empty() {
            true => ReadStep::End,
            false => ReadStep::Ids(reading.ranges.clone()),
        };
        self.reading = Some(reading);
        match step {
            ReadStep::End => self.admit(Vec::new()),
            step => step,
        }
    }

    /// The ids of the late read, in order. Its snapshot is later than that of the hot read.
    ///
    /// A transaction that finished in between may have two late rows of a key, one of them below the range.
    /// Then the range grows, and is read again.
    pub(super) fn late_ids(&mut self, answer: ReadAnswer<LateRow>) -> ReadStep {
        let ReadAnswer { rows: ids, lost, late } = answer;
        lost.into_iter().for_each(|at| self.lose(at));
        let above = self.observe(late);
        let share = self.share();
        let Some(reading) = &mut self.reading else { return ReadStep::End };
        if let Some(above) = above {
            reading.late_again = Some(reading.late_again.map_or(above, |again| again.min(above)));
            let mut has_grown = false;
            for range in reading.ranges.iter_mut().filter(|range| above < range.above) {
                (range.above, has_grown) = (above, true);
            }
            if has_grown {
                return ReadStep::Ids(reading.ranges.clone());
            }
        }
        let mut unknown = Vec::new();
        for range in &reading.ranges {
            let lane = self.lanes.get_mut(&range.lane.lane).filter(|lane| lane.at == range.lane);
            let Some(lane) = lane else { continue };
            let is_of_lane = |of: i16| of == range.lane.lane;
            let found = ids.iter().filter(|(of, _)| is_of_lane(*of)).map(|(_, row)| *row);
            let found: Vec<LateRow> = found.collect();
            let new = found.iter().copied().filter(|late| !lane.knows(late.row));
            let mut new: Vec<LateRow> = new.collect();
            let hot = reading.hot.iter().filter(|(of, _)| is_of_lane(*of));
            let hot: usize = hot.map(|(_, entry)| entry.size).sum();
            let room = share.bytes.saturating_sub(lane.held().bytes);
            // More late rows than room: the rows behind them wait.
            let mut last = None;
            if found.len() >= range.limit {
                last = found.last().map(|late| late.row.id);
            }
            let bytes: usize = new.iter().map(|late| late.size).sum();
            let has_room = new.is_empty() || bytes + hot <= room;
            let fitting = fitting(&new, self.part.of(room));
            if fitting < new.len() {
                new.truncate(fitting);
                last = new.last().map(|late| late.row.id);
            }
            lane.late_from = last;
            if last.is_some() || !has_room {
                lane.has_more = true;
                reading.hot.retain(|(of, _)| !is_of_lane(*of));
            }
            unknown.extend(new.into_iter().map(|late| (range.lane, late.row)));
        }
        match unknown.is_empty() {
            true => self.admit(Vec::new()),
            false => ReadStep::Rows(unknown),
        }
    }

    /// The rows of the ids that were unknown.
    pub(super) fn late_rows(&mut self, answer: ReadAnswer<Entry<P>>) -> ReadStep {
        answer.lost.into_iter().for_each(|at| self.lose(at));
        self.admit(answer.rows)
    }

    /// The read ends: all its rows are taken, the late ones first.
    fn admit(&mut self, late: Vec<(i16, Entry<P>)>) -> ReadStep {
        let Some(reading) = self.reading.take() else { return ReadStep::End };
        let Reading { lanes: reads, hot, late_again, .. } = reading;
        if let Some(above) = late_again {
            self.late_from(above);
        }
        let is_read = |at: LaneEpoch| reads.iter().find(|read| read.lane == at);
        let mut counts: HashMap<i16, Capacity> = HashMap::new();
        for (is_hot, (lane, entry)) in
            late.into_iter().map(|row| (false, row)).chain(hot.into_iter().map(|row| (true, row)))
        {
            let Some(lane) = self.lanes.get_mut(&lane) else { continue };
            let Some(read) = is_read(lane.at) else { continue };
            if is_hot {
                lane.highest = lane.highest.max(entry.row.id);
                let count = counts.entry(lane.at.lane).or_default();
                count.add(entry.size);
                lane.has_more |= count.rows >= read.limit || count.bytes >= read.bytes;
            }
            lane.admit(entry, &mut self.effects);
        }
        self.end_read();
        self.part.succeeded();
        ReadStep::End
    }

    /// The read took too long. What it was to find is read again, in smaller parts.
    pub(super) fn read_timed_out(&mut self) {
        self.part.timed_out();
        let Some(reading) = self.reading.take() else { return };
        for read in &reading.lanes {
            if let Some(lane) = self.get(read.lane) {
                lane.has_more = true;
            }
        }
        for range in &reading.ranges {
            if let Some(lane) = self.get(range.lane) {
                lane.late_from = Some(lane.late_from.map_or(range.above, |of| of.min(range.above)));
            }
        }
        if let Some(above) = reading.late_again {
            self.late_from(above);
        }
        self.end_read();
    }

    /// The id above which rows may have become visible late.
    fn observe(&mut self, late: Late) -> Option<i64> {
        match late {
            Late::None => None,
            Late::Since(snapshot) => self.late.observe(snapshot),
            Late::Above(id) => Some(id),
        }
    }

    fn late_from(&mut self, above: i64) {
        for lane in self.lanes.values_mut() {
            lane.late_from = Some(lane.late_from.map_or(above, |from| from.min(above)));
        }
    }

    /// `true` while a read runs.
    pub(super) fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    fn end_read(&mut self) {
        self.reading = None;
        self.lanes.values_mut().for_each(Lane::read_ended);
    }

    /// The highest id read, to be taken before a writing statement begins.
    pub(super) fn highest(&self) -> i64 {
        self.late.highest()
    }

    /// A statement of ours had the transaction `xid`, and began when `highest` was the highest id read.
    pub(super) fn mark(&mut self, xid: u64, highest: i64) {
        self.late.mark(xid, highest);
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
        for lane in self.lanes.values_mut() {
            let starved = lane.next_starved(share);
            self.effects.due.extend(starved.map(|of| Reverse((Duration::ZERO, lane.at, of))));
        }
        while self.next_due().is_some_and(|due| due <= now) {
            let Reverse((_, at, order)) = self.effects.due.pop()?;
            let Some(lane) = self.get(at).filter(|lane| !lane.is_draining) else { continue };
            if let Some(rows) = lane.load(&order, share, now) {
                return Some(Load { lane: at, order, rows });
            }
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

/// The number of rows that fit into `room` bytes: at least one, and at most one more than fits.
fn fitting(rows: &[LateRow], room: usize) -> usize {
    let mut bytes = 0;
    let fitting = rows.iter().take_while(|late| {
        let has_room = bytes < room;
        bytes += late.size;
        has_room
    });
    fitting.count().max(1)
}

#[cfg(test)]
mod tests;
