//! A database with lanes, transactions and snapshots as PostgreSQL's, for the simulation of relays.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::relay::effects::{LaneEpoch, Move, OrderKey, RowId, Table, Target};
use crate::relay::lane::{Entry, ParkedEntry};
use crate::relay::lanes::{LaneRange, LaneRead, Load, ReadAnswer};
use crate::relay::snapshot::Snapshot;

pub(super) const LANES: i16 = 3;
pub(super) const KEYS: u8 = 6;

/// Rows without a key have this one.
pub(super) const KEYLESS: u8 = u8::MAX;

pub(super) fn order_of(key: u8, id: i64) -> OrderKey {
    match key {
        KEYLESS => OrderKey::Row(id),
        key => OrderKey::Key { topic: "t".into(), key: vec![key].into() },
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) xid: u64,
    pub(super) key: u8,
    pub(super) rows: Vec<i64>,
}

#[derive(Debug, Default)]
pub(super) struct Database {
    last_id: i64,
    last_xid: u64,
    latest_completed: u64,
    running: BTreeSet<u64>,
    /// Committed rows and their keys.
    pub(super) pending: BTreeMap<(i16, i64), u8>,
    pub(super) parked: BTreeMap<(i16, i64), (u8, u32)>,
    pub(super) dead: BTreeSet<i64>,
    /// Owner and epoch of each lane.
    pub(super) lanes: BTreeMap<i16, (Option<usize>, i64)>,
    pub(super) committed: BTreeMap<i64, u8>,
    pub(super) rolled_back: BTreeSet<i64>,
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
        writer.rows.push(self.last_id);
    }

    pub(super) fn end(&mut self, writer: Writer, commits: bool) {
        self.finish(writer.xid);
        for id in writer.rows {
            if !commits {
                self.rolled_back.insert(id);
                continue;
            }
            let lane = if writer.key == KEYLESS { id % 3 } else { i64::from(writer.key) % 3 };
            self.pending.insert((lane as i16, id), writer.key);
            self.committed.insert(id, writer.key);
        }
    }

    fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_completed + 1;
        Snapshot::new(xmax, self.running.range(..xmax).copied().collect())
    }

    fn entry(lane: i16, id: i64, key: u8) -> (i16, Entry<i64>) {
        (lane, Entry { id, order: order_of(key, id), payload: id })
    }

    pub(super) fn hot(&self, relay: usize, reads: &[LaneRead]) -> ReadAnswer<Entry<i64>> {
        let owned = self.owned(relay);
        let rows = reads.iter().filter(|read| owned.contains(&read.lane)).flat_map(|read| {
            let lane = read.lane.lane;
            let above = (lane, read.above.saturating_add(1))..(lane, i64::MAX);
            let rows = self.pending.range(above).take(read.limit);
            rows.map(|((lane, id), key)| Self::entry(*lane, *id, *key))
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
        ReadAnswer { rows, lost, snapshot: Some(self.snapshot()) }
    }

    pub(super) fn ids(&self, relay: usize, ranges: &[LaneRange]) -> ReadAnswer<i64> {
        let owned = self.owned(relay);
        let ids = ranges.iter().filter(|range| owned.contains(&range.lane)).flat_map(|range| {
            let lane = range.lane.lane;
            let part = (lane, range.above.saturating_add(1))..=(lane, range.up_to);
            self.pending.range(part).take(range.limit).map(|(place, _)| *place)
        });
        self.answer(relay, ranges.iter().map(|range| range.lane), ids.collect())
    }

    pub(super) fn rows(&self, relay: usize, rows: &[RowId]) -> ReadAnswer<Entry<i64>> {
        let owned = self.owned(relay);
        let found = rows.iter().filter(|row| owned.contains(&row.lane)).filter_map(|row| {
            let key = self.pending.get(&(row.lane.lane, row.id))?;
            Some(Self::entry(row.lane.lane, row.id, *key))
        });
        self.answer(relay, rows.iter().map(|row| row.lane), found.collect())
    }

    pub(super) fn delete(&mut self, rows: &[(RowId, Table)]) -> u64 {
        for (row, table) in rows {
            let place = (row.lane.lane, row.id);
            match table {
                Table::Pending => drop(self.pending.remove(&place)),
                Table::Parked => drop(self.parked.remove(&place)),
            }
        }
        self.own_transaction()
    }

    pub(super) fn owned(&self, relay: usize) -> Vec<LaneEpoch> {
        let owned = self.lanes.iter().filter(|(_, (owner, _))| *owner == Some(relay));
        owned.map(|(lane, (_, epoch))| LaneEpoch { lane: *lane, epoch: *epoch }).collect()
    }

    pub(super) fn change(&mut self, relay: usize, moves: &[Move]) -> Vec<i16> {
        let owned = self.owned(relay);
        for Move { row, from, to, attempts, .. } in moves {
            let place = (row.lane.lane, row.id);
            if !owned.contains(&row.lane) {
                continue;
            }
            let taken = match from {
                Table::Pending => self.pending.remove(&place),
                Table::Parked => self.parked.remove(&place).map(|(key, _)| key),
            };
            match (taken, to) {
                (Some(key), Target::Parked(_)) => drop(self.parked.insert(place, (key, *attempts))),
                (Some(_), Target::Dead) => drop(self.dead.insert(row.id)),
                (None, _) => {}
            }
        }
        let is_owned = |of: &Move| owned.contains(&of.row.lane);
        moves.iter().filter(|of| is_owned(of)).map(|of| of.row.lane.lane).collect()
    }

    pub(super) fn load(&self, load: &Load) -> HashMap<i64, i64> {
        let ids = load.ids.iter().filter(|id| self.parked.contains_key(&(load.lane.lane, **id)));
        ids.map(|id| (*id, *id)).collect()
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
        let entries = of.map(|((lane, id), (key, attempts))| ParkedEntry {
            lane: *lane,
            id: *id,
            order: order_of(*key, *id),
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
