//! Tests of the quarantine, on a simulation.

use std::collections::BTreeSet;

use proptest::prelude::*;

use self::simulation::{Log, MAX_CRASHES, Simulation, TICK, keyed, log, record};
use super::*;
use crate::consumer::commit_metadata::CommitMetadata;

mod simulation;

const PARTITIONS: usize = 3;

#[test]
fn one_unclean_end_delays_nothing() {
    let mut simulation = Simulation::new(1, (0..8).map(|_| log(1, [])));
    simulation.deliver_all(0);
    simulation.kill();
    for at in 0..8 {
        assert_eq!(simulation.deliver_all(at), [0], "it waits for no other partition");
        assert_eq!(simulation.logs[at].unclean().count, 2);
    }
}

#[test]
fn window_widens_in_a_standstill() {
    let mut simulation = Simulation::new(1, [log(5_000, [])]);
    simulation.concurrency = 1;
    simulation.deliver_all(0);
    simulation.kill();
    let (mut out, start) = (0, simulation.now);
    while out < 5_000 {
        out += simulation.deliver_all(0).len();
        simulation.now += AHEAD;
        assert!(simulation.now < start + Duration::from_secs(2), "{out} of 5000");
    }
}

/// Between two records of a busy partition a worker is idle for a moment, and the other partition's records still
/// wait.
#[test]
fn busy_partition_widens_no_window_of_another() {
    let mut simulation = Simulation::new(1, [log(100_000, []), log(100_000, [])]);
    for at in 0..2 {
        simulation.deliver_all(at);
    }
    simulation.kill();
    let (start, mut handled) = (simulation.now, 0);
    while simulation.now < start + 40 * AHEAD {
        simulation.now += TICK;
        simulation.commit_all();
        for at in 0..2 {
            simulation.deliver_queued(at, 100_000);
        }
        if let Some(offset) = simulation.members[0].running.pop() {
            simulation.finish(0, offset);
            handled += 1;
        }
        // One of the 8 workers is idle when the quarantine advances.
        simulation.start(0, 7 - simulation.members[0].running.len());
    }
    assert!(handled > 900, "{handled} records of the busy partition");
    let until = simulation.logs[1].unclean().until.unwrap();
    assert!(until <= 2 * 8, "{until}");
}

#[test]
fn quick_records_widen_the_window() {
    let mut simulation = Simulation::new(1, [log(100_000, [])]);
    simulation.deliver_all(0);
    simulation.kill();
    let mut commits = 0;
    while simulation.logs[0].committed < 50_000 {
        simulation.now += TICK;
        simulation.commit_all();
        commits += 1;
        simulation.deliver(0, 100_000);
        let running = std::mem::take(&mut simulation.members[0].running);
        running.into_iter().for_each(|offset| simulation.finish(0, offset));
    }
    assert!(commits < 120, "{commits} commits");
}

#[test]
fn second_unclean_end_leaves_few_records() {
    let mut simulation = Simulation::new(1, [log(10_000, [])]);
    simulation.deliver_all(0);
    simulation.kill();
    for _ in 0..100 {
        simulation.now += TICK;
        simulation.commit_all();
        simulation.deliver_queued(0, 10_000);
        // The 8 workers stay busy.
        simulation.start(0, 8 - simulation.members[0].running.len());
    }
    let until = simulation.logs[0].unclean().until.unwrap();
    assert!(until <= 48, "{until}");
}

#[test]
fn third_start_runs_records_one_by_one() {
    let mut simulation = Simulation::new(1, [log(3, []), log(3, [])]);
    simulation.kill_twice();
    assert_eq!(simulation.deliver_all(0), [0]);
    assert_eq!(
        (simulation.logs[0].unclean().count, simulation.logs[0].unclean().named),
        (3, Some(0))
    );
    assert_eq!(simulation.deliver_all(1), Vec::<i64>::new(), "one partition at a time");
    assert_eq!(simulation.deliver_all(0), Vec::<i64>::new(), "one record at a time");
    for offset in 0..3 {
        simulation.finish(0, offset);
        assert_eq!(simulation.deliver_all(0), (offset + 1..3).take(1).collect::<Vec<_>>());
    }
    assert_eq!(simulation.logs[0].unclean().named, None);
    assert_eq!(simulation.logs[0].unclean().count, 1, "earlier unclean ends are forgotten");
    assert_eq!(simulation.deliver_all(1), [0]);
}

#[test]
fn lock_is_kept_while_a_name_is_committed() {
    let mut simulation = Simulation::new(1, [log(2, []), log(2, [])]);
    simulation.kill_twice();
    for offset in 0..2 {
        assert_eq!(simulation.deliver_all(0), [offset]);
        simulation.finish(0, offset);
    }
    let named = |simulation: &Simulation, at: usize| {
        let draft = simulation.members[at].partition.tracker().draft();
        draft.and_then(|draft| draft.metadata.unwrap().unclean.named)
    };
    simulation.deliver(0, 10);
    simulation.deliver(1, 10);
    assert_eq!(simulation.logs[0].unclean().named, Some(1), "no later commit has arrived");
    assert_eq!((named(&simulation, 0), named(&simulation, 1)), (None, None));
    simulation.commit_all();
    assert_eq!(simulation.deliver_all(1), [0]);
}

#[test]
fn quarantine_lasts_a_minute_at_most() {
    let mut simulation = Simulation::new(1, [log(9, []), log(9, [])]);
    simulation.kill_twice();
    assert_eq!((simulation.deliver_all(0), simulation.deliver_all(1)), (vec![0], vec![]));
    simulation.now += LONGEST - TICK;
    assert_eq!((simulation.deliver_all(0), simulation.deliver_all(1)), (vec![], vec![]));
    simulation.now += TICK;
    assert_eq!(simulation.deliver_all(0), (1..9).collect::<Vec<_>>(), "beside the slow one");
    assert_eq!((simulation.logs[0].unclean().named, simulation.deliver_all(1)), (None, vec![0]));
    simulation.kill();
    assert_eq!((simulation.crashes(0, 0), simulation.crashes(1, 0)), (0, 1));
}

#[test]
fn held_record_blocks_naming_of_its_key() {
    let mut simulation = Simulation::new(1, [log(4, [])]);
    simulation.kill_twice();
    assert_eq!(simulation.deliver_all(0), [0]);
    simulation.members[0].partition.hold(&keyed(0, "a"), Default::default());
    assert_eq!(simulation.consider(1, "a"), (None, 2), "it waits behind the held one");
    assert_eq!(simulation.consider(2, "b"), (Some(2), 3));
}

#[test]
fn quarantine_ends_at_the_end_of_the_log() {
    let mut simulation = Simulation::new(1, [log(1, [])]);
    simulation.kill_twice();
    assert_eq!(simulation.deliver_all(0), [0]);
    simulation.members[0].partition.hold(&record(0), Default::default());
    simulation.deliver_all(0);
    assert!(simulation.process.try_lock().is_some(), "no record waits to run alone");
}

#[test]
fn held_record_blocks_naming_in_strict_order() {
    let mut simulation = Simulation::new(1, [log(4, [])]);
    simulation.concurrency = 1;
    simulation.kill_twice();
    assert_eq!(simulation.deliver_all(0), [0]);
    simulation.members[0].partition.hold(&record(0), Default::default());
    assert_eq!(simulation.consider(1, "a"), (None, 2), "it runs after the one that is held");
    assert_eq!(simulation.consider(2, "b"), (None, 3));
}

/// Two unclean ends, and the first of four quarantined records failed just now: it waits for 10 s.
fn failed_log() -> Log {
    let mut found = CommitMetadata::parse("cqrs1;u=2.1;until=4");
    let state = (0..4).fold(RetryState::default(), |state, _| state.failed(Timestamp::now()));
    found.attempts.insert(0, state);
    Log { end: 4, metadata: found.to_text(), ..Log::default() }
}

#[test]
fn record_that_waits_for_its_retry_is_not_named() {
    let mut simulation = Simulation::new(1, [failed_log()]);
    assert_eq!(simulation.consider(0, "a"), (None, 1), "it does not start yet");
    assert_eq!(simulation.consider(1, "a"), (None, 2), "it waits behind the held one");
    assert_eq!(simulation.consider(2, "b"), (Some(2), 3));
    simulation.kill();
    assert_eq!((simulation.crashes(0, 0), simulation.crashes(0, 2)), (0, 1));
}

#[test]
fn nothing_is_named_behind_a_retry_in_strict_order() {
    let mut simulation = Simulation::new(1, [failed_log(), log(1, [])]);
    simulation.concurrency = 1;
    simulation.take_over();
    for offset in 0..4 {
        assert_eq!(simulation.consider(offset, "a"), (None, offset + 1));
    }
    simulation.consider(4, "a");
    assert!(simulation.process.try_lock().is_some(), "its records are delivered");
}

#[test]
fn named_unfinished_record_has_crashed() {
    let crashes = |committed, metadata: &str, named| {
        let found = Log { end: 9, committed, metadata: metadata.into(), ..Log::default() };
        Simulation::new(1, [found]).crashes(0, named)
    };
    assert_eq!(crashes(4, "cqrs1;u=3.1;until=8;n=5;c=5.1", 5), 2);
    assert_eq!(crashes(4, "cqrs1;u=3.1;until=8;n=5;c=5.1;d=5.1", 5), 0, "it is finished");
    assert_eq!(crashes(6, "cqrs1;u=3.1;until=8;n=5;c=5.1", 5), 0, "it is finished");
    assert_eq!(crashes(4, "cqrs1;until=8;n=5;c=5.1", 5), 1, "the end was clean");
}

#[test]
fn records_after_takeover_are_not_quarantined() {
    let metadata = "cqrs1;u=2.1;until=190".into();
    let mut simulation = Simulation::new(1, [Log { end: 2, metadata, ..Log::default() }]);
    simulation.logs[0].end = 5;
    assert_eq!(simulation.deliver_all(0), [0]);
    simulation.members[0].partition.hold(&record(0), Default::default());
    assert_eq!(simulation.deliver_all(0), [1]);
    simulation.finish(0, 1);
    assert_eq!(simulation.deliver_all(0), [2, 3, 4]);
}

#[test]
fn poison_is_dead_lettered_after_max_crashes() {
    for poison in [0, 7, 19] {
        let mut simulation = Simulation::new(7, [log(20, [poison])]);
        simulation.run_to_end(20, 0, 0, false);
        assert_eq!(simulation.logs[0].dead_letters, BTreeSet::from([poison]));
        assert_eq!(simulation.deaths, 2 + MAX_CRASHES as usize);
    }
}

#[test]
fn later_poison_is_dead_lettered_as_soon() {
    let mut simulation = Simulation::new(7, [log(20, [])]);
    simulation.run_to_end(20, 1, 0, false);
    simulation.logs[0].end = 30;
    simulation.logs[0].poisons.insert(25);
    simulation.run_to_end(30, 0, 0, false);
    assert_eq!(simulation.deaths, 2 + MAX_CRASHES as usize);
}

/// A process that keeps dying of something else, beside a record that takes 15 s.
#[test]
fn short_lived_process_counts_once_at_most() {
    for life in [1, 5, 10, 14, 16, 29] {
        let mut simulation = Simulation::new(1, [log(1, [])]);
        for round in 0..20 {
            let (start_time, mut started) = (simulation.now, None);
            while simulation.now < start_time + Duration::from_secs(life) {
                if !simulation.deliver_all(0).is_empty() {
                    started = Some(simulation.now);
                }
                if started.is_some_and(|at| simulation.now >= at + Duration::from_secs(15)) {
                    simulation.finish(0, 0);
                    started = None;
                }
                simulation.now += Duration::from_millis(500);
            }
            simulation.kill();
            assert!(simulation.crashes(0, 0) <= 1, "life {life}, round {round}");
        }
        assert!(simulation.logs[0].dead_letters.is_empty());
    }
}

#[test]
fn lost_membership_is_no_crash() {
    let mut simulation = Simulation::new(1, [log(3, [])]);
    simulation.kill_twice();
    assert_eq!(simulation.deliver_all(0), [0]);
    for _ in 0..5 {
        simulation.lose_membership();
        simulation.commit_all();
        assert_eq!((simulation.crashes(0, 0), simulation.logs[0].unclean().count), (0, 3));
        assert_eq!(simulation.deliver_all(0), [0]);
    }
    simulation.kill();
    assert_eq!(simulation.crashes(0, 0), 1);
}

#[test]
fn clean_end_forgets_unclean_ends() {
    let mut simulation = Simulation::new(1, [log(9, [])]);
    simulation.deliver_all(0);
    simulation.kill();
    simulation.deliver_all(0);
    assert_eq!(simulation.logs[0].unclean().count, 2);
    simulation.close();
    let unclean = simulation.logs[0].unclean();
    assert_eq!((unclean.count, unclean.until, unclean.named), (0, None, None));
    simulation.logs[0].end = 18;
    assert_eq!(simulation.deliver_all(0).len(), 9, "they run as usual");
}

#[test]
fn clean_end_keeps_records_that_did_not_run_alone() {
    for (has_lock, is_same_process) in [(true, false), (true, true), (false, false), (false, true)]
    {
        let mut simulation = Simulation::new(1, [log(9, [])]);
        simulation.kill_twice();
        let lock = if has_lock { None } else { simulation.process.try_lock() };
        assert_eq!(simulation.deliver_all(0).len(), usize::from(has_lock));
        if is_same_process {
            simulation.end_runs();
            let draft = simulation.members[0].partition.close();
            simulation.in_flight = Some(draft.into_iter().map(|draft| (0, draft)).collect());
            simulation.finish_commit();
            simulation.take_over();
        } else {
            simulation.close();
        }
        let unclean = simulation.logs[0].unclean();
        assert_eq!((unclean.count > 2, unclean.until, unclean.named), (true, Some(9), None));
        drop(lock);
        assert_eq!(simulation.deliver_all(0).len(), 1, "they run one by one");
    }
}

#[test]
fn end_beside_a_running_handler_forgets_nothing() {
    let mut simulation = Simulation::new(1, [log(9, [])]);
    simulation.deliver_all(0);
    simulation.kill();
    assert_eq!(simulation.deliver_all(0).len(), 9);
    let draft = simulation.members[0].partition.close().unwrap();
    let unclean = draft.metadata.unwrap().unclean;
    assert_eq!((unclean.count, unclean.named), (1, None));
}

#[test]
fn max_crashes_of_zero_counts_nothing() {
    let mut simulation = Simulation::new(1, []);
    simulation.max_crashes = 0;
    simulation.logs = vec![log(9, [])];
    simulation.take_over();
    for _ in 0..4 {
        assert_eq!(simulation.deliver_all(0).len(), 9, "at once");
        simulation.kill();
        assert_eq!(simulation.logs[0].unclean(), UncleanEnds::default());
    }
}

#[test]
fn refused_commits_delay_nothing() {
    let mut simulation = Simulation::new(1, [log(9, [])]);
    simulation.kill_twice();
    let draft = simulation.members[0].partition.tracker().draft().unwrap();
    simulation.members[0].partition.tracker().refused(&draft, true);
    assert_eq!(simulation.members[0].partition.delivery_limit(), i64::MAX);
    assert_eq!(simulation.members[0].partition.tracker().draft().unwrap().metadata, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn only_poison_is_dead_lettered(
        seed in 1..u64::MAX,
        poisons in 0..3_usize,
        closes in 0..4_usize,
        is_slow in prop::bool::weighted(0.3),
        holds in any::<bool>(),
    ) {
        let mut simulation = Simulation::new(seed, (0..PARTITIONS).map(|_| log(0, [])));
        simulation.holds = holds;
        for _ in 0..poisons {
            let (at, offset) = (simulation.random(PARTITIONS), simulation.random(600) as i64);
            simulation.logs[at].poisons.insert(offset);
        }
        // With more of both, three crashes could hit the same record.
        let kills = 2 - poisons;
        simulation.run_to_end(700, kills, closes, is_slow);
        for log in &simulation.logs {
            prop_assert_eq!(&log.dead_letters, &log.poisons);
            prop_assert!((0..700).all(|at| log.handled.contains(&at) != log.dead_letters.contains(&at)));
        }
        let poisons: usize = simulation.logs.iter().map(|log| log.poisons.len()).sum();
        let each = 2 + MAX_CRASHES as usize;
        // Crashes beside held or slow records are not counted; a clean end forgets.
        let most = if is_slow || holds { 4 * each } else { each + closes } * poisons;
        prop_assert!(simulation.deaths <= most + closes, "{} deaths", simulation.deaths);
    }
}
