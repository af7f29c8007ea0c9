//! A simulation of several relays on one database: crashes, zombies, late commits, outages.
//!
//! Every step is drawn from a seed, so a failure is repeated by its seed. The checks are the invariants of
//! the relay: no row is lost, none that was rolled back is sent, the first deliveries of a key are in order.

mod database;
mod relay;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use database::{Database, KEYLESS, KEYS, LANES, Writer};
use relay::Relay;
use uuid::Uuid;

use super::effects::{Outcome, Publish};
use super::share::fair_share;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

/// A message between a relay and the broker. One of a relay that crashed may still arrive.
struct InFlight {
    relay: usize,
    publish: Publish<i64>,
    is_stored: bool,
}

/// The faults of a run.
#[derive(Debug, Clone, Copy)]
struct Faults {
    crashes: bool,
    zombies: bool,
    broken_connections: bool,
    unreliable_broker: bool,
    failovers: bool,
}

struct World {
    random: Random,
    faults: Faults,
    database: Database,
    /// An earlier state of the database, which takes over in a failover.
    replica: Database,
    writers: Vec<Writer>,
    relays: Vec<Relay>,
    /// The relays that the others take for dead.
    dead: BTreeSet<usize>,
    in_flight: Vec<InFlight>,
    log: Vec<i64>,
    next_relay: usize,
    is_outage: bool,
    now: Duration,
}

/// One row in 16 is refused for good.
fn is_poison(event: i64) -> bool {
    event % 16 == 3
}

impl World {
    fn new(seed: u64, faults: Faults) -> Self {
        let relays = vec![Relay::new(0), Relay::new(1)];
        Self {
            random: Random(seed),
            faults,
            database: Database::new(),
            replica: Database::new(),
            writers: Vec::new(),
            relays,
            dead: BTreeSet::new(),
            in_flight: Vec::new(),
            log: Vec::new(),
            next_relay: 2,
            is_outage: false,
            now: Duration::ZERO,
        }
    }

    fn write(&mut self) {
        match self.random.below(3) {
            0 if self.writers.len() < 5 => {
                let key = self.random.below(KEYS as usize + 1) as u8;
                let key = if key == KEYS { KEYLESS } else { key };
                // Writers of a key serialize.
                let is_free = self.writers.iter().all(|writer| writer.key != key);
                if is_free || key == KEYLESS {
                    self.writers.push(self.database.write(key));
                }
            }
            1 if !self.writers.is_empty() => {
                let place = self.random.below(self.writers.len());
                self.database.insert(&mut self.writers[place]);
            }
            // The first writer lives longest.
            2 if !self.writers.is_empty() && !self.random.one_in(3) => {
                let place = self.random.below(self.writers.len());
                let place = if place == 0 && self.random.one_in(2) { return } else { place };
                let writer = self.writers.swap_remove(place);
                let commits = !self.random.one_in(5);
                self.database.end(writer, commits);
            }
            _ => {}
        }
    }

    fn broker(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        let place = self.random.below(self.in_flight.len());
        let sent = &mut self.in_flight[place];
        if !sent.is_stored && !self.is_outage && !is_poison(sent.publish.payload) {
            self.log.push(sent.publish.payload);
            sent.is_stored = true;
            return;
        }
        let is_unreliable = self.faults.unreliable_broker && self.random.one_in(4);
        let sent = self.in_flight.swap_remove(place);
        let outcome = match (is_poison(sent.publish.payload), sent.is_stored) {
            (true, _) if !self.is_outage => Outcome::Refused("poison".into()),
            (false, true) if !is_unreliable => Outcome::Confirmed,
            _ if self.random.one_in(2) => Outcome::Failed("unknown".into()),
            _ => Outcome::Returned(sent.publish.payload),
        };
        let relay = self.relays.iter_mut().find(|relay| relay.number == sent.relay);
        if let Some(relay) = relay {
            relay.lanes.published(&sent.publish, outcome, self.now);
        }
    }

    fn relay(&mut self) {
        let place = self.random.below(self.relays.len());
        let choice = self.random.next();
        let breaks = self.faults.broken_connections && self.random.one_in(12);
        let number = self.relays[place].number;
        // It works while the others take it for dead, until a heartbeat makes it alive again.
        if choice.is_multiple_of(16) {
            self.dead.remove(&number);
        }
        let live = self.relays.iter().map(|of| of.number).filter(|of| !self.dead.contains(of));
        let live: Vec<_> = live.map(|of| Uuid::from_u128(of as u128)).collect();
        let share = fair_share(LANES as usize, &live, Uuid::from_u128(number as u128));
        let relay = &mut self.relays[place];
        let dead: Vec<_> = self.dead.iter().copied().filter(|of| *of != number).collect();
        match choice % 4 {
            0 => relay.send(choice / 4, share, self.now),
            1 => relay.execute(choice / 4, &mut self.database, &dead, breaks),
            2 => relay.receive(choice / 4, self.now),
            _ => {
                if let Some(publish) = relay.lanes.next_publish() {
                    self.in_flight.push(InFlight { relay: number, publish, is_stored: false });
                }
            }
        }
    }

    fn fault(&mut self) {
        match self.random.below(3) {
            0 if self.faults.crashes => {
                let place = self.random.below(self.relays.len());
                self.dead.insert(self.relays[place].number);
                self.relays[place] = Relay::new(self.next_relay);
                self.next_relay += 1;
            }
            1 if self.faults.zombies => {
                let place = self.random.below(self.relays.len());
                self.dead.insert(self.relays[place].number);
            }
            2 if self.faults.unreliable_broker => self.is_outage = !self.is_outage,
            _ if self.faults.failovers => self.fail_over(),
            _ => {}
        }
    }

    fn fail_over(&mut self) {
        for writer in self.writers.drain(..) {
            self.database.end(writer, false);
        }
        self.database.fail_over(&self.replica);
        self.relays.iter_mut().for_each(Relay::disconnect);
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(1);
        if self.faults.failovers && self.random.one_in(50) {
            self.replica = self.database.clone();
        }
        match self.random.below(100) {
            0 => self.fault(),
            1..15 => self.write(),
            15..35 => self.broker(),
            _ => self.relay(),
        }
    }

    /// Ends all faults and runs until all is published.
    fn settle(&mut self) {
        while let Some(writer) = self.writers.pop() {
            self.database.end(writer, true);
        }
        let no_faults = Faults {
            crashes: false,
            zombies: false,
            broken_connections: false,
            unreliable_broker: false,
            failovers: false,
        };
        (self.faults, self.is_outage) = (no_faults, false);
        for _ in 0..200_000 {
            let database = &self.database;
            let is_idle = self.relays.iter().all(Relay::is_idle) && self.in_flight.is_empty();
            if is_idle && database.pending.is_empty() && database.parked.is_empty() {
                return;
            }
            self.step_without_writes();
        }
        panic!("not settled: {:?} {:?}", self.database, self.relays);
    }

    fn step_without_writes(&mut self) {
        self.now += Duration::from_millis(1);
        match self.random.below(4) {
            0 => self.broker(),
            _ => self.relay(),
        }
    }

    fn check(&self) {
        let mut times: BTreeMap<i64, usize> = BTreeMap::new();
        let mut last: BTreeMap<u8, i64> = BTreeMap::new();
        for id in &self.log {
            assert!(!self.database.rolled_back.contains(id), "{id} was rolled back");
            if self.database.lost.contains(id) {
                continue;
            }
            let times = times.entry(*id).or_default();
            *times += 1;
            let key = self.database.committed[id];
            if *times == 1 && key != KEYLESS {
                let before = last.insert(key, *id);
                assert!(before.is_none_or(|before| before < *id), "{id} after {before:?}");
            }
        }
        for id in self.database.committed.keys() {
            let is_dead = self.database.dead.contains(id);
            assert_eq!(is_dead, is_poison(*id), "{id}");
            assert!(is_dead || times.contains_key(id), "{id} is lost");
        }
        let Faults { crashes, zombies, unreliable_broker, failovers, .. } = self.faults;
        if !(crashes || zombies || unreliable_broker || failovers) {
            let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
            assert!(twice.is_empty(), "more than once: {twice:?}");
        }
    }
}

fn run(seeds: std::ops::Range<u64>, faults: Faults) {
    let mut rows = 0;
    for seed in seeds {
        let shown = SeedOnPanic(seed);
        let mut world = World::new(seed, faults);
        (0..2_000).for_each(|_| world.step());
        world.settle();
        world.faults = faults;
        world.check();
        rows += world.log.len();
        std::mem::forget(shown);
    }
    assert!(rows > 1_000, "{rows}");
}

struct SeedOnPanic(u64);

impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        eprintln!("seed {}", self.0);
    }
}

/// More seeds for a long run: `CQRS_SIMULATION=100`.
fn scale() -> u64 {
    std::env::var("CQRS_SIMULATION").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

const NONE: Faults = Faults {
    crashes: false,
    zombies: false,
    broken_connections: false,
    unreliable_broker: false,
    failovers: false,
};

#[test]
fn without_faults_each_row_goes_once_in_order() {
    run(0..100 * scale(), NONE);
}

#[test]
fn late_commits_and_broken_connections_lose_nothing() {
    run(0..100 * scale(), Faults { broken_connections: true, ..NONE });
}

#[test]
fn crashes_and_zombies_lose_nothing() {
    run(0..200 * scale(), Faults { crashes: true, zombies: true, ..NONE });
}

#[test]
fn outages_lose_nothing() {
    run(0..100 * scale(), Faults { unreliable_broker: true, ..NONE });
}

#[test]
fn failover_that_uses_ids_again_loses_no_other_row() {
    run(0..200 * scale(), Faults { failovers: true, ..NONE });
}

#[test]
fn all_faults_together_lose_nothing() {
    let all = Faults {
        crashes: true,
        zombies: true,
        broken_connections: true,
        unreliable_broker: true,
        ..NONE
    };
    run(0..200 * scale(), all);
}
