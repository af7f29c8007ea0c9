//! The books of one partition: what was handed in, what of it is finished, and so what may be committed.
//!
//! Everything that came before `next` and is not unfinished is finished. A commit carries what is finished
//! behind the watermark as ranges, so that a stop, a rebalance or a crash behind one slow record does not
//! bring the others again.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;
use cqrs_core::RetryState;

use super::commit_metadata::CommitMetadata;
use super::quarantine::{Activity, Head, Progress, Quarantine, Rule, Step};

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
    /// Where the partition goes on when everything is finished.
    next: i64,
    /// Finished in an earlier assignment: not to be handed out when they come.
    done: Vec<Range<i64>>,
    attempts: BTreeMap<i64, RetryState>,
    quarantine: Quarantine,
    /// Records below may be handed out.
    granted: i64,
    /// How many were ever finished.
    finished: u64,
    /// As in the [`CommitMetadata`].
    partitions: Option<i32>,
    /// Whether the group takes no metadata.
    is_bare: bool,
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
    /// What stands beside it. `None`: nothing, the group takes no metadata.
    pub(super) metadata: Option<CommitMetadata>,
    /// Records below may be handed out when it is committed.
    granted: i64,
    version: u64,
}

/// Where an assignment begins.
#[derive(Debug, Clone, Default)]
pub(super) struct Takeover {
    pub(super) position: i64,
    /// Where the log ended.
    pub(super) end: i64,
    /// Whether the group has no committed place there.
    pub(super) is_new: bool,
    pub(super) metadata: CommitMetadata,
}

impl Ledger {
    /// The books of an assignment. Nothing is handed out before its takeover commit, if it needs one.
    pub(super) fn new(takeover: Takeover, rule: Rule) -> Self {
        let Takeover { position, end, is_new, mut metadata } = takeover;
        if end < position {
            // The log was truncated: what comes at these offsets are other records.
            let partitions = metadata.partitions;
            metadata = CommitMetadata { partitions, ..CommitMetadata::default() };
        }
        let attempts = { metadata.attempts }.split_off(&position);
        let mut done = metadata.done;
        done.retain(|run| position < run.start && run.start < run.end);
        let needs_commit = is_new || rule.max_crashes > 0;
        let unclean = metadata.unclean;
        let is_done = |offset| contains(&done, offset);
        let quarantine = Quarantine::new(rule, position, end, unclean, is_done, Instant::now());
        Self {
            entries: VecDeque::new(),
            unfinished: 0,
            next: position,
            done,
            attempts,
            quarantine,
            granted: if needs_commit { i64::MIN } else { i64::MAX },
            finished: 0,
            partitions: metadata.partitions,
            is_bare: false,
            version: u64::from(needs_commit),
            committed: 0,
            closed: false,
        }
    }

    /// Takes in a fetched record. `false`: it is here already, unfinished, or was finished in an earlier
    /// assignment; do not hand it out.
    pub(super) fn add(&mut self, offset: i64) -> bool {
        if self.was_done(offset) {
            self.next = self.next.max(offset + 1);
            self.version += 1;
            return false;
        }
        let entry = Entry { offset, finished: false };
        if offset < self.next {
            // The partition went back: its log was truncated, or the position was reset.
            self.done.clear();
        }
        match self.entries.back() {
            Some(last) if last.offset >= offset => match self.find(offset) {
                Ok(at) if !self.entries[at].finished => return false,
                Ok(at) => self.entries[at].finished = false,
                Err(at) => self.entries.insert(at, entry),
            },
            _ => self.entries.push_back(entry),
        }
        self.unfinished += 1;
        self.next = offset + 1;
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
        self.finished += 1;
        self.quarantine.finish(offset);
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

    /// Whether a record that is to be taken in was finished in an earlier assignment.
    pub(super) fn was_done(&self, offset: i64) -> bool {
        offset >= self.next && contains(&self.done, offset)
    }

    /// What is finished behind the lowest unfinished one, and what will count as finished when it comes.
    fn finished(&self) -> Vec<Range<i64>> {
        let (position, next) = (self.position(), self.next);
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

    /// Everything before `position` was taken in: what is missing there are no records (control records of
    /// transactions, for example).
    pub(super) fn pass(&mut self, position: i64) {
        if !self.closed && position > self.next {
            self.next = position;
            self.version += 1;
        }
    }

    /// What may be committed: the lowest unfinished offset, or the one after the last when all are
    /// finished.
    pub(super) fn position(&self) -> i64 {
        self.entries.front().map_or(self.next, |lowest| lowest.offset.min(self.next))
    }

    /// Remembers the failed attempts at a record, which may run on.
    pub(super) fn note_attempts(&mut self, offset: i64, state: RetryState) {
        if !self.closed {
            self.attempts.insert(offset, state);
            self.version += 1;
        }
    }

    /// Remembers the failed attempts at a record, which is held for a later one.
    pub(super) fn hold(&mut self, offset: i64, key: Option<Bytes>, state: RetryState) {
        self.note_attempts(offset, state);
        if !self.closed {
            self.run_ended(offset, key);
        }
    }

    /// The run of a record ended, and it will run again.
    pub(super) fn run_ended(&mut self, offset: i64, key: Option<Bytes>) {
        self.quarantine.run_ended(offset, key);
        self.version += 1;
    }

    /// What is known of the attempts at a record.
    pub(super) fn attempts(&self, offset: i64) -> RetryState {
        let mut state = self.attempts.get(&offset).copied().unwrap_or_default();
        state.crashes = self.quarantine.crashes(offset);
        state
    }

    /// Whether anything is known of attempts.
    pub(super) fn has_attempts(&self) -> bool {
        !self.attempts.is_empty() || self.quarantine.has_crashes()
    }

    /// Records below may be handed out.
    pub(super) fn granted(&self) -> i64 {
        self.granted
    }

    /// Whether what is handed out depends on commits.
    pub(super) fn is_careful(&self) -> bool {
        self.quarantine.is_careful()
    }

    /// How many unclean ends there are in a row should this assignment have one.
    pub(super) fn unclean_ends(&self) -> u32 {
        self.quarantine.says().count
    }

    /// What its handlers do, of which `running` run.
    pub(super) fn activity(&self, running: usize) -> Activity {
        let begun = self.finished + (self.unfinished - self.queued(running)) as u64;
        Activity { running, begun }
    }

    /// How many records are handed out, and neither finished nor running nor held for a retry.
    fn queued(&self, running: usize) -> usize {
        self.unfinished.saturating_sub(self.attempts.len() + running)
    }

    /// Goes on with the quarantine; `running` handlers of the partition run, and `all` those of the
    /// subscription. Whether there is something to commit at once.
    pub(super) fn advance(
        &mut self,
        head: Option<&Head>,
        running: usize,
        all: Activity,
        now: Instant,
    ) -> bool {
        if self.closed || self.committed == 0 {
            return false;
        }
        let failed = head.and_then(|head| self.attempts.get(&head.offset));
        let progress = Progress {
            head_waits: failed.is_some_and(|failed| self.quarantine.waits(failed)),
            position: self.position(),
            next: self.next,
            queued: self.queued(running),
            all,
            begun: self.activity(running).begun,
        };
        match self.quarantine.advance(head, progress, self.granted, now) {
            Step::Wait => return false,
            Step::Commit => self.version += 1,
            Step::Grant(until) => self.granted = until,
        }
        true
    }

    /// The commit to make, if there is something new to say.
    pub(super) fn draft(&self) -> Option<Draft> {
        if self.version == self.committed {
            return None;
        }
        let metadata = (!self.is_bare).then(|| CommitMetadata {
            partitions: self.partitions,
            unclean: self.quarantine.says().clone(),
            attempts: self.attempts.clone(),
            done: self.finished(),
        });
        let granted = self.quarantine.grant();
        Some(Draft { position: self.position(), metadata, granted, version: self.version })
    }

    /// Closes the books: the last commit of this assignment, if one is needed. Nothing is finished
    /// from here on, though `running` handlers still run.
    pub(super) fn close(&mut self, running: usize) -> Option<Draft> {
        if !self.closed && self.quarantine.close(running) {
            self.version += 1;
        }
        self.closed = true;
        self.draft()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// A draft was committed.
    pub(super) fn committed(&mut self, draft: &Draft) {
        self.committed = self.committed.max(draft.version);
        self.granted = draft.granted;
        let said = draft.metadata.as_ref().map(|metadata| &metadata.unclean);
        self.quarantine.committed(said);
    }

    /// The group refuses commits like `draft`: nothing is counted and everything is handed out from here on.
    /// `is_bare`: it takes no metadata.
    pub(super) fn refused(&mut self, draft: &Draft, is_bare: bool) {
        self.quarantine.switch_off();
        self.is_bare |= is_bare;
        self.granted = i64::MAX;
        self.version = self.version.max(draft.version) + 1;
    }
}

/// Whether one of the ascending `runs` has it.
fn contains(runs: &[Range<i64>], offset: i64) -> bool {
    let after = runs.partition_point(|run| run.start <= offset);
    after > 0 && runs[after - 1].contains(&offset)
}

#[cfg(test)]
mod tests;
