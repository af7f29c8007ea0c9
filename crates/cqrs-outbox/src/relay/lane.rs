//! The rows of one owned lane: waiting, in flight, parked, or awaiting their removal.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::effects::{Delete, Effects, LaneEpoch, Move, OrderKey, RowId, Table, Target};
use super::key::{Key, Parked, ParkedRow};

/// Looked up several times for each row. Seeded, as keys come from others.
type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A row that was read. `P` is the message.
#[derive(Debug)]
pub(super) struct Entry<P> {
    pub(super) row: RowId,
    pub(super) order: OrderKey,
    /// The bytes of its body.
    pub(super) size: usize,
    pub(super) payload: P,
}

/// A parked row, as it is known without its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ParkedEntry {
    pub(super) lane: i16,
    pub(super) row: RowId,
    pub(super) order: OrderKey,
    /// The bytes of its body.
    pub(super) size: usize,
    pub(super) attempts: u32,
    /// Until its next attempt.
    pub(super) due_in: Duration,
}

/// The delay between the attempts of a parked key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

/// Databases add a pause to the present: a hundred years are in the range of all of them.
const LONGEST_BACKOFF: Duration = Duration::from_secs(100 * 365 * 86_400);

impl Backoff {
    pub(super) fn after(self, attempts: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest).min(LONGEST_BACKOFF)
    }
}

/// The rows and the bytes of their bodies that are in memory, or may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Capacity {
    pub(super) rows: usize,
    pub(super) bytes: usize,
}

impl Capacity {
    /// The part of each of `count` lanes.
    pub(super) fn per_lane(self, count: usize) -> Self {
        let count = count.max(1);
        Self { rows: (self.rows / count).max(1), bytes: (self.bytes / count).max(1) }
    }

    pub(super) fn add(&mut self, size: usize) {
        self.rows += 1;
        self.bytes += size;
    }

    fn remove(&mut self, size: usize) {
        self.rows = self.rows.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(size);
    }
}

/// The most parked rows of a key that are loaded at once.
const LOADED: usize = 64;

#[derive(Debug)]
pub(super) struct Lane<P> {
    pub(super) at: LaneEpoch,
    /// The highest id that a hot read returned.
    pub(super) highest: i64,
    /// Rows above it, up to `highest`, may have become visible.
    pub(super) late_from: Option<i64>,
    /// Set if the table may have rows above `highest`.
    pub(super) has_more: bool,
    /// Set if the lane is to be released: nothing new starts.
    pub(super) is_draining: bool,
    /// Rows of the table that wait, are in flight, or whose removal is not through; and the bytes of each.
    known: Map<RowId, usize>,
    known_bytes: usize,
    /// Removed while a read ran, which may still return them.
    removed: Vec<RowId>,
    keys: Map<OrderKey, Key<P>>,
    in_flight: usize,
    /// Statements about this lane that are not through: deletes and moves.
    statements: usize,
    /// Messages of parked rows in memory.
    loaded: Capacity,
    /// Keys whose parked rows wait for room in memory.
    starved: VecDeque<OrderKey>,
}

impl<P> Lane<P> {
    /// A lane that was just taken, with its parked rows in order of their ids.
    pub(super) fn new(
        at: LaneEpoch,
        parked: Vec<ParkedEntry>,
        now: Duration,
        effects: &mut Effects,
    ) -> Self {
        let mut lane = Self {
            at,
            highest: i64::MIN,
            late_from: None,
            has_more: true,
            is_draining: false,
            known: Map::default(),
            known_bytes: 0,
            removed: Vec::new(),
            keys: Map::default(),
            in_flight: 0,
            statements: 0,
            loaded: Capacity::default(),
            starved: VecDeque::new(),
        };
        for ParkedEntry { row, order, size, attempts, due_in, .. } in parked {
            let key = lane.keys.entry(order.clone()).or_insert_with(Key::new);
            let due = now.saturating_add(due_in);
            let parked = key.parked.get_or_insert_with(|| {
                effects.due.push(std::cmp::Reverse((due, at, order)));
                Parked::new(attempts, due)
            });
            parked.rows.push_back(ParkedRow { row, size, payload: None, is_moved: true });
        }
        lane
    }

    /// Rows in memory, and rows whose removal is not through.
    pub(super) fn held(&self) -> Capacity {
        Capacity {
            rows: self.known.len() + self.loaded.rows,
            bytes: self.known_bytes + self.loaded.bytes,
        }
    }

    /// What may still be read.
    pub(super) fn room(&self, share: Capacity) -> Capacity {
        let held = self.held();
        Capacity {
            rows: share.rows.saturating_sub(held.rows),
            bytes: share.bytes.saturating_sub(held.bytes),
        }
    }

    pub(super) fn knows(&self, row: RowId) -> bool {
        self.known.contains_key(&row)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// `true` if it drains and nothing is left to wait for.
    pub(super) fn is_drained(&self) -> bool {
        self.is_draining && self.in_flight == 0 && self.statements == 0
    }

    /// Takes a row that was read, unless it is known.
    pub(super) fn admit(&mut self, entry: Entry<P>, effects: &mut Effects) {
        let Entry { row, order, size, payload } = entry;
        if self.knows(row) {
            return;
        }
        self.known.insert(row, size);
        self.known_bytes += size;
        let key = self.keys.entry(order.clone()).or_insert_with(Key::new);
        match &mut key.parked {
            Some(parked) if !parked.recovers => {
                self.statements += 1;
                let place = parked.follow(self.at, row, size, order, effects);
                // The rows behind it wait for it, and must not take its room.
                unload(&mut parked.rows, place, &mut self.loaded);
            }
            _ => {
                let was_ready = key.is_ready();
                key.insert_waiting(row, payload);
                if !was_ready && key.is_ready() {
                    effects.ready.push_back((self.at, order));
                }
            }
        }
    }

    /// Takes the first row of a key for its publish.
    pub(super) fn start(&mut self, order: &OrderKey) -> Option<(RowId, Table, P)> {
        let key = self.keys.get_mut(order).filter(|key| key.is_ready())?;
        let (row, table, payload) = key.pop()?;
        key.in_flight = Some((row, table));
        self.in_flight += 1;
        if let Some(first) = key.parked.as_ref().and_then(|parked| parked.rows.front()) {
            self.loaded.remove(first.size);
        }
        Some((row, table, payload))
    }

    /// The row in flight of the key is confirmed.
    pub(super) fn confirmed(
        &mut self,
        order: &OrderKey,
        row: RowId,
        now: Duration,
        effects: &mut Effects,
    ) {
        let Some(table) = self.end_in_flight(order, row) else { return };
        self.statements += 1;
        effects.deletes.push(Delete { lane: self.at, row, table });
        self.next(order, row, table, now, effects);
    }

    /// The row in flight of the key goes to the dead rows.
    pub(super) fn refused(
        &mut self,
        order: &OrderKey,
        row: RowId,
        error: Arc<str>,
        now: Duration,
        effects: &mut Effects,
    ) {
        let attempts = self.attempts(order) + 1;
        let Some(table) = self.end_in_flight(order, row) else { return };
        self.statements += 1;
        effects.moves.push(Move {
            lane: self.at,
            row,
            order: order.clone(),
            from: table,
            to: Target::Dead,
            attempts,
            error,
        });
        self.next(order, row, table, now, effects);
    }

    /// The row in flight of the key was not published, and is the first of its key again.
    pub(super) fn returned(
        &mut self,
        order: &OrderKey,
        row: RowId,
        payload: P,
        effects: &mut Effects,
    ) {
        let Some(table) = self.end_in_flight(order, row) else { return };
        let Some(key) = self.keys.get_mut(order) else { return };
        match (table, &mut key.parked) {
            (Table::Parked, Some(parked)) => {
                if let Some(first) = parked.rows.front_mut().filter(|first| first.row == row) {
                    first.payload = Some(payload);
                    self.loaded.add(first.size);
                }
            }
            _ => key.insert_waiting(row, payload),
        }
        if key.is_ready() {
            effects.ready.push_front((self.at, order.clone()));
        } else if let Some(parked) = &key.parked {
            // A late row went before it, and is not loaded.
            effects.due.push(std::cmp::Reverse((parked.due, self.at, order.clone())));
        }
    }

    /// The row in flight of the key failed: the rows of the key are parked.
    pub(super) fn park(
        &mut self,
        order: &OrderKey,
        row: RowId,
        error: Arc<str>,
        backoff: Backoff,
        now: Duration,
        effects: &mut Effects,
    ) {
        let attempts = self.attempts(order) + 1;
        let Some(table) = self.end_in_flight(order, row) else { return };
        let Some(key) = self.keys.get_mut(order) else { return };
        let delay = backoff.after(attempts);
        let due = now.saturating_add(delay);
        let parked = key.parked.get_or_insert_with(|| Parked::new(attempts, due));
        (parked.attempts, parked.due, parked.recovers) = (attempts, due, false);
        if table == Table::Pending {
            let size = self.known.get(&row).copied().unwrap_or(0);
            parked.rows.push_front(ParkedRow { row, size, payload: None, is_moved: false });
        }
        unload(&mut parked.rows, 0, &mut self.loaded);
        // Nothing else is done with it until the statement is through.
        for again in parked.rows.iter_mut().filter(|of| of.row == row) {
            again.is_moved = false;
        }
        effects.moves.push(Move {
            lane: self.at,
            row,
            order: order.clone(),
            from: table,
            to: Target::Parked(delay),
            attempts,
            error,
        });
        self.statements += 1 + key.waiting.len();
        for (row, _) in key.waiting.drain(..) {
            let size = self.known.get(&row).copied().unwrap_or(0);
            parked.follow(self.at, row, size, order.clone(), effects);
        }
        effects.due.push(std::cmp::Reverse((due, self.at, order.clone())));
    }

    /// The statement about a row is through. `is_reading`: a read runs that may still return the row.
    pub(super) fn removed(&mut self, row: RowId, table: Table, is_reading: bool) {
        self.statements = self.statements.saturating_sub(1);
        if table == Table::Parked {
            return;
        }
        match is_reading {
            true => self.removed.push(row),
            false => self.forget(row),
        }
    }

    /// The statement that parked a row is through: it may be loaded.
    pub(super) fn moved(&mut self, order: &OrderKey, row: RowId, effects: &mut Effects) {
        let key = self.keys.get_mut(order);
        let Some(parked) = key.and_then(|key| key.parked.as_mut()) else { return };
        for moved in parked.rows.iter_mut().filter(|of| of.row == row) {
            moved.is_moved = true;
        }
        if parked.rows.front().is_some_and(|first| first.row == row) {
            effects.due.push(std::cmp::Reverse((parked.due, self.at, order.clone())));
        }
    }

    /// The read has ended: it cannot return what was removed before.
    pub(super) fn read_ended(&mut self) {
        for row in std::mem::take(&mut self.removed) {
            self.forget(row);
        }
    }

    fn forget(&mut self, row: RowId) {
        self.known_bytes -= self.known.remove(&row).unwrap_or(0);
    }

    /// The rows to load of a parked key whose time has come. `most`: the lane's part of the memory. One row is
    /// loaded whatever its size, if no other is.
    pub(super) fn load(
        &mut self,
        order: &OrderKey,
        most: Capacity,
        now: Duration,
    ) -> Option<Vec<RowId>> {
        let mut held = self.held();
        let key = self.keys.get_mut(order)?;
        let parked = key.parked.as_mut()?;
        let first = parked.rows.front().filter(|first| first.is_moved)?;
        let is_loaded = first.payload.is_some();
        if key.in_flight.is_some() || parked.is_loading || is_loaded || parked.due > now {
            return None;
        }
        let mut rows = Vec::new();
        for of in parked.rows.iter().take(LOADED).take_while(|row| row.is_moved) {
            held.add(of.size);
            let has_room = held.rows <= most.rows && held.bytes <= most.bytes;
            if !has_room && (!rows.is_empty() || self.loaded.rows > 0) {
                break;
            }
            rows.push(of.row);
        }
        if rows.is_empty() {
            self.starved.push_front(order.clone());
            return None;
        }
        parked.is_loading = true;
        Some(rows)
    }

    /// `true` if a key waits for room to [load](Self::load).
    pub(super) fn has_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// A key that waits for room to [load](Self::load), if there may be some.
    pub(super) fn next_starved(&mut self, most: Capacity) -> Option<OrderKey> {
        let held = self.held();
        let has_room = held.rows < most.rows && held.bytes < most.bytes;
        if has_room || self.loaded.rows == 0 { self.starved.pop_front() } else { None }
    }

    /// The answer to [`load`](Self::load). A row that is missing is gone: somebody else removed it.
    pub(super) fn loaded(
        &mut self,
        order: &OrderKey,
        asked: &[RowId],
        mut rows: HashMap<RowId, P>,
        now: Duration,
        effects: &mut Effects,
    ) {
        let key = self.keys.get_mut(order);
        let Some(parked) = key.and_then(|key| key.parked.as_mut()) else { return };
        parked.is_loading = false;
        for parked in &mut parked.rows {
            if let Some(payload) = rows.remove(&parked.row)
                && parked.payload.replace(payload).is_none()
            {
                self.loaded.add(parked.size);
            }
        }
        parked.rows.retain(|of| of.payload.is_some() || !asked.contains(&of.row));
        // A late row may have come between them.
        if let Some(gap) = parked.rows.iter().position(|of| of.payload.is_none()) {
            unload(&mut parked.rows, gap, &mut self.loaded);
        }
        self.resume(order, now, effects);
    }

    /// The load failed, and is to be asked for again.
    pub(super) fn load_failed(&mut self, order: &OrderKey, effects: &mut Effects) {
        let key = self.keys.get_mut(order);
        let Some(parked) = key.and_then(|key| key.parked.as_mut()) else { return };
        parked.is_loading = false;
        effects.due.push(std::cmp::Reverse((parked.due, self.at, order.clone())));
    }

    fn attempts(&self, order: &OrderKey) -> u32 {
        let key = self.keys.get(order);
        key.and_then(|key| key.parked.as_ref()).map_or(0, |parked| parked.attempts)
    }

    /// `None` if another row of the key is in flight: this one is of an earlier ownership, whose epoch a
    /// failover took back.
    fn end_in_flight(&mut self, order: &OrderKey, row: RowId) -> Option<Table> {
        let key = self.keys.get_mut(order)?;
        let (_, table) = key.in_flight.take_if(|(of, _)| *of == row)?;
        self.in_flight -= 1;
        Some(table)
    }

    /// The row of the key is through, and the next one may go.
    fn next(
        &mut self,
        order: &OrderKey,
        row: RowId,
        table: Table,
        now: Duration,
        effects: &mut Effects,
    ) {
        let key = self.keys.get_mut(order);
        if let Some(parked) = key.and_then(|key| key.parked.as_mut())
            && table == Table::Parked
        {
            parked.rows.retain(|of| of.row != row);
            (parked.attempts, parked.recovers) = (0, true);
        }
        self.resume(order, now, effects);
    }

    fn resume(&mut self, order: &OrderKey, now: Duration, effects: &mut Effects) {
        let Some(key) = self.keys.get_mut(order) else { return };
        if let Some(parked) = &mut key.parked {
            match parked.rows.front() {
                None => key.parked = None,
                Some(first) if first.payload.is_none() => {
                    parked.due = parked.due.min(now);
                    effects.due.push(std::cmp::Reverse((parked.due, self.at, order.clone())));
                }
                Some(_) => {}
            }
        }
        if key.is_ready() {
            effects.ready.push_back((self.at, order.clone()));
        } else if key.parked.is_none() && key.in_flight.is_none() && key.waiting.is_empty() {
            self.keys.remove(order);
        }
    }
}

/// Drops the messages of the rows from the place `from` on.
fn unload<P>(rows: &mut VecDeque<ParkedRow<P>>, from: usize, loaded: &mut Capacity) {
    for of in rows.range_mut(from..) {
        if of.payload.take().is_some() {
            loaded.remove(of.size);
        }
    }
}

#[cfg(test)]
mod tests;
