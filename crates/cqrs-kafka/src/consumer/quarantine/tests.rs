use std::collections::BTreeSet;

use cqrs_core::{RetryState, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::config::KafkaConfig;
use crate::consumer::commit_metadata::CommitMetadata;
use crate::consumer::copies::{Copies, CopyProducers};
use crate::consumer::ledger::{Draft, Ledger, Takeover};
use crate::consumer::partition::Partition;
use crate::consumer::record::Record;
use crate::consumer::shared::Shared;

const PARTITIONS: usize = 3;
const MAX_CRASHES: u32 = 3;
const TICK: Duration = Duration::from_millis(2);

/// What outlives the processes.
#[derive(Default)]
struct Log {
    end: i64,
    poisons: BTreeSet<i64>,
    committed: i64,
    metadata: String,
    handled: BTreeSet<i64>,
    dead: BTreeSet<i64>,
}

impl Log {
    fn says(&self) -> UncleanEnds {
        CommitMetadata::parse(&self.metadata).unclean
    }
}

/// One assignment of a partition, as a lane and the runtime have it.
struct Member {
    partition: Partition,
    next: i64,
    running: Vec<i64>,
    held: Vec<i64>,
}

struct World {
    random: u64,
    shared: Arc<Shared>,
    now: Instant,
    process: Arc<Process>,
    max_crashes: u32,
    concurrency: usize,
    logs: Vec<Log>,
    members: Vec<Member>,
    /// Commits that are on their way.
    in_flight: Option<Vec<(usize, Draft)>>,
    deaths: usize,
    /// Whether records fail and are held for a later attempt, or are given back.
    holds: bool,
}

fn record(offset: i64) -> Record {
    Record::of(offset, None, &[])
}

fn keyed(offset: i64, key: &str) -> Record {
    Record::of(offset, Some(key), &[])
}

impl World {
    fn new(seed: u64, logs: impl IntoIterator<Item = Log>) -> Self {
        let link = Arc::new(CopyProducers::new(&KafkaConfig::new(["localhost:1"])));
        let now = Instant::now();
        let mut world = Self {
            random: seed,
            shared: Arc::new(Shared::new(10, 1_000, Arc::new(Copies::new(link, None)))),
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
        world.take_over();
        world
    }

    /// Xorshift: a run is repeated by its seed.
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as usize % bound.max(1)
    }

    fn take_over(&mut self) {
        self.in_flight = None;
        self.members.clear();
        for (id, log) in self.logs.iter_mut().enumerate() {
            let takeover = Takeover {
                position: log.committed,
                end: log.end,
                is_new: log.metadata.is_empty(),
                metadata: CommitMetadata::parse(&log.metadata),
            };
            let rule = Rule {
                max_crashes: self.max_crashes,
                concurrency: self.concurrency,
                retry: Retry::default(),
                process: Arc::clone(&self.process),
            };
            let ledger = Ledger::new(takeover, rule);
            let (id, shared) = (i32::try_from(id).unwrap(), Arc::clone(&self.shared));
            let partition = Partition::new(shared, "t".into(), id, false, ledger);
            let (running, held) = (Vec::new(), Vec::new());
            self.members.push(Member { partition, next: log.committed, running, held });
        }
    }

    /// Hands out up to `room` records. Which ones.
    fn pump(&mut self, at: usize, room: i64) -> Vec<i64> {
        let (member, log) = (&mut self.members[at], &mut self.logs[at]);
        let head = (member.next..log.end).find(|at| !member.partition.was_done(*at));
        if member.partition.is_careful() {
            let head = head.map(|offset| Head { offset, key: None });
            member.partition.advance(head.as_ref(), member.partition.activity(), self.now);
        }
        let granted = member.partition.granted();
        let (end, mut out) = (log.end.min(member.next.saturating_add(room)), Vec::new());
        while member.next < end {
            let offset = member.next;
            if offset >= granted && !member.partition.was_done(offset) {
                break;
            }
            member.next += 1;
            let mut records = vec![record(offset)];
            member.partition.add(&mut records);
            let Some(record) = records.first() else { continue };
            let says = log.says();
            assert!(
                self.max_crashes == 0 || says.count > 0,
                "handed out before the takeover commit"
            );
            assert!(says.until.is_none_or(|until| offset < until), "handed out unannounced");
            out.push(offset);
            let crashes = member.partition.attempts(record).crashes;
            if self.max_crashes > 0 && crashes >= self.max_crashes {
                log.dead.insert(offset);
                member.partition.finish(offset);
            } else {
                assert!(member.partition.begin());
                member.running.push(offset);
            }
        }
        out
    }

    /// One record's run comes to its end, or that of the process.
    fn run(&mut self, at: usize) {
        let (which, how) = (self.below(1_000), self.below(10));
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
            return self.die();
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

    fn die(&mut self) {
        // Commits that are on their way may still arrive.
        if self.below(2) == 0 {
            self.arrive();
        }
        self.process = Process::new(self.now);
        self.take_over();
    }

    /// The membership is lost, and won again: the process lives on.
    fn lose(&mut self) {
        if self.below(2) == 0 {
            self.arrive();
        }
        self.members.iter().for_each(|member| drop(member.partition.close()));
        self.take_over();
    }

    /// A good end: handlers come to their end first.
    fn close(&mut self) {
        self.arrive();
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
        self.arrive();
        self.process = Process::new(self.now);
        self.take_over();
    }

    fn commit(&mut self) {
        match (self.in_flight.is_some(), self.below(10)) {
            (true, 0) => self.in_flight = None,
            (true, _) => self.arrive(),
            (false, _) => self.send(),
        }
    }

    fn send(&mut self) {
        let drafts = self.members.iter().enumerate();
        let draft = |(at, member): (_, &Member)| Some((at, member.partition.draft()?));
        self.in_flight = Some(drafts.filter_map(draft).collect());
    }

    fn arrive(&mut self) {
        for (at, draft) in self.in_flight.take().into_iter().flatten() {
            let log = &mut self.logs[at];
            assert!(log.committed <= draft.position, "a position goes back");
            let done = |at: &i64| log.handled.contains(at) || log.dead.contains(at);
            assert!((0..draft.position).all(|at| done(&at)), "one is skipped");
            log.committed = draft.position;
            log.metadata = draft.metadata.as_ref().unwrap().to_text();
            self.members[at].partition.committed(&draft);
        }
    }

    fn commit_all(&mut self) {
        self.send();
        self.arrive();
    }

    /// Looks at a partition and commits what it wants, until nothing more is handed out.
    fn hand_out(&mut self, at: usize) -> Vec<i64> {
        let mut out = Vec::new();
        for _ in 0..4 {
            self.commit_all();
            out.extend(self.pump(at, 1_000));
            self.commit_all();
        }
        out
    }

    /// Looks at a record of the first partition: which one is named then, and what may be handed out.
    fn look(&mut self, offset: i64, key: &str) -> (Option<i64>, i64) {
        let head = Head { offset, key: keyed(offset, key).key() };
        self.commit_all();
        let partition = &self.members[0].partition;
        partition.advance(Some(&head), partition.activity(), self.now);
        self.commit_all();
        (self.logs[0].says().named, self.members[0].partition.granted())
    }

    fn finish(&mut self, at: usize, offset: i64) {
        let member = &mut self.members[at];
        self.logs[at].handled.insert(offset);
        assert!(member.partition.finish(offset));
        member.partition.end();
    }

    /// Handlers that run give their records back.
    fn end_runs(&mut self) {
        let member = &mut self.members[0];
        member.running.drain(..).for_each(|_| member.partition.end());
    }

    /// Kills the process, whose commits have arrived.
    fn kill(&mut self) {
        self.commit_all();
        self.process = Process::new(self.now);
        self.take_over();
    }

    fn crashes(&self, at: usize, offset: i64) -> u32 {
        self.members[at].partition.attempts(&record(offset)).crashes
    }

    /// Goes on until everything is done.
    fn live(&mut self, end: i64, mut kills: usize, mut closes: usize, is_slow: bool) {
        for round in 0.. {
            assert!(round < 2_000_000, "it comes to no end");
            self.now += TICK;
            let at = self.below(self.logs.len());
            let room = i64::try_from(self.below(100)).unwrap();
            match self.below(100) {
                0..40 => drop(self.pump(at, room)),
                40..80 => self.run(at),
                80..98 => self.commit(),
                98 => self.logs[at].end = (self.logs[at].end + 20).min(end),
                _ if is_slow => self.now += Duration::from_secs(5),
                _ => match self.below(30) {
                    0 if kills > 0 => {
                        kills -= 1;
                        self.die();
                    }
                    1 if closes > 0 => {
                        closes -= 1;
                        if closes.is_multiple_of(2) { self.close() } else { self.lose() }
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

fn log(end: i64, poisons: impl IntoIterator<Item = i64>) -> Log {
    Log { end, poisons: poisons.into_iter().collect(), ..Log::default() }
}

#[test]
fn one_unclean_end_lets_everything_run_at_once() {
    let mut world = World::new(1, (0..8).map(|_| log(1, [])));
    world.hand_out(0);
    world.kill();
    for at in 0..8 {
        assert_eq!(world.hand_out(at), [0], "it waits for no other one");
        assert_eq!(world.logs[at].says().count, 2);
    }
}

#[test]
fn collected_records_are_handed_out_after_an_unclean_end() {
    let mut world = World::new(1, [log(5_000, [])]);
    world.concurrency = 1;
    world.hand_out(0);
    world.kill();
    let (mut out, start) = (0, world.now);
    while out < 5_000 {
        out += world.hand_out(0).len();
        world.now += AHEAD;
        assert!(world.now < start + Duration::from_secs(2), "{out} of 5000");
    }
}

#[test]
fn quick_records_are_announced_far_ahead() {
    let mut world = World::new(1, [log(100_000, [])]);
    world.hand_out(0);
    world.kill();
    let mut commits = 0;
    while world.logs[0].committed < 50_000 {
        world.now += TICK;
        world.commit_all();
        commits += 1;
        world.pump(0, 100_000);
        let running = std::mem::take(&mut world.members[0].running);
        running.into_iter().for_each(|offset| world.finish(0, offset));
    }
    assert!(commits < 120, "{commits} commits");
}

#[test]
fn second_unclean_end_leaves_few_suspects() {
    let mut world = World::new(1, [log(10_000, [])]);
    world.hand_out(0);
    world.kill();
    for _ in 0..100 {
        world.now += TICK;
        world.commit_all();
        world.pump(0, 10_000);
        // Its 8 handlers are busy: the others are queued.
        let member = &mut world.members[0];
        for _ in member.running.drain(8.min(member.running.len())..) {
            member.partition.end();
        }
    }
    let until = world.logs[0].says().until.unwrap();
    assert!(until <= 48, "{until}");
}

#[test]
fn third_start_runs_suspects_one_by_one() {
    let mut world = World::new(1, [log(3, []), log(3, [])]);
    for _ in 0..2 {
        world.hand_out(0);
        world.hand_out(1);
        world.kill();
    }
    assert_eq!(world.hand_out(0), [0]);
    assert_eq!((world.logs[0].says().count, world.logs[0].says().named), (3, Some(0)));
    assert_eq!(world.hand_out(1), Vec::<i64>::new(), "one partition at a time");
    assert_eq!(world.hand_out(0), Vec::<i64>::new(), "one record at a time");
    for offset in 0..3 {
        world.finish(0, offset);
        assert_eq!(world.hand_out(0), (offset + 1..3).take(1).collect::<Vec<_>>());
    }
    assert_eq!(world.logs[0].says().named, None);
    assert_eq!(world.logs[0].says().count, 1, "what happened before is forgiven");
    assert_eq!(world.hand_out(1), [0]);
}

#[test]
fn turn_is_kept_while_a_name_is_committed() {
    let mut world = World::new(1, [log(2, []), log(2, [])]);
    for _ in 0..2 {
        world.hand_out(0);
        world.hand_out(1);
        world.kill();
    }
    for offset in 0..2 {
        assert_eq!(world.hand_out(0), [offset]);
        world.finish(0, offset);
    }
    let named = |world: &World, at: usize| {
        let draft = world.members[at].partition.draft();
        draft.and_then(|draft| draft.metadata.unwrap().unclean.named)
    };
    world.pump(0, 10);
    world.pump(1, 10);
    assert_eq!(world.logs[0].says().named, Some(1), "no later commit has arrived");
    assert_eq!((named(&world, 0), named(&world, 1)), (None, None));
    world.commit_all();
    assert_eq!(world.hand_out(1), [0]);
}

#[test]
fn suspects_keep_others_waiting_for_a_minute_at_most() {
    let mut world = World::new(1, [log(9, []), log(9, [])]);
    for _ in 0..2 {
        world.hand_out(0);
        world.hand_out(1);
        world.kill();
    }
    assert_eq!((world.hand_out(0), world.hand_out(1)), (vec![0], vec![]));
    world.now += LONGEST - TICK;
    assert_eq!((world.hand_out(0), world.hand_out(1)), (vec![], vec![]));
    world.now += TICK;
    assert_eq!(world.hand_out(0), (1..9).collect::<Vec<_>>(), "beside the slow one");
    assert_eq!((world.logs[0].says().named, world.hand_out(1)), (None, vec![0]));
    world.kill();
    assert_eq!((world.crashes(0, 0), world.crashes(1, 0)), (0, 1));
}

#[test]
fn held_suspect_is_through_with_its_key() {
    let mut world = World::new(1, [log(4, [])]);
    for _ in 0..2 {
        world.hand_out(0);
        world.kill();
    }
    assert_eq!(world.hand_out(0), [0]);
    world.members[0].partition.hold(&keyed(0, "a"), Default::default());
    assert_eq!(world.look(1, "a"), (None, 2), "it waits behind the other one");
    assert_eq!(world.look(2, "b"), (Some(2), 3));
}

#[test]
fn suspects_are_through_at_the_end_of_the_log() {
    let mut world = World::new(1, [log(1, [])]);
    for _ in 0..2 {
        world.hand_out(0);
        world.kill();
    }
    assert_eq!(world.hand_out(0), [0]);
    world.members[0].partition.hold(&record(0), Default::default());
    world.hand_out(0);
    assert!(world.process.take_turn().is_some(), "no suspect waits to run alone");
}

#[test]
fn held_suspect_holds_all_in_strict_order() {
    let mut world = World::new(1, [log(4, [])]);
    world.concurrency = 1;
    for _ in 0..2 {
        world.hand_out(0);
        world.kill();
    }
    assert_eq!(world.hand_out(0), [0]);
    world.members[0].partition.hold(&record(0), Default::default());
    assert_eq!(world.look(1, "a"), (None, 2), "it runs after the one that is held");
    assert_eq!(world.look(2, "b"), (None, 3));
}

/// Two unclean ends, and the first of four suspects failed a moment ago: it waits for 10 s.
fn failed_log() -> Log {
    let mut found = CommitMetadata::parse("cqrs1;u=2.1;until=4");
    let state = (0..4).fold(RetryState::default(), |state, _| state.failed(Timestamp::now()));
    found.attempts.insert(0, state);
    Log { end: 4, metadata: found.to_text(), ..Log::default() }
}

#[test]
fn suspect_that_waits_for_its_retry_is_not_named() {
    let mut world = World::new(1, [failed_log()]);
    assert_eq!(world.look(0, "a"), (None, 1), "it does not start yet");
    assert_eq!(world.look(1, "a"), (None, 2), "it waits behind the other one");
    assert_eq!(world.look(2, "b"), (Some(2), 3));
    world.kill();
    assert_eq!((world.crashes(0, 0), world.crashes(0, 2)), (0, 1));
}

#[test]
fn nothing_is_named_behind_a_retry_in_strict_order() {
    let mut world = World::new(1, [failed_log(), log(1, [])]);
    world.concurrency = 1;
    world.take_over();
    for offset in 0..4 {
        assert_eq!(world.look(offset, "a"), (None, offset + 1));
    }
    world.look(4, "a");
    assert!(world.process.take_turn().is_some(), "its suspects are through");
}

#[test]
fn only_an_unfinished_record_of_another_process_has_crashed() {
    let crashes = |committed, metadata: &str, named| {
        let found = Log { end: 9, committed, metadata: metadata.into(), ..Log::default() };
        World::new(1, [found]).crashes(0, named)
    };
    assert_eq!(crashes(4, "cqrs1;u=3.1;until=8;n=5;c=5.1", 5), 2);
    assert_eq!(crashes(4, "cqrs1;u=3.1;until=8;n=5;c=5.1;d=5.1", 5), 0, "it is finished");
    assert_eq!(crashes(6, "cqrs1;u=3.1;until=8;n=5;c=5.1", 5), 0, "it is finished");
    assert_eq!(crashes(4, "cqrs1;until=8;n=5;c=5.1", 5), 1, "the end was clean");
}

#[test]
fn records_behind_the_end_at_takeover_are_not_suspect() {
    let metadata = "cqrs1;u=2.1;until=190".into();
    let mut world = World::new(1, [Log { end: 2, metadata, ..Log::default() }]);
    world.logs[0].end = 5;
    assert_eq!(world.hand_out(0), [0]);
    world.members[0].partition.hold(&record(0), Default::default());
    assert_eq!(world.hand_out(0), [1]);
    world.finish(0, 1);
    assert_eq!(world.hand_out(0), [2, 3, 4]);
}

#[test]
fn poison_is_dead_after_two_and_max_crashes_deaths() {
    for poison in [0, 7, 19] {
        let mut world = World::new(7, [log(20, [poison])]);
        world.live(20, 0, 0, false);
        assert_eq!(world.logs[0].dead, BTreeSet::from([poison]));
        assert_eq!(world.deaths, 2 + MAX_CRASHES as usize);
    }
}

#[test]
fn poison_that_arrives_late_is_dead_as_soon() {
    let mut world = World::new(7, [log(20, [])]);
    world.live(20, 1, 0, false);
    world.logs[0].end = 30;
    world.logs[0].poisons.insert(25);
    world.live(30, 0, 0, false);
    assert_eq!(world.deaths, 2 + MAX_CRASHES as usize);
}

/// A process that dies of something else, again and again, beside a record that takes 15 s.
#[test]
fn short_lived_process_counts_against_no_slow_record() {
    for life in [1, 5, 10, 14, 16, 29] {
        let mut world = World::new(1, [log(1, [])]);
        for start in 0..20 {
            let (born, mut begun) = (world.now, None);
            while world.now < born + Duration::from_secs(life) {
                if !world.hand_out(0).is_empty() {
                    begun = Some(world.now);
                }
                if begun.is_some_and(|begun| world.now >= begun + Duration::from_secs(15)) {
                    world.finish(0, 0);
                    begun = None;
                }
                world.now += Duration::from_millis(500);
            }
            world.kill();
            assert!(world.crashes(0, 0) <= 1, "life {life}, start {start}");
        }
        assert!(world.logs[0].dead.is_empty());
    }
}

#[test]
fn lost_memberships_count_as_no_death() {
    let mut world = World::new(1, [log(3, [])]);
    for _ in 0..2 {
        world.hand_out(0);
        world.kill();
    }
    assert_eq!(world.hand_out(0), [0]);
    for _ in 0..5 {
        world.lose();
        world.commit_all();
        assert_eq!((world.crashes(0, 0), world.logs[0].says().count), (0, 3));
        assert_eq!(world.hand_out(0), [0]);
    }
    world.kill();
    assert_eq!(world.crashes(0, 0), 1);
}

#[test]
fn clean_end_leaves_nothing_to_be_careful_about() {
    let mut world = World::new(1, [log(9, [])]);
    world.hand_out(0);
    world.kill();
    world.hand_out(0);
    assert_eq!(world.logs[0].says().count, 2);
    world.close();
    let says = world.logs[0].says();
    assert_eq!((says.count, says.until, says.named), (0, None, None));
    world.logs[0].end = 18;
    assert_eq!(world.hand_out(0).len(), 9, "they run as usual");
}

#[test]
fn clean_end_keeps_suspects_that_did_not_run_alone() {
    for (has_turn, is_same_process) in [(true, false), (true, true), (false, false), (false, true)]
    {
        let mut world = World::new(1, [log(9, [])]);
        for _ in 0..2 {
            world.hand_out(0);
            world.kill();
        }
        let turn = if has_turn { None } else { world.process.take_turn() };
        assert_eq!(world.hand_out(0).len(), usize::from(has_turn));
        if is_same_process {
            world.end_runs();
            let draft = world.members[0].partition.close();
            world.in_flight = Some(draft.into_iter().map(|draft| (0, draft)).collect());
            world.arrive();
            world.take_over();
        } else {
            world.close();
        }
        let says = world.logs[0].says();
        assert_eq!((says.count > 2, says.until, says.named), (true, Some(9), None));
        drop(turn);
        assert_eq!(world.hand_out(0).len(), 1, "they run one by one");
    }
}

#[test]
fn end_beside_a_running_handler_forgives_nothing() {
    let mut world = World::new(1, [log(9, [])]);
    world.hand_out(0);
    world.kill();
    assert_eq!(world.hand_out(0).len(), 9);
    let draft = world.members[0].partition.close().unwrap();
    let says = draft.metadata.unwrap().unclean;
    assert_eq!((says.count, says.named), (1, None));
}

#[test]
fn max_crashes_of_zero_counts_nothing() {
    let mut world = World::new(1, []);
    world.max_crashes = 0;
    world.logs = vec![log(9, [])];
    world.take_over();
    for _ in 0..4 {
        assert_eq!(world.hand_out(0).len(), 9, "at once");
        world.kill();
        assert_eq!(world.logs[0].says(), UncleanEnds::default());
    }
}

#[test]
fn refused_commits_hold_nothing_back() {
    let mut world = World::new(1, [log(9, [])]);
    for _ in 0..2 {
        world.hand_out(0);
        world.kill();
    }
    let draft = world.members[0].partition.draft().unwrap();
    world.members[0].partition.refused(&draft, true);
    assert_eq!(world.members[0].partition.granted(), i64::MAX);
    assert_eq!(world.members[0].partition.draft().unwrap().metadata, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn poison_is_dead_in_time_and_nothing_else(
        seed in 1..u64::MAX,
        poisons in 0..3_usize,
        closes in 0..4_usize,
        is_slow in prop::bool::weighted(0.3),
        holds in any::<bool>(),
    ) {
        let mut world = World::new(seed, (0..PARTITIONS).map(|_| log(0, [])));
        world.holds = holds;
        for _ in 0..poisons {
            let (at, offset) = (world.below(PARTITIONS), world.below(600) as i64);
            world.logs[at].poisons.insert(offset);
        }
        // With more of both, three could meet the same record.
        let kills = 2 - poisons;
        world.live(700, kills, closes, is_slow);
        for log in &world.logs {
            prop_assert_eq!(&log.dead, &log.poisons);
            prop_assert!((0..700).all(|at| log.handled.contains(&at) != log.dead.contains(&at)));
        }
        let poisons: usize = world.logs.iter().map(|log| log.poisons.len()).sum();
        let each = 2 + MAX_CRASHES as usize;
        // Beside what is held, or runs for too long, deaths are not counted; a clean end forgives.
        let most = if is_slow || holds { 4 * each } else { each + closes } * poisons;
        prop_assert!(world.deaths <= most + closes, "{} deaths", world.deaths);
    }
}
