//! The books of one partition: what was handed in, what of it is finished, and so what may be committed.
//!
//! # What is finished beyond the watermark
//! Everything that came before `next` and is not unfinished is finished. A commit carries these ranges, so
//! that a stop, a rebalance or a crash behind one slow record does not bring the others again.
//!
//! # Crashes
//! Kafka does not count deliveries. So that a record whose handling kills the process is found, every
//! commit carries a *fence*: no record at or behind it was handed out. The fence is moved, and committed,
//! before records behind it are handed out; the last commit of an assignment that ends in good order has
//! none. An assignment that finds one knows that the process before it died, and that what killed it, if a
//! record did, is an unfinished one before the fence: a *suspect*. With each death in a row that came
//! before the suspects were finished, the fence is kept nearer ([`stride`](Ledger::stride)), so that the
//! next death leaves fewer; at last they are handed out [alone](Ledger::start_alone), one after the other,
//! each start committed before it happens: what was started and never ended did it, and nothing else is
//! blamed. (A process that is killed twice by accident goes on at nearly full speed.)

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use cqrs_core::RetryState;

use super::note::Note;

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
    /// Grows with every change of what a commit would say.
    version: u64,
    /// The version that was committed last.
    committed: u64,
    /// Whether the books are closed: the assignment ended, nothing is finished any more.
    closed: bool,
    /// No record at or behind it is handed out before it is moved. `None`: nothing was handed out.
    fence: Option<i64>,
    /// The fence that is committed: it holds.
    fence_committed: i64,
    /// Records before it are suspects.
    suspects: i64,
    /// How often in a row the suspects' process died.
    unclean: u32,
    /// The suspect that is out alone, and the version that says so.
    alone: Option<(i64, u64)>,
}

/// How far the fence is ahead after the first and the second death in a row. After further ones, suspects
/// are handed out alone.
const STRIDES: [i64; 2] = [256, 16];
const ALONE_AFTER: u32 = STRIDES.len() as u32 + 1;

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
    version: u64,
}

impl Ledger {
    /// The books of an assignment that begins where `committed` says, with the attempts of `note`.
    pub(super) fn new(committed: Option<i64>, note: Note) -> Self {
        let mut attempts = note.attempts;
        let suspects = note.fence.filter(|fence| committed.is_some_and(|at| at < *fence));
        let unclean = suspects.map_or(0, |_| note.unclean.saturating_add(1));
        let mut done = note.done;
        if let Some(committed) = committed {
            attempts = attempts.split_off(&committed);
            done.retain(|run| committed < run.start && run.start < run.end);
        }
        Self {
            entries: VecDeque::new(),
            unfinished: 0,
            next: committed,
            done,
            attempts,
            // That there was one more death is to be committed before anything is handed out.
            version: u64::from(suspects.is_some()),
            committed: 0,
            closed: false,
            fence: suspects.filter(|_| unclean >= ALONE_AFTER),
            fence_committed: 0,
            suspects: suspects.unwrap_or(0),
            unclean,
            alone: None,
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
        if self.is_alone(offset) {
            self.alone = None;
        }
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

    fn was_done(&self, offset: i64) -> bool {
        let after = self.done.partition_point(|run| run.start <= offset);
        after > 0 && self.done[after - 1].contains(&offset)
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
        runs.extend(
            self.done.iter().filter(|run| run.end > next).map(|run| run.start.max(next)..run.end),
        );
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

    /// Remembers the attempts at a record.
    pub(super) fn note_attempts(&mut self, offset: i64, state: RetryState) {
        if !self.closed {
            self.end_alone(offset);
            self.attempts.insert(offset, state);
            self.version += 1;
        }
    }

    /// What is known of the attempts at a record, without the start that it is out for.
    pub(super) fn attempts(&self, offset: i64) -> RetryState {
        let mut state = self.attempts.get(&offset).copied().unwrap_or_default();
        if self.is_alone(offset) {
            state.crashes = state.crashes.saturating_sub(1);
        }
        state
    }

    /// Where the group begins, when nothing was ever committed: at its first record.
    pub(super) fn begin_at(&mut self, offset: i64) {
        self.next.get_or_insert(offset);
    }

    /// Moves the fence. It never goes back.
    pub(super) fn move_fence(&mut self, fence: i64) {
        if !self.closed && self.fence.is_none_or(|known| known < fence) {
            self.fence = Some(fence);
            self.version += 1;
        }
    }

    /// The fence that holds.
    pub(super) fn fence_committed(&self) -> i64 {
        self.fence_committed
    }

    /// How far the fence may be ahead of the next record, and until where that holds, after a death.
    pub(super) fn stride(&self) -> Option<(i64, i64)> {
        let deaths = usize::try_from(self.unclean).ok()?.checked_sub(1)?;
        Some((*STRIDES.get(deaths)?, self.suspects))
    }

    /// Until where records are handed out alone, if they are.
    pub(super) fn alone_until(&self) -> Option<i64> {
        (self.unclean >= ALONE_AFTER).then_some(self.suspects)
    }

    /// A suspect is about to be handed out alone: its start counts until it ends.
    pub(super) fn start_alone(&mut self, offset: i64) {
        if !self.closed {
            let state = self.attempts.entry(offset).or_default();
            state.crashes = state.crashes.saturating_add(1);
            self.version += 1;
            self.alone = Some((offset, self.version));
        }
    }

    /// Whether the start of the suspect that is out alone is committed.
    pub(super) fn alone_is_committed(&self) -> bool {
        self.alone.is_some_and(|(_, version)| self.committed >= version)
    }

    /// The start of a suspect came to an end that is not the process's: it does not count.
    pub(super) fn end_alone(&mut self, offset: i64) {
        if !self.is_alone(offset) {
            return;
        }
        self.alone = None;
        self.version += 1;
        if let Some(state) = self.attempts.get_mut(&offset) {
            state.crashes = state.crashes.saturating_sub(1);
            if *state == RetryState::default() {
                self.attempts.remove(&offset);
            }
        }
    }

    pub(super) fn is_alone(&self, offset: i64) -> bool {
        self.alone.is_some_and(|(alone, _)| alone == offset)
    }

    /// The suspects are cleared: none of them killed the process, as far as they came.
    pub(super) fn clear_suspects(&mut self) {
        if self.unclean > 0 {
            self.unclean = 0;
            self.version += 1;
        }
    }

    /// Whether anything is known of attempts.
    pub(super) fn has_attempts(&self) -> bool {
        !self.attempts.is_empty()
    }

    /// The commit to make, if there is something new to say.
    pub(super) fn draft(&self) -> Option<Draft> {
        if self.version == self.committed {
            return None;
        }
        let position = self.position()?;
        let unclean = if position < self.suspects { self.unclean } else { 0 };
        let fence = self.fence.filter(|fence| !self.closed && position < *fence);
        let unclean = if fence.is_some() { unclean } else { 0 };
        let note = Note { attempts: self.attempts.clone(), fence, done: self.finished(), unclean };
        Some(Draft { position, note, version: self.version })
    }

    /// Closes the books: the last commit of this assignment, if one is needed. Nothing is finished
    /// from here on.
    pub(super) fn close(&mut self) -> Option<Draft> {
        if self.closed {
            return None;
        }
        if let Some((offset, _)) = self.alone {
            self.end_alone(offset);
        }
        if self.fence.is_some() {
            // The last commit says that this is a good end.
            self.version += 1;
        }
        self.closed = true;
        self.draft()
    }

    /// A draft was committed.
    pub(super) fn committed(&mut self, draft: &Draft) {
        if self.committed <= draft.version {
            self.committed = draft.version;
            self.fence_committed = draft.note.fence.unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests;
