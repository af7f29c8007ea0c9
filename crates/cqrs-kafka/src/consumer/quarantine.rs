//! The quarantine of a partition: which records may be delivered after its consumer's process died, and which record
//! is counted when the process dies again. Part of the [`offset_tracker`](super::offset_tracker).
//!
//! Kafka counts no deliveries, so commits carry what the next owner of a partition needs ([`UncleanEnds`]). The number
//! of assignments in a row that ended without a last commit decides:
//!
//! 1. None: every record is delivered.
//! 2. One: every record is delivered, shortly after a commit announced it (`until`). So a second death leaves few
//!    records to quarantine: the unfinished ones below `until`.
//! 3. Two or more: the quarantined records run one at a time, each named in a commit before it starts. One partition
//!    of the process at a time does this, for 60 s at most; then it continues as in 2.
//!
//! A record that is found named and unfinished has crashed once more. So only a record that starts at once is named.
//! A record whose retry delay is not over, or that waits behind a held record (of its key, or any in strict order),
//! is delivered unnamed, and the next record is considered. Such a record, and one whose run failed, starts when its
//! delay is over, even if another one is named then. If it kills the process, the named one is counted; at the next
//! start its delay is over, and it is named itself.
//!
//! Earlier unclean ends are forgotten once every record that was in the log at takeover is finished, and at a clean
//! end, unless quarantined records are left: they run alone in the next assignment.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cqrs_core::consume::{Retry, RetryState};
use cqrs_core::event::Timestamp;

use super::commit_metadata::UncleanEnds;
use super::process::{Process, QuarantineLock};

/// The longest time for which one partition runs its quarantined records alone.
const LONGEST: Duration = Duration::from_secs(60);
/// The age of the process at which a record that has crashed starts again. A process that keeps dying of something
/// else, and sooner, so counts at most once against a slow record.
const MIN_UPTIME: Duration = Duration::from_secs(30);
/// The time that the announced window is meant to last.
const AHEAD: Duration = Duration::from_millis(50);
/// The largest announced window, in records.
const MAX_WINDOW: i64 = 1_024;

/// The subscription's part in the rules.
#[derive(Debug, Clone)]
pub(super) struct QuarantineOptions {
    /// The number of crashes after which a record is dead-lettered. 0: no crashes are counted.
    pub(super) max_crashes: u32,
    pub(super) concurrency: usize,
    pub(super) retry: Retry,
    pub(super) process: Arc<Process>,
}

#[cfg(test)]
impl QuarantineOptions {
    /// No crashes are counted.
    pub(super) fn off() -> Self {
        Self { max_crashes: 0, concurrency: 1, retry: Retry::default(), process: Process::this() }
    }
}

/// The activity of handlers: of one partition, or of the whole subscription.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Activity {
    /// The number of running handlers.
    pub(super) running: usize,
    /// The number of records that were started so far.
    pub(super) started: u64,
}

/// The next record to be delivered.
#[derive(Debug, Clone)]
pub(super) struct NextRecord {
    pub(super) offset: i64,
    pub(super) key: Option<Bytes>,
}

/// The state of the partition, from its offset tracker, when the quarantine advances.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress<'n> {
    pub(super) now: Instant,
    /// The lowest unfinished offset.
    pub(super) position: i64,
    /// The first offset that was not delivered.
    pub(super) next_offset: i64,
    pub(super) next: Option<&'n NextRecord>,
    /// Set if the next record will wait for its retry delay after its delivery.
    pub(super) next_waits: bool,
    /// Records below this offset may be delivered now.
    pub(super) delivery_limit: i64,
    /// The number of records delivered that are neither finished nor running nor held for a retry.
    pub(super) queued: usize,
    /// The number of records of the partition that were started so far.
    pub(super) started: u64,
    /// The handlers of the whole subscription.
    pub(super) all: Activity,
}

impl Progress<'_> {
    /// The first offset from which no record was delivered.
    fn undelivered(&self) -> i64 {
        self.next_offset.max(self.next.map_or(i64::MIN, |next| next.offset))
    }
}

/// The result of [`Quarantine::advance`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    /// A commit is urgent.
    Commit,
    /// Records below this offset may be delivered without a further commit.
    Deliver(i64),
}

/// The quarantine of one assignment.
///
/// A pure data structure. Invariants: a record is delivered only below the delivery limit of a committed draft; at
/// most one record is named, and no other quarantined record of the process runs then, except one whose retry delay
/// is over.
#[derive(Debug)]
pub(super) struct Quarantine {
    options: QuarantineOptions,
    /// The unclean ends in the next commit.
    unclean: UncleanEnds,
    /// The number of unclean ends found at takeover.
    found: u32,
    /// The end of the log at takeover.
    log_end: i64,
    mode: Mode,
    /// Held until the committed metadata names no record.
    releasing: Option<QuarantineLock>,
}

#[derive(Debug)]
enum Mode {
    /// Every record is delivered.
    Unlimited,
    /// Records below `until` of the commits are delivered.
    Announced(Announcement),
    /// Records below `until` are quarantined, and wait for the lock.
    Waiting { until: i64 },
    /// They run one at a time. `held`: the keys of those that wait for a retry.
    OneByOne { until: i64, lock: QuarantineLock, since: Instant, held: HashSet<Option<Bytes>> },
}

/// The announced window: the records that commits announce ahead of their delivery.
#[derive(Debug)]
struct Announcement {
    /// In records.
    window: i64,
    /// The time of the last announcement, and the records of the partition started by then.
    at: Instant,
    started: u64,
    /// The records of the subscription started so far.
    all_started: u64,
    /// The time since when no record started although workers are idle: a standstill of the whole subscription.
    idle_since: Instant,
}

impl Announcement {
    fn new(window: i64, now: Instant, started: u64) -> Self {
        Self { window, at: now, started, all_started: started, idle_since: now }
    }
}

impl Quarantine {
    /// The quarantine of an assignment that starts at `position` of a log that ends at `log_end`, with the unclean
    /// ends found in the commit metadata.
    pub(super) fn new(
        options: QuarantineOptions,
        position: i64,
        log_end: i64,
        found: UncleanEnds,
        is_done: impl Fn(i64) -> bool,
        now: Instant,
    ) -> Self {
        let mut this = Self {
            options,
            unclean: UncleanEnds::default(),
            found: 0,
            log_end,
            mode: Mode::Unlimited,
            releasing: None,
        };
        if this.options.max_crashes == 0 {
            return this;
        }
        let UncleanEnds { count, process, until, named, mut crashes } = found;
        let died = count > 0 && process != this.options.process.id;
        crashes = crashes.split_off(&position);
        crashes.retain(|offset, _| !is_done(*offset));
        if let Some(named) = named.filter(|named| died && position <= *named && !is_done(*named)) {
            let crashes = crashes.entry(named).or_default();
            *crashes = crashes.saturating_add(1);
        }
        this.found = if position < log_end { count } else { 0 };
        this.unclean.count = this.found.saturating_add(u32::from(died)).max(1);
        this.unclean.process = this.options.process.id;
        this.unclean.crashes = crashes;
        if this.unclean.count == 1 {
            return this;
        }
        let quarantined = until.map(|until| until.min(log_end)).filter(|until| *until > position);
        match quarantined {
            Some(until) if this.unclean.count > 2 => {
                this.unclean.until = Some(until);
                this.mode = Mode::Waiting { until };
            }
            _ => {
                let window = this.min_window();
                let announced = position.saturating_add(window);
                this.unclean.until = Some(announced.max(quarantined.unwrap_or(position)));
                this.mode = Mode::Announced(Announcement::new(window, now, 0));
            }
        }
        this
    }

    /// The smallest announced window, in records.
    fn min_window(&self) -> i64 {
        i64::try_from(self.options.concurrency.max(1).saturating_mul(2))
            .unwrap_or(MAX_WINDOW)
            .min(MAX_WINDOW)
    }

    /// Returns whether delivery depends on commits.
    pub(super) fn is_limited(&self) -> bool {
        !matches!(self.mode, Mode::Unlimited)
    }

    /// The unclean ends in the next commit.
    pub(super) fn unclean(&self) -> &UncleanEnds {
        &self.unclean
    }

    /// Records below this offset may be delivered after a commit of [`unclean`](Self::unclean).
    pub(super) fn delivery_limit(&self) -> i64 {
        match self.mode {
            Mode::Unlimited => i64::MAX,
            Mode::Announced(_) => self.unclean.until.unwrap_or(i64::MAX),
            Mode::Waiting { .. } => i64::MIN,
            Mode::OneByOne { .. } => self.unclean.named.map_or(i64::MIN, |named| named + 1),
        }
    }

    /// Returns whether a record with these failed attempts waits for its retry delay when it is delivered.
    pub(super) fn waits(&self, state: &RetryState) -> bool {
        self.options.retry.remaining(state, Timestamp::now()).is_some()
    }

    /// The number of times the process died while the record ran alone.
    pub(super) fn crashes(&self, offset: i64) -> u32 {
        self.unclean.crashes.get(&offset).copied().unwrap_or(0)
    }

    pub(super) fn has_crashes(&self) -> bool {
        !self.unclean.crashes.is_empty()
    }

    /// A record is finished.
    pub(super) fn finish(&mut self, offset: i64) {
        if self.has_crashes() {
            self.unclean.crashes.remove(&offset);
        }
        self.unclean.named.take_if(|named| *named == offset);
    }

    /// A run of a record ended, and it will run again: records of its key wait behind it.
    pub(super) fn run_ended(&mut self, offset: i64, key: Option<Bytes>) {
        self.unclean.named.take_if(|named| *named == offset);
        if let Mode::OneByOne { held, .. } = &mut self.mode {
            held.insert(key);
        }
    }

    /// Advances as far as possible.
    pub(super) fn advance(&mut self, progress: &Progress<'_>) -> Step {
        if self.is_limited() && progress.position >= self.log_end {
            self.unclean.count = 1;
            self.unclean.until = None;
            self.set_mode(Mode::Unlimited);
            return Step::Commit;
        }
        let (until, since) = match &self.mode {
            Mode::Unlimited => return Step::Wait,
            Mode::Announced(_) => return self.announce(progress),
            Mode::Waiting { until } => (*until, None),
            Mode::OneByOne { until, since, .. } => (*until, Some(*since)),
        };
        let is_overdue = since.is_some_and(|since| progress.now >= since + LONGEST);
        let is_through = self.unclean.named.is_none() && progress.undelivered() >= until;
        if is_overdue || is_through || progress.position >= until {
            let announcement = Announcement::new(self.min_window(), progress.now, progress.started);
            self.set_mode(Mode::Announced(announcement));
            return Step::Commit;
        }
        match progress.next {
            None => Step::Wait,
            Some(next) => self.name(next, progress.next_waits, until, progress.now),
        }
    }

    /// Names the next quarantined record, if no other one runs and it starts at once.
    fn name(&mut self, next: &NextRecord, waits: bool, until: i64, now: Instant) -> Step {
        let crashes = self.crashes(next.offset);
        let is_too_early = (1..self.options.max_crashes).contains(&crashes)
            && now < self.options.process.started_at + MIN_UPTIME;
        if self.unclean.named.is_some() || is_too_early {
            return Step::Wait;
        }
        if let Mode::Waiting { .. } = self.mode {
            let Some(lock) = self.options.process.try_lock() else { return Step::Wait };
            self.mode = Mode::OneByOne { until, lock, since: now, held: HashSet::new() };
        }
        let is_strict = self.options.concurrency <= 1;
        if let Mode::OneByOne { held, .. } = &mut self.mode {
            let is_behind = match is_strict {
                true => !held.is_empty(),
                false => next.key.is_some() && held.contains(&next.key),
            };
            if waits {
                held.insert(next.key.clone());
            }
            if waits || is_behind {
                return Step::Deliver(next.offset + 1);
            }
        }
        self.unclean.named = Some(next.offset);
        Step::Commit
    }

    /// Leaves the current mode: no record is named. The lock is released once a commit without a name is made.
    fn set_mode(&mut self, mode: Mode) {
        self.unclean.named = None;
        if let Mode::OneByOne { lock, .. } = std::mem::replace(&mut self.mode, mode) {
            self.releasing = Some(lock);
        }
    }

    /// Moves `until` ahead of the work.
    fn announce(&mut self, progress: &Progress<'_>) -> Step {
        let &Progress { now, delivery_limit, queued, started, all, .. } = progress;
        let (min_window, until) = (self.min_window(), self.unclean.until.unwrap_or(delivery_limit));
        let Mode::Announced(last) = &mut self.mode else { return Step::Wait };
        if last.all_started != all.started || all.running >= self.options.concurrency {
            (last.all_started, last.idle_since) = (all.started, now);
        }
        let next = progress.undelivered();
        if until > delivery_limit || until.saturating_sub(next) > last.window / 2 {
            return Step::Wait;
        }
        let doubled = (2 * last.window).min(MAX_WINDOW);
        if i64::try_from(queued).unwrap_or(i64::MAX) <= last.window / 2 {
            let elapsed = now.saturating_duration_since(last.at).max(Duration::from_millis(1));
            let pace = u128::from(started.saturating_sub(last.started)) * AHEAD.as_micros()
                / elapsed.as_micros();
            last.window = i64::try_from(pace).unwrap_or(MAX_WINDOW).clamp(min_window, doubled);
        } else if now.saturating_duration_since(last.idle_since) >= AHEAD {
            // Queued records wait behind the keys of others: none starts, although workers are idle.
            last.window = doubled;
        } else {
            return Step::Wait;
        }
        (last.at, last.started, last.idle_since) = (now, started, now);
        self.unclean.until = Some(next.saturating_add(last.window).max(until));
        Step::Commit
    }

    /// A draft with these unclean ends was committed. `None`: it had no metadata.
    pub(super) fn committed(&mut self, unclean: Option<&UncleanEnds>) {
        if unclean.is_none_or(|unclean| unclean.named.is_none()) {
            self.releasing = None;
        }
    }

    /// The group refuses the commits of the quarantine: no crashes are counted from here on.
    pub(super) fn switch_off(&mut self) {
        (self.unclean, self.found) = (UncleanEnds::default(), 0);
        self.set_mode(Mode::Unlimited);
        self.releasing = None;
    }

    /// The assignment ends with a last commit. Records that are still quarantined stay so. While handlers still run,
    /// earlier unclean ends are not forgotten, since one of them may yet kill the process. Returns whether the next
    /// commit changed.
    pub(super) fn close(&mut self, running: usize) -> bool {
        let before = self.unclean.clone();
        if !matches!(self.mode, Mode::Waiting { .. } | Mode::OneByOne { .. }) {
            self.unclean.count = if running == 0 { 0 } else { self.found };
        }
        if self.unclean.count == 0 {
            self.unclean.until = None;
        }
        self.set_mode(Mode::Unlimited);
        self.releasing = None;
        before != self.unclean
    }
}

#[cfg(test)]
mod tests;
