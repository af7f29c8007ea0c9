//! A simulated relay: its lanes, and its statements that are under way.

use std::collections::HashMap;
use std::time::Duration;

use super::database::Database;
use crate::relay::effects::{Delete, LaneEpoch, LateRow, Load, Move, ReadAnswer, ReadStep, RowId};
use crate::relay::lane::{Backoff, Capacity, Entry, ParkedEntry};
use crate::relay::lanes::Lanes;

const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(20), longest: Duration::from_millis(100) };

pub(super) const CAPACITY: Capacity = Capacity { rows: 12, bytes: 48 };

/// A statement, sent to the database.
#[derive(Debug)]
enum Request {
    Read(ReadStep),
    Delete(Vec<Delete>, i64),
    Move(Vec<Move>),
    Load(Load),
    Heartbeat(i64),
    Take(usize),
    Parked(Vec<LaneEpoch>),
    Release(Vec<LaneEpoch>),
}

/// The answer of the database, on its way.
#[derive(Debug)]
enum Answer {
    Hot(ReadAnswer<Entry<i64>>),
    Ids(ReadAnswer<LateRow>),
    Rows(ReadAnswer<Entry<i64>>),
    Deleted(Vec<Delete>, u64, i64),
    Moved(Vec<Move>, Vec<i16>),
    Loaded(Load, HashMap<RowId, i64>),
    Owned(Vec<LaneEpoch>, u64, i64),
    Taken(Vec<LaneEpoch>),
    Parked(Vec<LaneEpoch>, Vec<ParkedEntry>),
    Released(Vec<LaneEpoch>),
    /// The connection broke, after the statement or instead of it.
    Lost(Request),
}

#[derive(Debug)]
pub(super) struct Relay {
    pub(super) number: usize,
    pub(super) lanes: Lanes<i64>,
    requests: Vec<Request>,
    answers: Vec<Answer>,
    /// Set while the membership statements run.
    is_ticking: bool,
    is_moving: bool,
    /// Set if what was read is to be forgotten once the running read ends.
    needs_reset: bool,
    share: usize,
}

impl Relay {
    pub(super) fn new(number: usize) -> Self {
        let lanes = Lanes::new(CAPACITY, BACKOFF, Duration::MAX);
        let (requests, answers) = (Vec::new(), Vec::new());
        Self {
            number,
            lanes,
            requests,
            answers,
            is_ticking: false,
            is_moving: false,
            needs_reset: false,
            share: 0,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.answers.is_empty() && self.lanes.in_flight() == 0
    }

    /// Sends the statements that are due. `share`: the lanes that it should own.
    pub(super) fn send(&mut self, choice: u64, share: usize, now: Duration) {
        self.share = share;
        match choice % 6 {
            0 => {
                let step = self.lanes.start_read();
                self.read(step);
            }
            1 => {
                let rows = self.lanes.take_deletes(4);
                if !rows.is_empty() {
                    self.requests.push(Request::Delete(rows, self.lanes.highest()));
                }
            }
            // One at a time, as the rows of a key are parked in order.
            2 if !self.is_moving => {
                let moves = self.lanes.take_moves(3);
                if !moves.is_empty() {
                    self.is_moving = true;
                    self.requests.push(Request::Move(moves));
                }
            }
            3 => self.requests.extend(self.lanes.next_load(now).map(Request::Load)),
            4 if !self.is_ticking => {
                self.is_ticking = true;
                self.requests.push(Request::Heartbeat(self.lanes.highest()));
            }
            5 => {
                self.lanes.wake();
                if choice.is_multiple_of(5) {
                    self.lanes.sweep();
                }
            }
            _ => {}
        }
    }

    fn read(&mut self, step: ReadStep) {
        if step != ReadStep::End {
            self.requests.push(Request::Read(step));
        } else if std::mem::take(&mut self.needs_reset) {
            self.lanes.reset();
        }
    }

    /// The database runs one of the statements. `breaks`: the connection breaks.
    pub(super) fn execute(
        &mut self,
        choice: u64,
        database: &mut Database,
        dead: &[usize],
        breaks: bool,
    ) {
        if self.requests.is_empty() {
            return;
        }
        let request = self.requests.swap_remove(choice as usize % self.requests.len());
        if breaks && choice.is_multiple_of(2) {
            self.answers.push(Answer::Lost(request));
            return;
        }
        let answer = match &request {
            Request::Read(ReadStep::Hot(reads)) => Answer::Hot(database.hot(self.number, reads)),
            Request::Read(ReadStep::Ids(ranges)) => Answer::Ids(database.ids(self.number, ranges)),
            Request::Read(ReadStep::Rows(rows)) => Answer::Rows(database.rows(self.number, rows)),
            Request::Read(ReadStep::End) => unreachable!(),
            Request::Delete(rows, highest) => {
                Answer::Deleted(rows.clone(), database.delete(rows), *highest)
            }
            Request::Move(moves) => {
                let owned = database.change(self.number, moves);
                Answer::Moved(moves.clone(), owned)
            }
            Request::Load(load) => Answer::Loaded(load.clone(), database.load(load)),
            Request::Heartbeat(highest) => {
                let xid = database.heartbeat();
                Answer::Owned(database.owned(self.number), xid, *highest)
            }
            Request::Take(count) => Answer::Taken(database.take(self.number, dead, *count)),
            Request::Parked(lanes) => Answer::Parked(lanes.clone(), database.parked_of(lanes)),
            Request::Release(lanes) => {
                database.release(self.number, lanes);
                Answer::Released(lanes.clone())
            }
        };
        self.answers.push(if breaks { Answer::Lost(request) } else { answer });
    }

    /// All connections break: no answer arrives any more.
    pub(super) fn disconnect(&mut self) {
        self.answers.extend(self.requests.drain(..).map(Answer::Lost));
        self.forget();
    }

    /// After an error nothing is known of what happened meanwhile.
    fn forget(&mut self) {
        match self.lanes.is_reading() {
            true => self.needs_reset = true,
            false => self.lanes.reset(),
        }
    }

    /// One of the answers arrives.
    pub(super) fn receive(&mut self, choice: u64, now: Duration) {
        if self.answers.is_empty() {
            return;
        }
        match self.answers.swap_remove(choice as usize % self.answers.len()) {
            Answer::Hot(answer) => {
                let step = self.lanes.hot_rows(answer);
                self.read(step);
            }
            Answer::Ids(answer) => {
                let step = self.lanes.late_ids(answer);
                self.read(step);
            }
            Answer::Rows(answer) => {
                let step = self.lanes.late_rows(answer);
                self.read(step);
            }
            Answer::Deleted(rows, xid, highest) => {
                self.lanes.mark(xid, highest);
                self.lanes.deleted(&rows);
            }
            Answer::Moved(moves, owned) => {
                self.is_moving = false;
                self.lanes.moved(&moves, &owned);
            }
            Answer::Loaded(load, rows) => self.lanes.loaded(&load, Some(rows), now),
            Answer::Owned(owned, xid, highest) => {
                self.lanes.mark(xid, highest);
                self.reconcile(&owned);
            }
            Answer::Taken(lanes) => self.requests.push(Request::Parked(lanes)),
            Answer::Parked(lanes, parked) => {
                self.lanes.take(lanes, parked, now);
                self.is_ticking = false;
            }
            Answer::Released(lanes) => {
                lanes.into_iter().for_each(|at| self.lanes.lose(at));
                self.is_ticking = false;
            }
            Answer::Lost(request) => self.lost(request, now),
        }
    }

    fn reconcile(&mut self, owned: &[LaneEpoch]) {
        let mine: Vec<_> = self.lanes.owned().collect();
        mine.iter().filter(|at| !owned.contains(at)).for_each(|at| self.lanes.lose(*at));
        let unknown: Vec<_> = owned.iter().copied().filter(|at| !mine.contains(at)).collect();
        let surplus = (owned.len() - self.lanes.draining()).saturating_sub(self.share);
        self.lanes.drain(surplus);
        let drained = self.lanes.drained();
        if !unknown.is_empty() {
            self.requests.push(Request::Parked(unknown));
        } else if !drained.is_empty() {
            self.requests.push(Request::Release(drained));
        } else if owned.len() < self.share {
            self.requests.push(Request::Take(self.share - owned.len()));
        } else {
            self.is_ticking = false;
        }
    }

    fn lost(&mut self, request: Request, now: Duration) {
        match request {
            Request::Read(_) => {
                self.needs_reset = false;
                self.lanes.reset();
            }
            Request::Delete(rows, _) => self.lanes.not_deleted(rows),
            Request::Move(moves) => {
                self.is_moving = false;
                self.lanes.not_moved(moves);
            }
            Request::Load(load) => self.lanes.loaded(&load, None, now),
            _ => self.is_ticking = false,
        }
        self.forget();
    }
}
