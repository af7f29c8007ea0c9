//! The offset tracker of one partition: which records are unfinished, and so what may be committed. Owned by the
//! [`partition`](super::partition).
//!
//! Every offset below `next` that is not unfinished is finished. A commit carries the finished records behind the
//! committed offset as ranges, so that they are not redelivered after a stop, a rebalance or a crash behind one slow
//! record.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;
use cqrs_core::consume::RetryState;

use super::commit_metadata::CommitMetadata;
use super::quarantine::{Activity, NextRecord, Progress, Quarantine, QuarantineOptions, Step};

/// The unfinished records of a partition, and the attempts at them.
///
/// A pure data structure. Its size is bounded by the number of unfinished records, however far apart their offsets
/// are: finished entries are removed in batches.
///
/// Invariants: `entries` ascends by offset; its first entry is unfinished; `unfinished` counts the unfinished entries;
/// every offset in `attempts` is unfinished, or was not added yet.
#[derive(Debug)]
pub(super) struct OffsetTracker {
    entries: VecDeque<Entry>,
    unfinished: usize,
    /// The offset to commit when all records are finished.
    next: i64,
    /// Records that were finished in an earlier assignment, and are not delivered when they are fetched.
    done: Vec<Range<i64>>,
    attempts: BTreeMap<i64, RetryState>,
    quarantine: Quarantine,
    /// Records below this offset may be delivered.
    delivery_limit: i64,
    /// The number of records finished so far.
    finished: u64,
    /// As in the [`CommitMetadata`].
    partitions: Option<i32>,
    /// Set if the group refuses metadata.
    refuses_metadata: bool,
    /// Grows with every change of the next commit.
    version: u64,
    /// The version that was committed last.
    committed: u64,
    /// Set when the assignment ended: no record is finished any more.
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
    /// The offset to commit.
    pub(super) position: i64,
    /// `None`: the group refuses metadata.
    pub(super) metadata: Option<CommitMetadata>,
    /// Records below this offset may be delivered once the draft is committed.
    delivery_limit: i64,
    version: u64,
}

/// The start of an assignment.
#[derive(Debug, Clone, Default)]
pub(super) struct Takeover {
    pub(super) position: i64,
    /// The end of the log.
    pub(super) end: i64,
    /// Set if the group has no committed offset for the partition.
    pub(super) is_new: bool,
    pub(super) metadata: CommitMetadata,
}

impl OffsetTracker {
    /// The tracker of an assignment. Nothing is delivered before its takeover commit, if it needs one.
    pub(super) fn new(takeover: Takeover, options: QuarantineOptions) -> Self {
        let Takeover { position, end, is_new, mut metadata } = takeover;
        if end < position {
            // The log was truncated: these offsets belong to other records now.
            let partitions = metadata.partitions;
            metadata = CommitMetadata { partitions, ..CommitMetadata::default() };
        }
        let attempts = { metadata.attempts }.split_off(&position);
        let mut done = metadata.done;
        done.retain(|run| position < run.start && run.start < run.end);
        let needs_commit = is_new || options.max_crashes > 0;
        let unclean = metadata.unclean;
        let is_done = |offset| contains(&done, offset);
        let quarantine = Quarantine::new(options, position, end, unclean, is_done, Instant::now());
        Self {
            entries: VecDeque::new(),
            unfinished: 0,
            next: position,
            done,
            attempts,
            quarantine,
            delivery_limit: if needs_commit { i64::MIN } else { i64::MAX },
            finished: 0,
            partitions: metadata.partitions,
            refuses_metadata: false,
            version: u64::from(needs_commit),
            committed: 0,
            closed: false,
        }
    }

    /// Adds a fetched record. `false`: do not deliver it. It is unfinished already, or was finished in an earlier
    /// assignment.
    pub(super) fn add(&mut self, offset: i64) -> bool {
        if self.was_done(offset) {
            self.next = self.next.max(offset + 1);
            self.version += 1;
            return false;
        }
        let entry = Entry { offset, finished: false };
        if offset < self.next {
            // The log was truncated, or the position was reset.
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

    /// Marks a record as finished. `false`: the assignment is over, or the record is not known.
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

    /// Returns whether a fetched record was finished in an earlier assignment.
    pub(super) fn was_done(&self, offset: i64) -> bool {
        offset >= self.next && contains(&self.done, offset)
    }

    /// The finished records behind the lowest unfinished one, those of earlier assignments included.
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
        // Most partitions have no gaps, so the index is known.
        let front = self.entries.front().ok_or(0_usize)?;
        let guess = usize::try_from(offset - front.offset).unwrap_or(0);
        if self.entries.get(guess).is_some_and(|entry| entry.offset == offset) {
            return Ok(guess);
        }
        self.entries.binary_search_by_key(&offset, |entry| entry.offset)
    }

    /// All records before `position` were added: missing offsets belong to no records (but to control records of
    /// transactions, for example).
    pub(super) fn pass(&mut self, position: i64) {
        if !self.closed && position > self.next {
            self.next = position;
            self.version += 1;
        }
    }

    /// The offset to commit: the lowest unfinished one, or the one after the last record when all are finished.
    pub(super) fn position(&self) -> i64 {
        self.entries.front().map_or(self.next, |lowest| lowest.offset.min(self.next))
    }

    /// Records the failed attempts at a record whose handler may still run.
    pub(super) fn note_attempts(&mut self, offset: i64, state: RetryState) {
        if !self.closed {
            self.attempts.insert(offset, state);
            self.version += 1;
        }
    }

    /// Records the failed attempts at a record that is held for a later attempt.
    pub(super) fn hold(&mut self, offset: i64, key: Option<Bytes>, state: RetryState) {
        self.note_attempts(offset, state);
        if !self.closed {
            self.run_ended(offset, key);
        }
    }

    /// A run of a record ended, and the record will run again.
    pub(super) fn run_ended(&mut self, offset: i64, key: Option<Bytes>) {
        self.quarantine.run_ended(offset, key);
        self.version += 1;
    }

    /// The earlier attempts at a record, as far as they are known.
    pub(super) fn attempts(&self, offset: i64) -> RetryState {
        let mut state = self.attempts.get(&offset).copied().unwrap_or_default();
        state.crashes = self.quarantine.crashes(offset);
        state
    }

    /// Returns whether earlier attempts at any record are known.
    pub(super) fn has_attempts(&self) -> bool {
        !self.attempts.is_empty() || self.quarantine.has_crashes()
    }

    /// Records below this offset may be delivered.
    pub(super) fn delivery_limit(&self) -> i64 {
        self.delivery_limit
    }

    /// Returns whether delivery depends on commits.
    pub(super) fn is_limited(&self) -> bool {
        self.quarantine.is_limited()
    }

    /// The number of unclean ends in a row if this assignment has one too.
    pub(super) fn unclean_ends(&self) -> u32 {
        self.quarantine.unclean().count
    }

    /// The activity of the partition's handlers, of which `running` run.
    pub(super) fn activity(&self, running: usize) -> Activity {
        let started = self.finished + (self.unfinished - self.queued(running)) as u64;
        Activity { running, started }
    }

    /// The number of records delivered that are neither finished nor running nor held for a retry.
    fn queued(&self, running: usize) -> usize {
        self.unfinished.saturating_sub(self.attempts.len() + running)
    }

    /// Advances the quarantine. `next` is the next record to be delivered, `running` counts the partition's handlers,
    /// `all` is the activity of the subscription. Returns whether a commit is urgent.
    pub(super) fn advance(
        &mut self,
        next: Option<&NextRecord>,
        running: usize,
        all: Activity,
        now: Instant,
    ) -> bool {
        if self.closed || self.committed == 0 {
            return false;
        }
        let failed = next.and_then(|next| self.attempts.get(&next.offset));
        let progress = Progress {
            now,
            position: self.position(),
            next_offset: self.next,
            next,
            next_waits: failed.is_some_and(|failed| self.quarantine.waits(failed)),
            delivery_limit: self.delivery_limit,
            queued: self.queued(running),
            started: self.activity(running).started,
            all,
        };
        match self.quarantine.advance(&progress) {
            Step::Wait => return false,
            Step::Commit => self.version += 1,
            Step::Deliver(until) => self.delivery_limit = until,
        }
        true
    }

    /// The next commit, if it differs from the last one.
    pub(super) fn draft(&self) -> Option<Draft> {
        if self.version == self.committed {
            return None;
        }
        let metadata = (!self.refuses_metadata).then(|| CommitMetadata {
            partitions: self.partitions,
            unclean: self.quarantine.unclean().clone(),
            attempts: self.attempts.clone(),
            done: self.finished(),
        });
        let delivery_limit = self.quarantine.delivery_limit();
        Some(Draft { position: self.position(), metadata, delivery_limit, version: self.version })
    }

    /// Ends the assignment, while `running` handlers still run. Returns its last commit, if one is needed. No record
    /// is finished from here on.
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
        self.delivery_limit = draft.delivery_limit;
        let unclean = draft.metadata.as_ref().map(|metadata| &metadata.unclean);
        self.quarantine.committed(unclean);
    }

    /// The group refuses commits like `draft`: from here on no crashes are counted, and delivery has no limit.
    /// `refuses_metadata`: the group refuses metadata.
    pub(super) fn refused(&mut self, draft: &Draft, refuses_metadata: bool) {
        self.quarantine.switch_off();
        self.refuses_metadata |= refuses_metadata;
        self.delivery_limit = i64::MAX;
        self.version = self.version.max(draft.version) + 1;
    }
}

/// Returns whether one of the ascending `runs` contains the offset.
fn contains(runs: &[Range<i64>], offset: i64) -> bool {
    let after = runs.partition_point(|run| run.start <= offset);
    after > 0 && runs[after - 1].contains(&offset)
}

#[cfg(test)]
mod tests;
