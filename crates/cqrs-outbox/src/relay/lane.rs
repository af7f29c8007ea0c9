//! The rows of one owned lane: waiting, in flight, parked, or awaiting their removal.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::effects::{Effects, LaneEpoch, Move, OrderKey, RowId, Table, Target};

/// A row that was read. `P` is the message.
#[derive(Debug)]
pub(super) struct Entry<P> {
    pub(super) id: i64,
    pub(super) order: OrderKey,
    pub(super) payload: P,
}

/// A parked row, as it is known without its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ParkedEntry {
    pub(super) lane: i16,
    pub(super) id: i64,
    pub(super) order: OrderKey,
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

impl Backoff {
    fn after(self, attempts: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
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
    /// Rows of the table that wait, are in flight, or whose removal is not through.
    known: HashSet<i64>,
    /// Removed while a read ran, which may still return them.
    removed: Vec<i64>,
    keys: HashMap<OrderKey, Key<P>>,
    in_flight: usize,
    /// Statements about this lane that are not through: deletes and moves.
    statements: usize,
    /// Messages of parked rows in memory.
    loaded: usize,
}

#[derive(Debug)]
struct Key<P> {
    /// In order of their ids.
    waiting: VecDeque<(i64, P)>,
    in_flight: Option<(i64, Table)>,
    parked: Option<Parked<P>>,
}

/// The parked rows of a key. The rows that are read meanwhile are parked, too, unless it recovers.
#[derive(Debug)]
struct Parked<P> {
    rows: VecDeque<ParkedRow<P>>,
    /// Failed attempts of the first row.
    attempts: u32,
    due: Duration,
    is_loading: bool,
    /// Set if its last attempt succeeded: rows that are read now wait in memory, behind the parked ones.
    recovers: bool,
}

#[derive(Debug)]
struct ParkedRow<P> {
    id: i64,
    payload: Option<P>,
    /// Unset while the statement that parks it is not through.
    is_moved: bool,
}

impl<P> Key<P> {
    fn new() -> Self {
        Self { waiting: VecDeque::new(), in_flight: None, parked: None }
    }

    /// Takes the first row, if it is in memory.
    fn pop(&mut self) -> Option<(i64, Table, P)> {
        let Some(parked) = &mut self.parked else {
            return self.waiting.pop_front().map(|(id, payload)| (id, Table::Pending, payload));
        };
        let first = parked.rows.front_mut()?;
        first.payload.take().map(|payload| (first.id, Table::Parked, payload))
    }

    fn is_ready(&self) -> bool {
        let has_first = match &self.parked {
            Some(parked) => parked.rows.front().is_some_and(|first| first.payload.is_some()),
            None => !self.waiting.is_empty(),
        };
        has_first && self.in_flight.is_none()
    }

    fn insert_waiting(&mut self, id: i64, payload: P) {
        let place = self.waiting.partition_point(|(other, _)| *other < id);
        self.waiting.insert(place, (id, payload));
    }
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
            known: HashSet::new(),
            removed: Vec::new(),
            keys: HashMap::new(),
            in_flight: 0,
            statements: 0,
            loaded: 0,
        };
        for ParkedEntry { id, order, attempts, due_in, .. } in parked {
            let key = lane.keys.entry(order.clone()).or_insert_with(Key::new);
            let due = now + due_in;
            let parked = key.parked.get_or_insert_with(|| {
                effects.due.push(std::cmp::Reverse((due, at, order)));
                Parked { rows: VecDeque::new(), attempts, due, is_loading: false, recovers: false }
            });
            parked.rows.push_back(ParkedRow { id, payload: None, is_moved: true });
        }
        lane
    }

    /// Rows in memory, and rows whose removal is not through.
    pub(super) fn held(&self) -> usize {
        self.known.len() + self.loaded
    }

    pub(super) fn knows(&self, id: i64) -> bool {
        self.known.contains(&id)
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
        let Entry { id, order, payload } = entry;
        if !self.known.insert(id) {
            return;
        }
        let key = self.keys.entry(order.clone()).or_insert_with(Key::new);
        match &mut key.parked {
            Some(parked) if !parked.recovers => {
                self.statements += 1;
                follow(self.at, id, order, parked, effects);
            }
            _ => {
                let was_ready = key.is_ready();
                key.insert_waiting(id, payload);
                if !was_ready && key.is_ready() {
                    effects.ready.push_back((self.at, order));
                }
            }
        }
    }

    /// Takes the first row of a key for its publish.
    pub(super) fn start(&mut self, order: &OrderKey) -> Option<(i64, Table, P)> {
        let key = self.keys.get_mut(order).filter(|key| key.is_ready())?;
        let (id, table, payload) = key.pop()?;
        key.in_flight = Some((id, table));
        self.in_flight += 1;
        self.loaded -= usize::from(table == Table::Parked);
        Some((id, table, payload))
    }

    /// The row in flight of the key is confirmed.
    pub(super) fn confirmed(&mut self, order: &OrderKey, now: Duration, effects: &mut Effects) {
        let Some((id, table)) = self.end_in_flight(order) else { return };
        self.statements += 1;
        effects.deletes.push((RowId { lane: self.at, id }, table));
        self.next(order, id, table, now, effects);
    }

    /// The row in flight of the key goes to the dead rows.
    pub(super) fn refused(
        &mut self,
        order: &OrderKey,
        error: Arc<str>,
        now: Duration,
        effects: &mut Effects,
    ) {
        let attempts = self.attempts(order) + 1;
        let Some((id, table)) = self.end_in_flight(order) else { return };
        self.statements += 1;
        let row = RowId { lane: self.at, id };
        let order_of = order.clone();
        let to = Target::Dead;
        effects.moves.push(Move { row, order: order_of, from: table, to, attempts, error });
        self.next(order, id, table, now, effects);
    }

    /// The row in flight of the key was not published, and is the first of its key again.
    pub(super) fn returned(&mut self, order: &OrderKey, payload: P, effects: &mut Effects) {
        let Some((id, table)) = self.end_in_flight(order) else { return };
        let Some(key) = self.keys.get_mut(order) else { return };
        match (table, &mut key.parked) {
            (Table::Parked, Some(parked)) => {
                if let Some(first) = parked.rows.front_mut().filter(|first| first.id == id) {
                    first.payload = Some(payload);
                    self.loaded += 1;
                }
            }
            _ => key.insert_waiting(id, payload),
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
        error: Arc<str>,
        backoff: Backoff,
        now: Duration,
        effects: &mut Effects,
    ) {
        let attempts = self.attempts(order) + 1;
        let Some((id, table)) = self.end_in_flight(order) else { return };
        let Some(key) = self.keys.get_mut(order) else { return };
        let delay = backoff.after(attempts);
        let due = now + delay;
        let parked = key.parked.get_or_insert_with(|| Parked {
            rows: VecDeque::new(),
            attempts,
            due,
            is_loading: false,
            recovers: false,
        });
        (parked.attempts, parked.due, parked.recovers) = (attempts, due, false);
        if table == Table::Pending {
            parked.rows.push_front(ParkedRow { id, payload: None, is_moved: false });
        }
        for row in &mut parked.rows {
            self.loaded -= usize::from(row.payload.take().is_some());
        }
        let (row, to) = (RowId { lane: self.at, id }, Target::Parked(delay));
        effects.moves.push(Move { row, order: order.clone(), from: table, to, attempts, error });
        self.statements += 1 + key.waiting.len();
        for (id, _) in key.waiting.drain(..) {
            follow(self.at, id, order.clone(), parked, effects);
        }
        effects.due.push(std::cmp::Reverse((due, self.at, order.clone())));
    }

    /// The statement about a row is through. `is_reading`: a read runs that may still return the row.
    pub(super) fn removed(&mut self, id: i64, table: Table, is_reading: bool) {
        self.statements = self.statements.saturating_sub(1);
        if table == Table::Parked {
            return;
        }
        match is_reading {
            true => self.removed.push(id),
            false => drop(self.known.remove(&id)),
        }
    }

    /// The statement that parked a row is through: it may be loaded.
    pub(super) fn moved(&mut self, order: &OrderKey, id: i64, effects: &mut Effects) {
        let key = self.keys.get_mut(order);
        let Some(parked) = key.and_then(|key| key.parked.as_mut()) else { return };
        for row in parked.rows.iter_mut().filter(|row| row.id == id) {
            row.is_moved = true;
        }
        if parked.rows.front().is_some_and(|first| first.id == id) {
            effects.due.push(std::cmp::Reverse((parked.due, self.at, order.clone())));
        }
    }

    /// The read has ended: it cannot return what was removed before.
    pub(super) fn read_ended(&mut self) {
        for id in self.removed.drain(..) {
            self.known.remove(&id);
        }
    }

    /// The rows to load of a parked key whose time has come.
    pub(super) fn load(&mut self, order: &OrderKey, now: Duration) -> Option<Vec<i64>> {
        let key = self.keys.get_mut(order)?;
        let parked = key.parked.as_mut()?;
        let first_is_loaded = parked.rows.front().is_some_and(|first| first.payload.is_some());
        if key.in_flight.is_some() || parked.is_loading || first_is_loaded || parked.due > now {
            return None;
        }
        let moved = parked.rows.iter().take(LOADED).take_while(|row| row.is_moved);
        let ids: Vec<_> = moved.map(|row| row.id).collect();
        parked.is_loading = !ids.is_empty();
        (!ids.is_empty()).then_some(ids)
    }

    /// The answer to [`load`](Self::load). A row that is missing is gone: somebody else removed it.
    pub(super) fn loaded(
        &mut self,
        order: &OrderKey,
        asked: &[i64],
        mut rows: HashMap<i64, P>,
        now: Duration,
        effects: &mut Effects,
    ) {
        let key = self.keys.get_mut(order);
        let Some(parked) = key.and_then(|key| key.parked.as_mut()) else { return };
        parked.is_loading = false;
        for row in &mut parked.rows {
            if let Some(payload) = rows.remove(&row.id) {
                self.loaded += usize::from(row.payload.replace(payload).is_none());
            }
        }
        parked.rows.retain(|row| row.payload.is_some() || !asked.contains(&row.id));
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

    fn end_in_flight(&mut self, order: &OrderKey) -> Option<(i64, Table)> {
        let ended = self.keys.get_mut(order)?.in_flight.take()?;
        self.in_flight -= 1;
        Some(ended)
    }

    /// The row of the key is through, and the next one may go.
    fn next(
        &mut self,
        order: &OrderKey,
        id: i64,
        table: Table,
        now: Duration,
        effects: &mut Effects,
    ) {
        let key = self.keys.get_mut(order);
        if let Some(parked) = key.and_then(|key| key.parked.as_mut())
            && table == Table::Parked
        {
            parked.rows.retain(|row| row.id != id);
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

/// Parks a row behind the other rows of its key.
fn follow<P>(
    at: LaneEpoch,
    id: i64,
    order: OrderKey,
    parked: &mut Parked<P>,
    effects: &mut Effects,
) {
    let place = parked.rows.iter().rposition(|row| row.id < id).map_or(0, |place| place + 1);
    parked.rows.insert(place, ParkedRow { id, payload: None, is_moved: false });
    effects.moves.push(Move {
        row: RowId { lane: at, id },
        order,
        from: Table::Pending,
        to: Target::Parked(Duration::ZERO),
        attempts: 0,
        error: "waits for an earlier row of its key".into(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_row_before_the_row_in_flight_is_loaded() {
        let (at, now) = (LaneEpoch { lane: 0, epoch: 1 }, Duration::ZERO);
        let order = OrderKey::Key { topic: "t".into(), key: "k".into() };
        let due_in = Duration::ZERO;
        let parked = ParkedEntry { lane: 0, id: 5, order: order.clone(), attempts: 1, due_in };
        let mut effects = Effects::default();
        let mut lane = Lane::new(at, vec![parked], now, &mut effects);
        assert_eq!(lane.load(&order, now), Some(vec![5]));
        lane.loaded(&order, &[5], HashMap::from([(5, 5)]), now, &mut effects);
        assert_eq!(lane.start(&order), Some((5, Table::Parked, 5)));
        lane.admit(Entry { id: 3, order: order.clone(), payload: 3 }, &mut effects);
        lane.removed(3, Table::Pending, false);
        lane.moved(&order, 3, &mut effects);
        effects.due.clear();
        lane.returned(&order, 5, &mut effects);
        let Some(std::cmp::Reverse((_, _, due))) = effects.due.pop() else { panic!("a stall") };
        assert_eq!(lane.load(&due, now), Some(vec![3, 5]));
    }
}
