//! A simulation of partitions whose consumer's process dies, for the tests of the quarantine: logs, commits, handlers
//! and crashes, without a broker.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_core::consume::Retry;

use crate::consumer::commit_metadata::{CommitMetadata, UncleanEnds};
use crate::consumer::offset_tracker::{Draft, OffsetTracker, Takeover};
use crate::consumer::partition::{Partition, total_activity};
use crate::consumer::process::Process;
use crate::consumer::quarantine::{NextRecord, QuarantineOptions};
use crate::consumer::record::Record;

pub(super) const MAX_CRASHES: u32 = 3;
pub(super) const TICK: Duration = Duration::from_millis(2);

/// The log of one partition, and all that survives a process.
#[derive(Default)]
pub(super) struct Log {
    pub(super) end: i64,
    pub(super) poisons: BTreeSet<i64>,
    pub(super) committed: i64,
    pub(super) metadata: String,
    pub(super) handled: BTreeSet<i64>,
    pub(super) dead_letters: BTreeSet<i64>,
}

impl Log {
    pub(super) fn unclean(&self) -> UncleanEnds {
        CommitMetadata::parse(&self.metadata).unclean
    }
}

/// One assignment of a partition, with its records in the runtime.
pub(super) struct Member {
    pub(super) partition: Partition,
    pub(super) next: i64,
    /// Delivered, and not started.
    pub(super) queued: Vec<i64>,
    pub(super) running: Vec<i64>,
    pub(super) held: Vec<i64>,
}

pub(super) struct Simulation {
    seed: u64,
    pub(super) now: Instant,
    pub(super) process: Arc<Process>,
    pub(super) max_crashes: u32,
    pub(super) concurrency: usize,
    pub(super) logs: Vec<Log>,
    pub(super) members: Vec<Member>,
    /// Commits in flight.
    pub(super) in_flight: Option<Vec<(usize, Draft)>>,
    pub(super) deaths: usize,
    /// Set if records fail and are held for a later attempt, or are returned.
    pub(super) holds: bool,
}

pub(super) fn record(offset: i64) -> Record {
    Record::of(offset, None, &[])
}

pub(super) fn keyed(offset: i64, key: &str) -> Record {
    Record::of(offset, Some(key), &[])
}

impl Simulation {
    pub(super) fn new(seed: u64, logs: impl IntoIterator<Item = Log>) -> Self {
        let now = Instant::now();
        let mut simulation = Self {
            seed,
            now,
            process: Process::new(now),
            max_crashes: MAX_CRASHES,
            concurrency: 8,
            logs: logs.into_iter().collect(),
            members: Vec::new(),
            in_flight: None,
            deaths: 0,
            holds: false,
        };
        simulation.take_over();
        simulation
    }

    /// A random number below `bound` (xorshift), which the seed repeats.
    pub(super) fn random(&mut self, bound: usize) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) as usize % bound.max(1)
    }

    pub(super) fn take_over(&mut self) {
        self.in_flight = None;
        self.members.clear();
        for (id, log) in self.logs.iter_mut().enumerate() {
            let takeover = Takeover {
                position: log.committed,
                end: log.end,
                is_new: log.metadata.is_empty(),
                metadata: CommitMetadata::parse(&log.metadata),
            };
            let options = QuarantineOptions {
                max_crashes: self.max_crashes,
                concurrency: self.concurrency,
                retry: Retry::default(),
                process: Arc::clone(&self.process),
            };
            let tracker = OffsetTracker::new(takeover, options);
            let id = i32::try_from(id).unwrap();
            let partition = Partition::new(Arc::default(), "t".into(), id, false, tracker);
            let (queued, running, held) = (Vec::new(), Vec::new(), Vec::new());
            let next = log.committed;
            self.members.push(Member { partition, next, queued, running, held });
        }
    }

    pub(super) fn advance(&self, at: usize, next: Option<&NextRecord>) {
        let all = total_activity(self.members.iter().map(|member| &member.partition));
        let partition = &self.members[at].partition;
        partition.tracker().advance(next, partition.running(), all, self.now);
    }

    /// Delivers up to `room` records and starts them. Returns their offsets.
    pub(super) fn deliver(&mut self, at: usize, room: i64) -> Vec<i64> {
        let delivered = self.deliver_queued(at, room);
        self.start(at, usize::MAX);
        delivered
    }

    /// Starts up to `count` queued records.
    pub(super) fn start(&mut self, at: usize, count: usize) {
        let Member { partition, queued, running, .. } = &mut self.members[at];
        for offset in queued.drain(..count.min(queued.len())) {
            assert!(partition.begin());
            running.push(offset);
        }
    }

    /// Delivers up to `room` records, which wait for workers. Returns their offsets.
    pub(super) fn deliver_queued(&mut self, at: usize, room: i64) -> Vec<i64> {
        let (member, log) = (&self.members[at], &self.logs[at]);
        if member.partition.is_limited() {
            let tracker = member.partition.tracker();
            let next = (member.next..log.end).find(|at| !tracker.was_done(*at));
            drop(tracker);
            let next = next.map(|offset| NextRecord { offset, key: None });
            self.advance(at, next.as_ref());
        }
        let (member, log) = (&mut self.members[at], &mut self.logs[at]);
        let limit = member.partition.delivery_limit();
        let (end, mut out) = (log.end.min(member.next.saturating_add(room)), Vec::new());
        while member.next < end {
            let offset = member.next;
            if offset >= limit && !member.partition.tracker().was_done(offset) {
                break;
            }
            member.next += 1;
            if !member.partition.tracker().add(offset) {
                continue;
            }
            let unclean = log.unclean();
            assert!(
                self.max_crashes == 0 || unclean.count > 0,
                "delivered before the takeover commit"
            );
            assert!(unclean.until.is_none_or(|until| offset < until), "delivered unannounced");
            out.push(offset);
            let crashes = member.partition.attempts(&record(offset)).crashes;
            if self.max_crashes > 0 && crashes >= self.max_crashes {
                log.dead_letters.insert(offset);
                member.partition.finish(offset);
            } else {
                member.queued.push(offset);
            }
        }
        out
    }

    /// Ends the run of one record, or crashes the process with it.
    pub(super) fn end_run(&mut self, at: usize) {
        let (which, how) = (self.random(1_000), self.random(10));
        let (member, log) = (&mut self.members[at], &mut self.logs[at]);
        if member.running.is_empty() {
            for offset in member.held.drain(..) {
                assert!(member.partition.begin());
                member.running.push(offset);
            }
            return;
        }
        let offset = member.running.swap_remove(which % member.running.len());
        if log.poisons.contains(&offset) {
            self.deaths += 1;
            return self.crash();
        }
        match how {
            0 if self.holds => {
                member.partition.hold(&record(offset), Default::default());
                member.partition.end();
                member.held.push(offset);
            }
            1 if self.holds => {
                member.partition.run_ended(&record(offset));
                member.running.push(offset);
            }
            _ => {
                log.handled.insert(offset);
                assert!(member.partition.finish(offset));
                member.partition.end();
            }
        }
    }

    pub(super) fn crash(&mut self) {
        // Commits in flight may still succeed.
        if self.random(2) == 0 {
            self.finish_commit();
        }
        self.process = Process::new(self.now);
        self.take_over();
    }

    /// Loses the membership and gets it back in the same process.
    pub(super) fn lose_membership(&mut self) {
        if self.random(2) == 0 {
            self.finish_commit();
        }
        self.members.iter().for_each(|member| drop(member.partition.close()));
        self.take_over();
    }

    /// A clean end, after all handlers.
    pub(super) fn close(&mut self) {
        self.finish_commit();
        for (member, log) in self.members.iter_mut().zip(&mut self.logs) {
            for offset in member.running.drain(..) {
                if !log.poisons.contains(&offset) {
                    log.handled.insert(offset);
                    assert!(member.partition.finish(offset));
                }
                member.partition.end();
            }
        }
        let drafts = self.members.iter().enumerate();
        let drafts = drafts.filter_map(|(at, member)| Some((at, member.partition.close()?)));
        self.in_flight = Some(drafts.collect());
        self.finish_commit();
        self.process = Process::new(self.now);
        self.take_over();
    }

    pub(super) fn commit(&mut self) {
        match (self.in_flight.is_some(), self.random(10)) {
            (true, 0) => self.in_flight = None,
            (true, _) => self.finish_commit(),
            (false, _) => self.start_commit(),
        }
    }

    pub(super) fn start_commit(&mut self) {
        let drafts = self.members.iter().enumerate();
        let draft = |(at, member): (_, &Member)| Some((at, member.partition.tracker().draft()?));
        self.in_flight = Some(drafts.filter_map(draft).collect());
    }

    pub(super) fn finish_commit(&mut self) {
        for (at, draft) in self.in_flight.take().into_iter().flatten() {
            let log = &mut self.logs[at];
            assert!(log.committed <= draft.position, "a committed offset goes back");
            let done = |at: &i64| log.handled.contains(at) || log.dead_letters.contains(at);
            assert!((0..draft.position).all(|at| done(&at)), "a record is skipped");
            log.committed = draft.position;
            log.metadata = draft.metadata.as_ref().unwrap().to_text();
            self.members[at].partition.tracker().committed(&draft);
        }
    }

    pub(super) fn commit_all(&mut self) {
        self.start_commit();
        self.finish_commit();
    }

    /// Delivers records of a partition and commits, until nothing more is delivered.
    pub(super) fn deliver_all(&mut self, at: usize) -> Vec<i64> {
        let mut out = Vec::new();
        for _ in 0..4 {
            self.commit_all();
            out.extend(self.deliver(at, 1_000));
            self.commit_all();
        }
        out
    }

    /// Advances the first partition with the record as the next one. Returns the named record and the delivery limit.
    pub(super) fn consider(&mut self, offset: i64, key: &str) -> (Option<i64>, i64) {
        let next = NextRecord { offset, key: keyed(offset, key).key() };
        self.commit_all();
        self.advance(0, Some(&next));
        self.commit_all();
        (self.logs[0].unclean().named, self.members[0].partition.delivery_limit())
    }

    pub(super) fn finish(&mut self, at: usize, offset: i64) {
        let member = &mut self.members[at];
        self.logs[at].handled.insert(offset);
        assert!(member.partition.finish(offset));
        member.partition.end();
    }

    /// Ends the running handlers, whose records stay unfinished.
    pub(super) fn end_runs(&mut self) {
        let member = &mut self.members[0];
        member.running.drain(..).for_each(|_| member.partition.end());
    }

    /// Kills the process after its commits succeeded.
    pub(super) fn kill(&mut self) {
        self.commit_all();
        self.process = Process::new(self.now);
        self.take_over();
    }

    /// Delivers records of all partitions and kills the process, twice: their records are quarantined.
    pub(super) fn kill_twice(&mut self) {
        for _ in 0..2 {
            for at in 0..self.logs.len() {
                self.deliver_all(at);
            }
            self.kill();
        }
    }

    pub(super) fn crashes(&self, at: usize, offset: i64) -> u32 {
        self.members[at].partition.attempts(&record(offset)).crashes
    }

    /// Runs until all records are committed.
    pub(super) fn run_to_end(
        &mut self,
        end: i64,
        mut kills: usize,
        mut closes: usize,
        is_slow: bool,
    ) {
        for round in 0.. {
            assert!(round < 2_000_000, "it does not end");
            self.now += TICK;
            let at = self.random(self.logs.len());
            let room = i64::try_from(self.random(100)).unwrap();
            match self.random(100) {
                0..40 => drop(self.deliver(at, room)),
                40..80 => self.end_run(at),
                80..98 => self.commit(),
                98 => self.logs[at].end = (self.logs[at].end + 20).min(end),
                _ if is_slow => self.now += Duration::from_secs(5),
                _ => match self.random(30) {
                    0 if kills > 0 => {
                        kills -= 1;
                        self.crash();
                    }
                    1 if closes > 0 => {
                        closes -= 1;
                        if closes.is_multiple_of(2) { self.close() } else { self.lose_membership() }
                    }
                    _ => {}
                },
            }
            if self.logs.iter().all(|log| log.committed == end) {
                return;
            }
        }
    }
}

pub(super) fn log(end: i64, poisons: impl IntoIterator<Item = i64>) -> Log {
    Log { end, poisons: poisons.into_iter().collect(), ..Log::default() }
}
