//! The reads of the owned lanes: what to ask for, and when the rows that were read may start; used by the lanes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::effects::{Effects, LaneEpoch, LaneRange, LaneRead, Late, LateRow, ReadStep, RowId};
use super::lane::{Capacity, Entry, Lane};
use super::part::Part;
use super::snapshot::LateRows;
use super::trailing::TrailingIds;

/// The lanes, by number.
type Owned<P> = BTreeMap<i16, Lane<P>>;

#[derive(Debug)]
pub(super) struct Reader<P> {
    late: LateRows,
    /// In place of `late`, for a database that tells no snapshots.
    trailing: TrailingIds,
    /// The hot rows of the running read. They wait until the late rows are known.
    reading: Option<Reading<P>>,
    /// The lanes, rows and bytes of one read.
    pub(super) part: Part,
    /// The last lane that was read: the next read starts behind it.
    last_read: i16,
}

#[derive(Debug)]
struct Reading<P> {
    lanes: Vec<LaneRead>,
    ranges: Vec<LaneRange>,
    hot: Vec<(i16, Entry<P>)>,
    /// Rows above it may have become visible since the hot read.
    late_again: Option<i64>,
}

impl<P> Reader<P> {
    pub(super) fn new(longest_transaction: Duration) -> Self {
        let (late, part) = (LateRows::default(), Part::default());
        let trailing = TrailingIds::new(longest_transaction);
        Self { late, trailing, reading: None, part, last_read: i16::MAX }
    }

    /// See [`Lanes::reset`](super::lanes::Lanes::reset).
    pub(super) fn reset(&mut self, lanes: &mut Owned<P>) {
        self.end(lanes);
        self.late = LateRows::default();
        self.trailing.clear();
        for lane in lanes.values_mut() {
            (lane.highest, lane.late_from, lane.has_more) = (i64::MIN, None, true);
        }
    }

    /// The first statement of a read. `capacity`: of all lanes together.
    pub(super) fn start(&mut self, lanes: &mut Owned<P>, capacity: Capacity) -> ReadStep {
        if self.reading.is_some() {
            return ReadStep::End;
        }
        let share = capacity.per_lane(lanes.len());
        if !lanes.values().any(|lane| may_read(lane, share)) {
            return ReadStep::End;
        }
        let held: usize = lanes.values().map(|lane| lane.held().bytes).sum();
        let mut free = capacity.bytes.saturating_sub(held);
        let most = self.part.of(lanes.len());
        let mut reads = Vec::new();
        let behind = |lane: i16| (lane <= self.last_read, lane);
        let mut lanes: Vec<_> = lanes.values_mut().collect();
        lanes.sort_unstable_by_key(|lane| behind(lane.at.lane));
        for lane in lanes.into_iter().filter(|lane| may_read(lane, share)) {
            if reads.len() >= most {
                break;
            }
            let Capacity { rows: limit, bytes } = lane.room(share);
            let bytes = bytes.min(free);
            if bytes >= share.bytes.div_ceil(4) {
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
    pub(super) fn hot_rows(
        &mut self,
        lanes: &mut Owned<P>,
        rows: Vec<(i16, Entry<P>)>,
        late: Late,
        effects: &mut Effects,
    ) -> ReadStep {
        let is_torn = matches!(late, Late::Between(..));
        let highest = rows.iter().map(|(_, entry)| entry.row.id).max();
        if let Some(above) = self.observe(late, highest) {
            late_from(lanes, above);
        }
        if let Some(highest) = highest {
            self.late.read_up_to(highest);
        }
        // The rows between which others may be missing.
        let torn: &[_] = if is_torn { &rows } else { &[] };
        let Some(mut reading) = self.reading.take() else { return ReadStep::End };
        for read in &reading.lanes {
            let Some(lane) = lanes.get_mut(&read.lane.lane) else { continue };
            let of_lane = torn.iter().filter(|(of, _)| *of == lane.at.lane);
            let (hot, up_to) = of_lane.fold((0, lane.highest), |(hot, up_to), (_, entry)| {
                (hot + 1, up_to.max(entry.row.id))
            });
            if let Some(above) = lane.late_from.filter(|above| *above < up_to) {
                let limit = lane.held().rows + hot + read.limit + 1;
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
            ReadStep::End => self.admit(lanes, Vec::new(), effects),
            step => step,
        }
    }

    /// The ids of the late read, in order. Its snapshot is later than that of the hot read. `share`: the part of each
    /// lane in what may be in memory.
    ///
    /// A transaction that finished in between may have two late rows of a key, one of them below the range.
    /// Then the range grows, and is read again.
    pub(super) fn late_ids(
        &mut self,
        lanes: &mut Owned<P>,
        share: Capacity,
        ids: &[(i16, LateRow)],
        late: Late,
        effects: &mut Effects,
    ) -> ReadStep {
        let above = self.observe(late, None);
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
        let mut found: BTreeMap<i16, Vec<LateRow>> = BTreeMap::new();
        for (lane, row) in ids {
            found.entry(*lane).or_default().push(*row);
        }
        let mut hot: BTreeMap<i16, usize> = BTreeMap::new();
        for (lane, entry) in &reading.hot {
            *hot.entry(*lane).or_default() += entry.size;
        }
        let (mut unknown, mut waiting) = (Vec::new(), BTreeSet::new());
        for range in &reading.ranges {
            let lane = lanes.get_mut(&range.lane.lane).filter(|lane| lane.at == range.lane);
            let Some(lane) = lane else { continue };
            let found = found.remove(&lane.at.lane).unwrap_or_default();
            let hot = hot.get(&lane.at.lane).copied().unwrap_or(0);
            let is_hot = |row: RowId| {
                let place = (lane.at.lane, row);
                row.id > lane.highest
                    && reading.hot.binary_search_by_key(&place, |(of, at)| (*of, at.row)).is_ok()
            };
            let is_new = |row: RowId| !lane.knows(row) && !is_hot(row);
            let new = found.iter().copied().filter(|late| is_new(late.row));
            let mut new: Vec<LateRow> = new.collect();
            let room = lane.room(share).bytes;
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
                waiting.insert(lane.at.lane);
            }
            unknown.extend(new.into_iter().map(|late| (range.lane, late.row)));
        }
        if !waiting.is_empty() {
            reading.hot.retain(|(lane, _)| !waiting.contains(lane));
        }
        match unknown.is_empty() {
            true => self.admit(lanes, Vec::new(), effects),
            false => ReadStep::Rows(unknown),
        }
    }

    /// The read ends: all its rows are taken, the late ones first.
    pub(super) fn admit(
        &mut self,
        lanes: &mut Owned<P>,
        late: Vec<(i16, Entry<P>)>,
        effects: &mut Effects,
    ) -> ReadStep {
        let Some(reading) = self.reading.take() else { return ReadStep::End };
        let Reading { lanes: reads, hot, late_again, .. } = reading;
        if let Some(above) = late_again {
            late_from(lanes, above);
        }
        let reads = reads.into_iter().map(|read| (read.lane.lane, (read, Capacity::default())));
        let mut reads: BTreeMap<i16, (LaneRead, Capacity)> = reads.collect();
        for (is_hot, (lane, entry)) in
            late.into_iter().map(|row| (false, row)).chain(hot.into_iter().map(|row| (true, row)))
        {
            let Some(lane) = lanes.get_mut(&lane) else { continue };
            let read = reads.get_mut(&lane.at.lane).filter(|(read, _)| read.lane == lane.at);
            let Some((read, count)) = read else { continue };
            if is_hot {
                lane.highest = lane.highest.max(entry.row.id);
                count.add(entry.size);
                lane.has_more |= count.rows >= read.limit || count.bytes >= read.bytes;
            }
            lane.admit(entry, effects);
        }
        self.end(lanes);
        self.part.succeeded();
        ReadStep::End
    }

    /// See [`Lanes::read_timed_out`](super::lanes::Lanes::read_timed_out).
    pub(super) fn timed_out(&mut self, lanes: &mut Owned<P>) {
        self.part.timed_out();
        let Some(reading) = self.reading.take() else { return };
        for read in &reading.lanes {
            if let Some(lane) = get(lanes, read.lane) {
                lane.has_more = true;
            }
        }
        for range in &reading.ranges {
            if let Some(lane) = get(lanes, range.lane) {
                lane.late_from = Some(lane.late_from.map_or(range.above, |of| of.min(range.above)));
            }
        }
        if let Some(above) = reading.late_again {
            late_from(lanes, above);
        }
        self.end(lanes);
    }

    /// The id above which rows may have become visible late.
    fn observe(&mut self, late: Late, highest: Option<i64>) -> Option<i64> {
        match late {
            Late::None => None,
            Late::Since(snapshot) => self.late.observe(snapshot),
            Late::Between(began, ended) => Some(self.trailing.observe(began, ended, highest)),
        }
    }

    pub(super) fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    fn end(&mut self, lanes: &mut Owned<P>) {
        self.reading = None;
        lanes.values_mut().for_each(Lane::read_ended);
    }

    pub(super) fn highest(&self) -> i64 {
        self.late.highest()
    }

    pub(super) fn mark(&mut self, xid: u64, highest: i64) {
        self.late.mark(xid, highest);
    }
}

/// `true` if the lane may have rows to read, and has room for a quarter of its share.
fn may_read<P>(lane: &Lane<P>, share: Capacity) -> bool {
    let has_room = || {
        let room = lane.room(share);
        room.rows >= share.rows.div_ceil(4) && room.bytes >= share.bytes.div_ceil(4)
    };
    lane.has_more && !lane.is_draining && has_room()
}

/// Rows above `above` may have become visible late.
fn late_from<P>(lanes: &mut Owned<P>, above: i64) {
    for lane in lanes.values_mut() {
        lane.late_from = Some(lane.late_from.map_or(above, |from| from.min(above)));
    }
}

fn get<P>(lanes: &mut Owned<P>, at: LaneEpoch) -> Option<&mut Lane<P>> {
    lanes.get_mut(&at.lane).filter(|lane| lane.at == at)
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
