//! `outbox-relay`: what the outbox of PostgreSQL costs its writers, and what its relay to Kafka does.

mod fixture;
mod growth;
mod held;
mod insert;
mod latency;
mod rate;
mod raw;
mod relays;
mod table;
mod watched;

use std::time::Duration;

use clap::{Args, Subcommand};

use self::fixture::{Fixture, Server};
use crate::settings::Settings;

/// A scenario and its servers. Each scenario has a schema and a topic of its own, and drops both at its end.
#[derive(Args)]
pub(crate) struct OutboxRelay {
    #[command(subcommand)]
    scenario: Scenario,
    /// The PostgreSQL server.
    #[arg(
        long,
        env = "CQRS_TEST_POSTGRES",
        default_value = "postgres://cqrs:cqrs@localhost:5432/cqrs",
        global = true
    )]
    postgres: String,
    /// Keys of the events. Each key has one event in flight.
    #[arg(long, default_value_t = 1_000, global = true)]
    keys: usize,
}

#[derive(Subcommand)]
enum Scenario {
    /// Events a second from the commit of all rows to the last delete, beside raw publishing and raw reading.
    Rate {
        /// Rows that are inserted before.
        #[arg(long, default_value_t = 100_000)]
        rows: usize,
        /// Numbers of relays to compare, interleaved.
        #[arg(long, value_delimiter = ',', default_value = "1,4")]
        relays: Vec<usize>,
    },
    /// The cost of a command: plain INSERT, with the outbox, with a direct publish; 1 and 16 tasks.
    Insert {
        /// Commands of one task, round and side.
        #[arg(long, default_value_t = 500)]
        commands: usize,
    },
    /// From commit to confirm while idle: by the wake-up of the process, and by NOTIFY.
    Latency {
        /// Events of one round and side.
        #[arg(long, default_value_t = 500)]
        events: usize,
        /// Milliseconds between two events.
        #[arg(long, default_value_t = 20)]
        every: u64,
    },
    /// Relay rate and read time by the number of pending rows, and of dead ones.
    Growth {
        /// Pending rows to compare. A writer keeps their number.
        #[arg(long, value_delimiter = ',', default_value = "1000,1000000")]
        pending: Vec<usize>,
        /// Dead rows to compare.
        #[arg(long, value_delimiter = ',', default_value = "0,10000000")]
        dead: Vec<usize>,
        /// Seconds of one measurement.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// Rate and latency while a transaction holds an old snapshot, against the same run without it.
    HeldSnapshot {
        /// Seconds that the transaction is open.
        #[arg(long, default_value_t = 120)]
        hold: u64,
        /// Events a second.
        #[arg(long, default_value_t = 2_000)]
        rate: usize,
    },
}

pub(crate) async fn run(args: OutboxRelay, settings: Settings) {
    let OutboxRelay { scenario, postgres, keys } = args;
    let Settings { servers, partitions, rounds, .. } = settings;
    let partitions = partitions.first().copied().unwrap_or(4);
    let server = Server { postgres, kafka: servers, partitions, keys };
    match scenario {
        Scenario::Rate { rows, relays } => {
            let rounds = rounds.unwrap_or(5);
            server.with(1, async |on| rate::run(&on[0], rows, &relays, rounds).await).await;
        }
        Scenario::Insert { commands } => {
            let rounds = rounds.unwrap_or(5);
            server.with(1, async |on| insert::run(&on[0], commands, rounds).await).await;
        }
        Scenario::Latency { events, every } => {
            let rounds = rounds.unwrap_or(5);
            let every = Duration::from_millis(every);
            server.with(1, async |on| latency::run(&on[0], events, every, rounds).await).await;
        }
        Scenario::Growth { pending, dead, seconds } => {
            let (rounds, took) = (rounds.unwrap_or(3), Duration::from_secs(seconds));
            let measure =
                async |on: &[Fixture]| growth::run(on, &pending, &dead, took, rounds).await;
            server.with(dead.len(), measure).await;
        }
        Scenario::HeldSnapshot { hold, rate } => {
            let (rounds, hold) = (rounds.unwrap_or(1), Duration::from_secs(hold));
            server.with(1, async |on| held::run(&on[0], hold, rate, rounds).await).await;
        }
    }
}
