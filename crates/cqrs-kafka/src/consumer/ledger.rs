//! The books of one partition: what was handed in, what of it is finished, and so what may be committed.
//!
//! Everything that came before `next` and is not unfinished is finished. A commit carries what is finished
//! behind the watermark as ranges, so that a stop, a rebalance or a crash behind one slow record does not
//! bring the others again.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use cqrs_core::RetryState;

use super::note::Note;
use super::watch::{Former, Watch};

/// The lowest unfinished offset of a partition, and what is known of attempts at unfinished records.
///
/// A pure data structure. Its size is bounded by the records that are unfinished, however far they are
/// apart: finished ones are forgotten, in batches.
///
/// Invariants: `entries` ascends by offset; its first one is unfinished; `unfinished` counts those that
/// are; every offset in `attempts` is unfinished, or was not handed in yet.
#[derive(Debug)]
pub(super) struct Ledger {
    entries: VecDeque<Entry>,
    unfinished: usize,
    /// Where the partition goes on when everything is finished. `None` until that is known.
    next: Option<i64>,
    /// Finished in an earlier assignment: not to be handed out when they come.
    done: Vec<Range<i64>>,
    attempts: BTreeMap<i64, RetryState>,
    watch: Watch,
    /// Grows with every change of what a commit would say.
    version: u64,
    /// The version that was committed last.
    committed: u64,
    /// Whether the books are closed: the assignment ended, nothing is finished any more.
    closed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: i64,
    finished: bool,
}

/// A commit to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Draft {
    /// The offset to go on with.
    pub(super) position: i64,
    /// What stands beside it.
    pub(super) note: Note,
    /// How far a grant is asked for with it.
    asked: Option<i64>,
    version: u64,
}

/// How it stands with grants and suspects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    /// Records before may be suspect.
    pub(super) suspects_until: Option<i64>,
    /// Whether no record runs for the first time.
    pub(super) is_quiet: bool,
    /// Whether a grant was asked for that is not committed.
    pub(super) is_asking: bool,
    /// Whether the committed note may have a name.
    pub(super) is_named: bool,
    /// Whether suspects that outlasted the patience run on.
    pub(super) has_strays: bool,
    pub(super) patience: Duration,
}

impl Ledger {
    /// The books of an assignment of this process that follows `former` on the partition, if there was one
    /// of which nobody else knows better. `end`: nothing at it and behind was there to be started.
    pub(super) fn following(
        former: Option<Former>,
        committed: Option<i64>,
        mut note: Note,
        end: Option<i64>,
    ) -> Self {
        let found = note.noted.clone();
        if let Some(former) = former {
            note.noted = former.acquit(note.noted);
        }
        if let Some(end) = end {
            note.noted.bound(end);
        }
        let mut ledger = Self::new(committed, note);
        // It stays there until the next commit, however often the membership is lost before.
        ledger.watch.found(found);
        ledger
    }

    /// The books of an assignment that begins where `committed` says, with the attempts of `note`.
    pub(super) fn new(committed: Option<i64>, note: Note) -> Self {
        let mut attempts = note.attempts;
        let mut done = note.done;
        if let Some(committed) = committed {
            attempts = attempts.split_off(&committed);
            done.retain(|run| committed < run.start && run.start < run.end);
        }
        let is_done = |offset| contains(&done, offset);
        let watch = Watch::new(committed, note.noted, is_done);
        Self {
            entries: VecDeque::new(),
            unfinished: 0,
            next: committed,
            done,
            attempts,
            version: u64::from(watch.is_named()),
            watch,
            committed: 0,
            closed: false,
        }
    }

    /// Takes in a fetched record. `false`: it is here already, unfinished, or was finished in an earlier
    /// assignment; do not hand it out.
    pub(super) fn add(&mut self, offset: i64) -> bool {
        if self.was_done(offset) {
            self.next = Some(self.next.map_or(offset + 1, |next| next.max(offset + 1)));
            self.version += 1;
            return false;
        }
        let entry = Entry { offset, finished: false };
        match self.entries.back() {
            Some(last) if last.offset >= offset => {
                // The partition went back: its log was truncated, or the position was reset.
                self.done.clear();
                match self.find(offset) {
                    Ok(at) if !self.entries[at].finished => return false,
                    Ok(at) => self.entries[at].finished = false,
                    Err(at) => self.entries.insert(at, entry),
                }
            }
            _ => self.entries.push_back(entry),
        }
        self.unfinished += 1;
        self.next = Some(offset + 1);
        true
    }

    /// Marks a record as finished. `false`: that does not count, the assignment is over (or the record
    /// is not known).
    pub(super) fn finish(&mut self, offset: i64) -> bool {
        if self.closed {
            return false;
        }
        let Ok(at) = self.find(offset) else { return false };
        if self.entries[at].finished {
            return false;
        }
        self.entries[at].finished = true;
        self.unfinished -= 1;
        self.version += 1;
        if !self.attempts.is_empty() {
            self.attempts.remove(&offset);
        }
        self.watch.finish(offset);
        if at == 0 {
            while self.entries.front().is_some_and(|entry| entry.finished) {
                self.entries.pop_front();
            }
        }
        if self.entries.len() > 2 * self.unfinished + 64 {
            self.entries.retain(|entry| !entry.finished);
        }
        true
    }

    /// Whether a record was finished in an earlier assignment.
    pub(super) fn was_done(&self, offset: i64) -> bool {
        contains(&self.done, offset)
    }

    /// What is finished behind the lowest unfinished one, and what will count as finished when it comes.
    fn finished(&self) -> Vec<Range<i64>> {
        let (Some(position), Some(next)) = (self.position(), self.next) else { return Vec::new() };
        let mut runs = Vec::new();
        let mut start = position;
        let open = self.entries.iter().filter(|entry| !entry.finished).map(|entry| entry.offset);
        for open in open.filter(|open| *open < next).chain([next]) {
            if start < open {
                runs.push(start..open);
            }
            start = open + 1;
        }
        let to_come = self.done.iter().filter(|run| run.end > next);
        runs.extend(to_come.map(|run| run.start.max(next)..run.end));
        runs
    }

    fn find(&self, offset: i64) -> Result<usize, usize> {
        // Most partitions have no gaps.
        let front = self.entries.front().ok_or(0_usize)?;
        let guess = usize::try_from(offset - front.offset).unwrap_or(0);
        if self.entries.get(guess).is_some_and(|entry| entry.offset == offset) {
            return Ok(guess);
        }
        self.entries.binary_search_by_key(&offset, |entry| entry.offset)
    }

    /// What may be committed: the lowest unfinished offset, or the one after the last when all are
    /// finished.
    pub(super) fn position(&self) -> Option<i64> {
        let next = self.next?;
        Some(self.entries.front().map_or(next, |lowest| lowest.offset.min(next)))
    }

    /// Remembers the failed attempts at a record, which may run on.
    pub(super) fn note_attempts(&mut self, offset: i64, state: RetryState) {
        if !self.closed {
            self.attempts.insert(offset, state);
            self.version += 1;
        }
    }

    /// Remembers the failed attempts at a record, which is held for a later one.
    pub(super) fn hold(&mut self, offset: i64, state: RetryState) {
        self.note_attempts(offset, state);
        if !self.closed && self.is_unfinished(offset) {
            self.watch.hold(offset);
        }
    }

    /// A record whose handler ran is given back.
    pub(super) fn rest(&mut self, offset: i64) {
        if !self.closed && self.is_unfinished(offset) {
            self.watch.rest(offset);
            self.version += 1;
        }
    }

    fn is_unfinished(&self, offset: i64) -> bool {
        self.find(offset).is_ok_and(|at| !self.entries[at].finished)
    }

    /// What is known of the attempts at a record.
    pub(super) fn attempts(&self, offset: i64) -> RetryState {
        let mut state = self.attempts.get(&offset).copied().unwrap_or_default();
        state.crashes = self.watch.crashes(offset);
        state
    }

    /// Whether anything is known of attempts.
    pub(super) fn has_attempts(&self) -> bool {
        !self.attempts.is_empty() || self.watch.has_crashes()
    }

    /// Asks for a grant of `head` and some behind it; it is given with the next commit. A suspect alone is
    /// named when it `may_name`. Returns up to where.
    pub(super) fn ask(&mut self, head: i64, may_name: bool) -> i64 {
        self.next.get_or_insert(head);
        self.version += 1;
        self.watch.ask(head, may_name, self.version)
    }

    /// Records below may be handed out.
    pub(super) fn granted(&self) -> i64 {
        self.watch.granted()
    }

    /// A handler starts with a record.
    pub(super) fn begin(&mut self, offset: i64) {
        self.watch.begin(offset);
    }

    /// Does not wait for suspects that run any more.
    pub(super) fn outlast(&mut self) {
        let open = self.entries.iter().filter(|entry| !entry.finished).map(|entry| entry.offset);
        self.watch.outlast(open);
        self.version += 1;
    }

    pub(super) fn view(&self) -> View {
        View {
            suspects_until: self.watch.suspects_until(),
            is_quiet: self.unfinished <= self.watch.rested(),
            is_asking: self.watch.is_asking(),
            is_named: self.watch.is_named(),
            has_strays: self.watch.has_strays(),
            patience: self.watch.patience(),
        }
    }

    /// The commit to make, if there is something new to say.
    pub(super) fn draft(&self) -> Option<Draft> {
        if self.version == self.committed {
            return None;
        }
        let position = self.position()?;
        let noted = self.watch.note(position);
        let note = Note { noted, attempts: self.attempts.clone(), done: self.finished() };
        Some(Draft { position, note, asked: self.watch.asked(), version: self.version })
    }

    /// Closes the books: the last commit of this assignment, if one is needed. Nothing is finished
    /// from here on.
    pub(super) fn close(&mut self) -> Option<Draft> {
        if !self.closed && self.watch.close() {
            self.version += 1;
        }
        self.closed = true;
        self.draft()
    }

    /// What is to be remembered when they are closed.
    pub(super) fn former(&self) -> Former {
        self.watch.former()
    }

    /// A draft was committed.
    pub(super) fn committed(&mut self, draft: &Draft) {
        self.committed = self.committed.max(draft.version);
        self.watch.committed(draft.asked, &draft.note.noted, draft.version);
    }
}

/// Whether one of the ascending `runs` has it.
fn contains(runs: &[Range<i64>], offset: i64) -> bool {
    let after = runs.partition_point(|run| run.start <= offset);
    after > 0 && runs[after - 1].contains(&offset)
}

#[cfg(test)]
mod tests;
