//! Quarantine: which records of a partition may be handed out after its consumer's process died, and which
//! one is counted when it dies again. Part of the [`ledger`](super::ledger).
//!
//! Kafka counts no deliveries, so commits say what the next owner of a partition has to know
//! ([`UncleanEnds`]). How often in a row the partition's owner ended without a last commit decides:
//!
//! 1. Never: everything is handed out.
//! 2. Once: everything is handed out, shortly after a commit said so (`until`), so that a second death leaves
//!    few suspects: the unfinished records below `until`.
//! 3. Twice or more: the suspects run one at a time, each named in a commit before it starts. One partition of
//!    the process at a time does so, for 60 s at most; after that it goes on as in 2.
//!
//! A record that is found named and unfinished has crashed once more. So only a record that starts at once is
//! named: one whose retry delay is not over, or that waits behind one that is held (of its key, or any in
//! strict order), is handed out unnamed, and the next suspect is looked at. Such a record, and one whose run
//! failed, starts when its delay is over, be another one named or not. If it kills the process then, the other
//! one has crashed; at the next start its delay is over, and it is named itself.
//!
//! Once everything that stood in the log at takeover is finished, what happened before is forgiven. So it is at
//! a clean end, unless suspects still wait to run alone: they do so in the next assignment.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cqrs_core::consume::Retry;
use cqrs_core::{RetryState, Timestamp};

/// How long one partition may run its suspects alone.
const LONGEST: Duration = Duration::from_secs(60);
/// A record that has crashed starts again when the process is that old: a process that dies of something else,
/// again and again and sooner, counts against no slow record more than once.
const PROBATION: Duration = Duration::from_secs(30);
/// `until` is to last for that long.
const AHEAD: Duration = Duration::from_millis(50);
/// How many records `until` is ahead, at most.
const FARTHEST: i64 = 1_024;

/// What the commit metadata says of unclean ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UncleanEnds {
    /// How many in a row, if this assignment ends without a last commit. 0: it had one, or nothing is counted.
    pub(super) count: u32,
    /// Which process has the partition. While it lives there was no death.
    pub(super) process: i64,
    /// Records below may have been handed out. `None`: all may.
    pub(super) until: Option<i64>,
    /// The record that was started while no other suspect ran.
    pub(super) named: Option<i64>,
    /// By offset: how often the process died while the record ran alone.
    pub(super) crashes: BTreeMap<i64, u32>,
}

/// What is one per process.
#[derive(Debug)]
pub(super) struct Process {
    id: i64,
    born: Instant,
    /// Whether a partition runs its suspects.
    is_taken: AtomicBool,
}

/// The turn of one partition to run its suspects; given back when it is dropped.
#[derive(Debug)]
struct Turn(Arc<Process>);

impl Process {
    pub(super) fn new(born: Instant) -> Arc<Self> {
        // Its keys are random: the standard library's only source of random numbers.
        let id = RandomState::new().hash_one(std::process::id()) >> 1;
        Arc::new(Self { id: id.cast_signed(), born, is_taken: AtomicBool::new(false) })
    }

    pub(super) fn this() -> Arc<Self> {
        static THIS: LazyLock<Arc<Process>> = LazyLock::new(|| Process::new(Instant::now()));
        Arc::clone(&THIS)
    }

    fn take_turn(self: &Arc<Self>) -> Option<Turn> {
        (!self.is_taken.swap(true, Ordering::AcqRel)).then(|| Turn(Arc::clone(self)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.is_taken.store(false, Ordering::Release);
    }
}

/// How a subscription wants it.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    /// After how many crashes a record is dead-lettered. 0: nothing is counted.
    pub(super) max_crashes: u32,
    pub(super) concurrency: usize,
    pub(super) retry: Retry,
    pub(super) process: Arc<Process>,
}

#[cfg(test)]
impl Rule {
    /// Nothing is counted.
    pub(super) fn off() -> Self {
        Self { max_crashes: 0, concurrency: 1, retry: Retry::default(), process: Process::this() }
    }
}

/// What the handlers of a subscription do, in all its partitions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Activity {
    /// How many run.
    pub(super) running: usize,
    /// How many ever began to run.
    pub(super) begun: u64,
}

/// What the ledger knows of its records.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// The lowest unfinished offset.
    pub(super) position: i64,
    /// The first offset that was not handed out.
    pub(super) next: i64,
    /// How many records are handed out, and neither finished nor running nor held for a retry.
    pub(super) queued: usize,
    /// The handlers of the whole subscription.
    pub(super) all: Activity,
    /// How many ever began to run.
    pub(super) begun: u64,
    /// Whether the next record to be handed out waits for its retry delay then.
    pub(super) head_waits: bool,
}

/// The quarantine of one assignment.
///
/// A pure data structure. Invariants: a record is handed out only below the grant of a committed draft; at
/// most one record is named, and no other suspect of the process runs then, but one whose retry delay is over.
#[derive(Debug)]
pub(super) struct Quarantine {
    rule: Rule,
    /// What the next commit says.
    says: UncleanEnds,
    /// How many unclean ends were found.
    found: u32,
    /// Where the log ended at takeover.
    end: i64,
    mode: Mode,
    /// Kept until no committed name is left.
    leaving: Option<Turn>,
}

#[derive(Debug)]
enum Mode {
    /// Everything is handed out.
    Open,
    /// Records below `until` are handed out.
    Announced {
        window: i64,
        /// When `until` was moved last, and how many records had begun to run by then.
        at: Instant,
        begun: u64,
        /// How many had in the whole subscription, and since when none did though workers are idle.
        last_begun: u64,
        idle_since: Instant,
    },
    /// Suspects, below the offset, wait for their turn.
    Waiting(i64),
    /// They run one at a time. `held`: the keys of those that wait for a retry.
    Alone { suspects: i64, turn: Turn, since: Instant, held: HashSet<Option<Bytes>> },
}

impl Mode {
    fn announced(window: i64, now: Instant, begun: u64) -> Self {
        Self::Announced { window, at: now, begun, last_begun: begun, idle_since: now }
    }
}

/// The next record to be handed out.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) offset: i64,
    pub(super) key: Option<Bytes>,
}

/// What comes of a look at the next record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    /// There is something new to commit, at once.
    Commit,
    /// Records below may be handed out without a further commit.
    Grant(i64),
}

impl Quarantine {
    /// The quarantine of an assignment that begins at `position` of a log that ends at `end`, with what was
    /// found in the commit metadata.
    pub(super) fn new(
        rule: Rule,
        position: i64,
        end: i64,
        found: UncleanEnds,
        is_done: impl Fn(i64) -> bool,
        now: Instant,
    ) -> Self {
        let mode = Mode::Open;
        let mut this =
            Self { rule, says: UncleanEnds::default(), found: 0, end, mode, leaving: None };
        if this.rule.max_crashes == 0 {
            return this;
        }
        let UncleanEnds { count, process, until, named, mut crashes } = found;
        let died = count > 0 && process != this.rule.process.id;
        crashes = crashes.split_off(&position);
        crashes.retain(|offset, _| !is_done(*offset));
        if let Some(named) = named.filter(|named| died && position <= *named && !is_done(*named)) {
            let crashes = crashes.entry(named).or_default();
            *crashes = crashes.saturating_add(1);
        }
        this.found = if position < end { count } else { 0 };
        this.says.count = this.found.saturating_add(u32::from(died)).max(1);
        this.says.process = this.rule.process.id;
        this.says.crashes = crashes;
        if this.says.count == 1 {
            return this;
        }
        let suspects = until.map(|until| until.min(end)).filter(|until| *until > position);
        let announced = position.saturating_add(this.least()).max(suspects.unwrap_or(position));
        match suspects {
            Some(suspects) if this.says.count > 2 => {
                this.says.until = Some(suspects);
                this.mode = Mode::Waiting(suspects);
            }
            _ => {
                this.says.until = Some(announced);
                this.mode = Mode::announced(this.least(), now, 0);
            }
        }
        this
    }

    /// How many records `until` is ahead, at least.
    fn least(&self) -> i64 {
        i64::try_from(self.rule.concurrency.max(1).saturating_mul(2))
            .unwrap_or(FARTHEST)
            .min(FARTHEST)
    }

    /// Whether what is handed out depends on commits.
    pub(super) fn is_careful(&self) -> bool {
        !matches!(self.mode, Mode::Open)
    }

    /// What the next commit says.
    pub(super) fn says(&self) -> &UncleanEnds {
        &self.says
    }

    /// Records below may be handed out once a commit says [`says`](Self::says).
    pub(super) fn grant(&self) -> i64 {
        match self.mode {
            Mode::Open => i64::MAX,
            Mode::Announced { .. } => self.says.until.unwrap_or(i64::MAX),
            Mode::Waiting(_) => i64::MIN,
            Mode::Alone { .. } => self.says.named.map_or(i64::MIN, |named| named + 1),
        }
    }

    /// Whether a record with such failed attempts waits for its retry delay when it is handed out.
    pub(super) fn waits(&self, state: &RetryState) -> bool {
        self.rule.retry.remaining(state, Timestamp::now()).is_some()
    }

    /// How often the process died while a record ran alone.
    pub(super) fn crashes(&self, offset: i64) -> u32 {
        self.says.crashes.get(&offset).copied().unwrap_or(0)
    }

    pub(super) fn has_crashes(&self) -> bool {
        !self.says.crashes.is_empty()
    }

    /// A record is finished.
    pub(super) fn finish(&mut self, offset: i64) {
        if self.has_crashes() {
            self.says.crashes.remove(&offset);
        }
        self.says.named.take_if(|named| *named == offset);
    }

    /// The run of a record ended, and it will run again: records of its key wait behind it.
    pub(super) fn run_ended(&mut self, offset: i64, key: Option<Bytes>) {
        self.says.named.take_if(|named| *named == offset);
        if let Mode::Alone { held, .. } = &mut self.mode {
            held.insert(key);
        }
    }

    /// Goes on as far as it can. `granted`: what was handed out is below.
    pub(super) fn advance(
        &mut self,
        head: Option<&Head>,
        progress: Progress,
        granted: i64,
        now: Instant,
    ) -> Step {
        if self.is_careful() && progress.position >= self.end {
            self.says.count = 1;
            self.says.until = None;
            self.leave(Mode::Open);
            return Step::Commit;
        }
        match &self.mode {
            Mode::Open => Step::Wait,
            Mode::Announced { .. } => self.announce(head, progress, granted, now),
            Mode::Waiting(suspects) | Mode::Alone { suspects, .. } => {
                let suspects = *suspects;
                let is_over =
                    matches!(self.mode, Mode::Alone { since, .. } if now >= since + LONGEST);
                let next = progress.next.max(head.map_or(i64::MIN, |head| head.offset));
                let is_through = self.says.named.is_none() && next >= suspects;
                if is_over || is_through || progress.position >= suspects {
                    let begun = progress.begun;
                    self.leave(Mode::announced(self.least(), now, begun));
                    return Step::Commit;
                }
                head.map_or(Step::Wait, |head| self.name(head, progress.head_waits, suspects, now))
            }
        }
    }

    /// Names the next suspect if it is its turn, and it starts at once.
    fn name(&mut self, head: &Head, waits: bool, suspects: i64, now: Instant) -> Step {
        let crashes = self.crashes(head.offset);
        let on_probation = (1..self.rule.max_crashes).contains(&crashes)
            && now < self.rule.process.born + PROBATION;
        if self.says.named.is_some() || on_probation {
            return Step::Wait;
        }
        if let Mode::Waiting(_) = self.mode {
            let Some(turn) = self.rule.process.take_turn() else { return Step::Wait };
            self.mode = Mode::Alone { suspects, turn, since: now, held: HashSet::new() };
        }
        let is_strict = self.rule.concurrency <= 1;
        if let Mode::Alone { held, .. } = &mut self.mode {
            let is_behind = match is_strict {
                true => !held.is_empty(),
                false => head.key.is_some() && held.contains(&head.key),
            };
            if waits {
                held.insert(head.key.clone());
            }
            if waits || is_behind {
                return Step::Grant(head.offset + 1);
            }
        }
        self.says.named = Some(head.offset);
        Step::Commit
    }

    /// Ends the lone runs: no record is named. The turn is given back once a commit without a name is made.
    fn leave(&mut self, mode: Mode) {
        self.says.named = None;
        if let Mode::Alone { turn, .. } = std::mem::replace(&mut self.mode, mode) {
            self.leaving = Some(turn);
        }
    }

    /// Moves `until` ahead of the work.
    fn announce(
        &mut self,
        head: Option<&Head>,
        progress: Progress,
        granted: i64,
        now: Instant,
    ) -> Step {
        let (least, until) = (self.least(), self.says.until.unwrap_or(granted));
        let Mode::Announced { window, at, begun, last_begun, idle_since } = &mut self.mode else {
            return Step::Wait;
        };
        if *last_begun != progress.all.begun || progress.all.running >= self.rule.concurrency {
            (*last_begun, *idle_since) = (progress.all.begun, now);
        }
        let next = progress.next.max(head.map_or(i64::MIN, |head| head.offset));
        if until > granted || until.saturating_sub(next) > *window / 2 {
            return Step::Wait;
        }
        let elapsed = now.saturating_duration_since(*at).max(Duration::from_millis(1));
        if i64::try_from(progress.queued).unwrap_or(i64::MAX) <= *window / 2 {
            let pace = u128::from(progress.begun.saturating_sub(*begun)) * AHEAD.as_micros()
                / elapsed.as_micros();
            let pace = i64::try_from(pace).unwrap_or(FARTHEST);
            *window = pace.clamp(least, (2 * *window).min(FARTHEST));
        } else if now.saturating_duration_since(*idle_since) >= AHEAD {
            // What is queued waits behind the keys of others: nothing starts, though workers are idle.
            *window = (2 * *window).min(FARTHEST);
        } else {
            return Step::Wait;
        }
        (*at, *begun, *idle_since) = (now, progress.begun, now);
        self.says.until = Some(next.saturating_add(*window).max(until));
        Step::Commit
    }

    /// A draft was committed.
    pub(super) fn committed(&mut self, said: Option<&UncleanEnds>) {
        if said.is_none_or(|said| said.named.is_none()) {
            self.leaving = None;
        }
    }

    /// The group does not take what it says: nothing is counted.
    pub(super) fn switch_off(&mut self) {
        (self.says, self.found) = (UncleanEnds::default(), 0);
        self.leave(Mode::Open);
        self.leaving = None;
    }

    /// The assignment ends with a last commit. Suspects that wait stay suspect, and a handler that runs on may
    /// still kill the process: then nothing is forgiven. Whether it says something new.
    pub(super) fn close(&mut self, running: usize) -> bool {
        let before = self.says.clone();
        if !matches!(self.mode, Mode::Waiting(_) | Mode::Alone { .. }) {
            self.says.count = if running == 0 { 0 } else { self.found };
        }
        if self.says.count == 0 {
            self.says.until = None;
        }
        self.leave(Mode::Open);
        self.leaving = None;
        before != self.says
    }
}

#[cfg(test)]
mod tests;
