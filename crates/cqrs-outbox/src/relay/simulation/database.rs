//! A database with lanes, transactions and snapshots as PostgreSQL's, for the simulation of relays.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use uuid::Uuid;

use crate::relay::effects::{
    Delete, LaneEpoch, LaneRange, LaneRead, Late, LateRow, Load, Move, OrderKey, ReadAnswer, RowId,
    Table, Target,
};
use crate::relay::lane::{Entry, ParkedEntry};
use crate::relay::snapshot::Snapshot;

pub(super) const LANES: i16 = 3;
pub(super) const KEYS: u8 = 6;

/// The bytes of the largest body.
pub(super) const MAX_SIZE: usize = 40;

/// Rows without a key have this one.
pub(super) const KEYLESS: u8 = u8::MAX;

/// A row that a writer inserted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) id: i64,
    /// The number of the event, never used again.
    pub(super) event: i64,
    pub(super) key: u8,
}

impl Row {
    /// The bytes of its body: 1 to 7, and more than a lane's part of the window for one in 13.
    fn size(self) -> usize {
        if self.event % 13 == 5 { MAX_SIZE } else { self.event as usize % 7 + 1 }
    }

    fn row_id(self) -> RowId {
        RowId { id: self.id, event_id: Uuid::from_u128(self.event as u128) }
    }

    fn order(self) -> OrderKey {
        order_of(self.key, self.row_id())
    }
}

fn order_of(key: u8, row: RowId) -> OrderKey {
    match key {
        KEYLESS => OrderKey::Row(row),
        key => OrderKey::Key { topic: "t".into(), key: vec![key].into() },
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) xid: u64,
    pub(super) key: u8,
    pub(super) rows: Vec<Row>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Database {
    last_id: i64,
    last_event: i64,
    last_xid: u64,
    latest_completed: u64,
    running: BTreeSet<u64>,
    pub(super) pending: BTreeMap<(i16, i64), Row>,
    /// With their attempts.
    pub(super) parked: BTreeMap<(i16, i64), (Row, u32)>,
    /// Events.
    pub(super) dead: BTreeSet<i64>,
    /// Owner and epoch of each lane.
    pub(super) lanes: BTreeMap<i16, (Option<usize>, i64)>,
    /// Keys of the committed events.
    pub(super) committed: BTreeMap<i64, u8>,
    pub(super) rolled_back: BTreeSet<i64>,
    /// Events that were committed, and that a failover lost.
    pub(super) lost: BTreeSet<i64>,
}

impl Database {
    pub(super) fn new() -> Self {
        let lanes = (0..LANES).map(|lane| (lane, (None, 0))).collect();
        Self { lanes, ..Self::default() }
    }

    fn begin(&mut self) -> u64 {
        self.last_xid += 1;
        self.running.insert(self.last_xid);
        self.last_xid
    }

    fn finish(&mut self, xid: u64) {
        self.running.remove(&xid);
        self.latest_completed = self.latest_completed.max(xid);
    }

    /// A statement of a relay that writes.
    fn own_transaction(&mut self) -> u64 {
        let xid = self.begin();
        self.finish(xid);
        xid
    }

    pub(super) fn write(&mut self, key: u8) -> Writer {
        Writer { xid: self.begin(), key, rows: Vec::new() }
    }

    pub(super) fn insert(&mut self, writer: &mut Writer) {
        self.last_id += 1;
        self.last_event += 1;
        writer.rows.push(Row { id: self.last_id, event: self.last_event, key: writer.key });
    }

    pub(super) fn end(&mut self, writer: Writer, commits: bool) {
        self.finish(writer.xid);
        for row in writer.rows {
            if !commits {
                self.rolled_back.insert(row.event);
                continue;
            }
            let lane = if row.key == KEYLESS { row.event % 3 } else { i64::from(row.key) % 3 };
            self.pending.insert((lane as i16, row.id), row);
            self.committed.insert(row.event, row.key);
        }
    }

    /// `replica`, an earlier state, takes over. Ids and transaction numbers are used again.
    pub(super) fn fail_over(&mut self, replica: &Self) {
        let old = std::mem::replace(self, replica.clone());
        self.last_event = old.last_event;
        self.rolled_back = old.rolled_back;
        self.lost = old.lost;
        let lost = old.committed.into_keys();
        self.lost.extend(lost.filter(|event| !self.committed.contains_key(event)));
        // What ran there is rolled back.
        self.running.clear();
        self.latest_completed = self.last_xid;
    }

    fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_completed + 1;
        Snapshot::new(xmax, self.running.range(..xmax).copied().collect())
    }

    fn entry(lane: i16, row: Row) -> (i16, Entry<i64>) {
        let (id, order) = (row.row_id(), row.order());
        (lane, Entry { row: id, order, size: row.size(), payload: row.event })
    }

    pub(super) fn hot(&self, relay: usize, reads: &[LaneRead]) -> ReadAnswer<Entry<i64>> {
        let owned = self.owned(relay);
        let rows = reads.iter().filter(|read| owned.contains(&read.lane)).flat_map(|read| {
            let lane = read.lane.lane;
            let above = (lane, read.above.saturating_add(1))..(lane, i64::MAX);
            let mut bytes = 0;
            let rows = self.pending.range(above).take(read.limit).take_while(move |(_, row)| {
                let before = bytes;
                bytes += row.size();
                before < read.bytes
            });
            rows.map(|((lane, _), row)| Self::entry(*lane, *row))
        });
        self.answer(relay, reads.iter().map(|read| read.lane), rows.collect())
    }

    fn answer<T>(
        &self,
        relay: usize,
        asked: impl Iterator<Item = LaneEpoch>,
        rows: Vec<(i16, T)>,
    ) -> ReadAnswer<T> {
        let owned = self.owned(relay);
        let lost = asked.filter(|at| !owned.contains(at)).collect();
        ReadAnswer { rows, lost, late: Late::Since(self.snapshot()) }
    }

    pub(super) fn ids(&self, relay: usize, ranges: &[LaneRange]) -> ReadAnswer<LateRow> {
        let owned = self.owned(relay);
        let ids = ranges.iter().filter(|range| owned.contains(&range.lane)).flat_map(|range| {
            let lane = range.lane.lane;
            let part = (lane, range.above.saturating_add(1))..=(lane, range.up_to);
            let rows = self.pending.range(part).take(range.limit);
            rows.map(|((lane, _), row)| (*lane, LateRow { row: row.row_id(), size: row.size() }))
        });
        self.answer(relay, ranges.iter().map(|range| range.lane), ids.collect())
    }

    pub(super) fn rows(&self, relay: usize, rows: &[(LaneEpoch, RowId)]) -> ReadAnswer<Entry<i64>> {
        let owned = self.owned(relay);
        let found = rows.iter().filter(|(at, _)| owned.contains(at)).filter_map(|(at, row)| {
            let row = self.pending.get(&(at.lane, row.id))?;
            Some(Self::entry(at.lane, *row))
        });
        self.answer(relay, rows.iter().map(|(at, _)| *at), found.collect())
    }

    pub(super) fn delete(&mut self, rows: &[Delete]) -> u64 {
        for of in rows {
            self.remove(of.lane, of.row, of.table);
        }
        self.own_transaction()
    }

    fn remove(&mut self, at: LaneEpoch, row: RowId, table: Table) -> Option<Row> {
        let place = (at.lane, row.id);
        let is_row = |of: &Row| of.row_id() == row;
        match table {
            Table::Pending if self.pending.get(&place).is_some_and(is_row) => {
                self.pending.remove(&place)
            }
            Table::Parked if self.parked.get(&place).is_some_and(|(of, _)| is_row(of)) => {
                self.parked.remove(&place).map(|(row, _)| row)
            }
            _ => None,
        }
    }

    pub(super) fn owned(&self, relay: usize) -> Vec<LaneEpoch> {
        let owned = self.lanes.iter().filter(|(_, (owner, _))| *owner == Some(relay));
        owned.map(|(lane, (_, epoch))| LaneEpoch { lane: *lane, epoch: *epoch }).collect()
    }

    pub(super) fn change(&mut self, relay: usize, moves: &[Move]) -> Vec<i16> {
        let owned = self.owned(relay);
        for Move { lane, row, from, to, attempts, .. } in moves {
            if !owned.contains(lane) {
                continue;
            }
            let place = (lane.lane, row.id);
            match (self.remove(*lane, *row, *from), to) {
                (Some(row), Target::Parked(_)) => drop(self.parked.insert(place, (row, *attempts))),
                (Some(row), Target::Dead) => drop(self.dead.insert(row.event)),
                (None, _) => {}
            }
        }
        let is_owned = |of: &Move| owned.contains(&of.lane);
        moves.iter().filter(|of| is_owned(of)).map(|of| of.lane.lane).collect()
    }

    pub(super) fn load(&self, load: &Load) -> HashMap<RowId, i64> {
        let parked = |row: &RowId| self.parked.get(&(load.lane.lane, row.id));
        let found = load.rows.iter().filter_map(parked);
        found.map(|(row, _)| (row.row_id(), row.event)).collect()
    }

    pub(super) fn heartbeat(&mut self) -> u64 {
        self.own_transaction()
    }

    /// Takes free lanes and those of `dead` relays.
    pub(super) fn take(&mut self, relay: usize, dead: &[usize], count: usize) -> Vec<LaneEpoch> {
        let free = self.lanes.iter_mut();
        let free = free.filter(|(_, (owner, _))| owner.is_none_or(|owner| dead.contains(&owner)));
        let taken = free.take(count).map(|(lane, state)| {
            *state = (Some(relay), state.1 + 1);
            LaneEpoch { lane: *lane, epoch: state.1 }
        });
        taken.collect()
    }

    pub(super) fn parked_of(&self, lanes: &[LaneEpoch]) -> Vec<ParkedEntry> {
        let parked = self.parked.iter();
        let of = parked.filter(|((of, _), _)| lanes.iter().any(|at| at.lane == *of));
        let entries = of.map(|((lane, _), (row, attempts))| ParkedEntry {
            lane: *lane,
            row: row.row_id(),
            order: row.order(),
            size: row.size(),
            attempts: *attempts,
            due_in: Duration::ZERO,
        });
        entries.collect()
    }

    pub(super) fn release(&mut self, relay: usize, lanes: &[LaneEpoch]) {
        for at in lanes {
            if let Some(state) = self.lanes.get_mut(&at.lane)
                && *state == (Some(relay), at.epoch)
            {
                state.0 = None;
            }
        }
    }
}
