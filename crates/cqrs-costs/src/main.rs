//! Instructions and allocations per message, counted by valgrind and held to the numbers in `costs.toml`.
//!
//! Neither depends on the load of the machine, so a test can hold them. `scripts/costs` builds this, installs
//! valgrind and runs `check`; `check --update` writes the numbers anew.
//!
//! A scenario runs twice under callgrind, with two numbers of messages; the difference, per message, is its cost.
//! Only the thread and the phase that [`measured`] marks are counted: not the filling of a queue, and not the
//! threads of a client.

mod callgrind;
mod consume;
mod dispatch;
mod measured;
mod publish;
mod record;
mod scenario;
#[cfg(feature = "servers")]
mod servers;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::callgrind::cost_of;
use crate::record::{Record, Verdict};
use crate::scenario::Scenario;

/// Runs of a scenario that is higher than its record, and of each one to be recorded. The least cost counts.
const RUNS: usize = 3;

#[derive(Parser)]
#[command(about = "Instructions and allocations per message")]
struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Compares the costs with the committed ones. Fails if one is higher.
    Check {
        /// Only the scenarios whose names contain this.
        filter: Option<String>,
        /// Writes the costs to the record instead.
        #[arg(long)]
        update: bool,
    },
    /// Runs one scenario, as it runs under valgrind.
    Run {
        /// Its name.
        scenario: Scenario,
        /// Calls, or messages.
        count: usize,
    },
}

fn main() -> ExitCode {
    match Args::parse().action {
        Action::Run { scenario, count } => {
            scenario.run(count);
            ExitCode::SUCCESS
        }
        Action::Check { filter, update } => match check(&filter.unwrap_or_default(), update) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("cqrs-costs: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

/// `false` if a scenario costs more than its record allows.
fn check(filter: &str, update: bool) -> Result<bool, String> {
    let mut record = Record::read()?;
    let mut fits = true;
    let chosen = Scenario::all().filter(|scenario| scenario.name().contains(filter));
    for scenario in chosen {
        let mut cost = cost_of(scenario)?;
        // The engine takes fewer messages at once while handlers look slow, as they do on a machine with a load.
        for _ in 1..RUNS {
            if update || matches!(record.judge(scenario, cost), Verdict::Higher(_)) {
                cost = cost.least(cost_of(scenario)?);
            }
        }
        let verdict = record.judge(scenario, cost);
        println!("{}", verdict.line(scenario, cost));
        fits &= update || !matches!(verdict, Verdict::Higher(_) | Verdict::Unknown);
        record.set(scenario, cost);
    }
    if update {
        record.write()?;
    }
    Ok(fits)
}
