//! A transaction that holds an old snapshot while events are written and published at a fixed rate: no dead
//! row can be vacuumed meanwhile.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::fixture::{Fixture, key};
use super::latency::{Commit, latencies, write};
use super::relays::{Relays, owned};
use super::table::{Series, Table, percentile};
use crate::measure::Unit;

/// Tasks that write, and the time between two transactions of one.
const WRITERS: usize = 4;
const EVERY: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Side {
    rate: Series,
    median: Series,
    p99: Series,
    worst: Series,
    dead: Series,
    size: Series,
}

pub(super) async fn run(on: &Fixture, hold: Duration, rate: usize, rounds: usize) {
    let mut sides = [("without", Side::default()), ("with", Side::default())];
    for _ in 0..rounds {
        for (name, side) in &mut sides {
            on.truncate().await;
            let mut held = on.pool().acquire().await.expect("a connection");
            if *name == "with" {
                let sql = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM cqrs_outbox";
                sqlx::raw_sql(sql).execute(&mut *held).await.expect("a snapshot");
            }
            side.measure(on, hold, rate).await;
            sqlx::raw_sql("ROLLBACK").execute(&mut *held).await.expect("the end of it");
        }
    }
    let columns =
        ["held snapshot", "events/s", "median ms", "p99 ms", "worst ms", "dead rows", "table, MB"];
    let mut table = Table::new(&columns);
    for (name, side) in &sides {
        let (dead, size) = (side.dead.text(0), side.size.text(1));
        let (median, p99, worst) = (side.median.text(1), side.p99.text(1), side.worst.text(1));
        table.row([(*name).into(), side.rate.text(0), median, p99, worst, dead, size]);
    }
    let [(_, without), (_, with)] = &sides;
    let (rate_ratio, p99) = (with.rate.against(&without.rate), with.p99.against(&without.p99));
    let none = String::new;
    table.row(["ratio".into(), rate_ratio, none(), p99, none(), none(), none()]);
    let title = format!("outbox-relay held-snapshot: {rate} events/s for {hold:?}");
    table.print(&format!("{title}, commit to the broker's confirm"));
}

impl Side {
    async fn measure(&mut self, on: &Fixture, hold: Duration, rate: usize) {
        let (broker, mut confirmed) = on.broker().await.with_confirms();
        let relays = Relays::start(&on.outbox, &[broker]);
        owned(on.pool(), &[64]).await;
        let start = Instant::now();
        let commits = write_for(on, hold, rate).await;
        let events = commits.iter().map(|commit| commit.ids.len()).sum::<usize>();
        let mut confirms = HashMap::with_capacity(events);
        while confirms.len() < events {
            let (id, at) = confirmed.recv().await.expect("a confirm");
            confirms.entry(id).or_insert(at);
        }
        let last = confirms.values().max().copied().unwrap_or(start);
        self.rate.push(Unit::MessagesPerSecond.of(events, last - start));
        let latencies = latencies(&commits, &confirms);
        self.median.push(percentile(&latencies, 0.5));
        self.p99.push(percentile(&latencies, 0.99));
        self.worst.push(percentile(&latencies, 1.0));
        relays.stop().await;
        let stat = "SELECT pg_stat_force_next_flush(), pg_stat_clear_snapshot()";
        on.execute(stat).await;
        let dead = "SELECT n_dead_tup::float8 FROM pg_stat_user_tables \
                    WHERE relid = 'cqrs_outbox'::regclass";
        self.dead.push(on.number(dead).await);
        let size = "SELECT pg_total_relation_size('cqrs_outbox')::float8 / 1000000";
        self.size.push(on.number(size).await);
    }
}

/// Writes `rate` events a second in small transactions. Late transactions follow at once.
async fn write_for(on: &Fixture, hold: Duration, rate: usize) -> Vec<Commit> {
    let batch = (rate as f64 * EVERY.as_secs_f64() / WRITERS as f64).round().max(1.0) as usize;
    let count = (hold.as_secs_f64() / EVERY.as_secs_f64()) as usize;
    let writer = |writer: usize| {
        let (outbox, topic, keys) = (on.outbox.clone(), on.topic.clone(), on.keys());
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut commits = Vec::with_capacity(count);
            for number in 0..count {
                ticks.tick().await;
                let first = (number * WRITERS + writer) * batch;
                let batch = (first..first + batch).map(|event| key(event, keys));
                commits.push(write(&outbox, &topic, batch).await);
            }
            commits
        })
    };
    let writers: Vec<_> = (0..WRITERS).map(writer).collect();
    let mut commits = Vec::new();
    for writer in writers {
        commits.extend(writer.await.expect("a writer"));
    }
    commits
}
