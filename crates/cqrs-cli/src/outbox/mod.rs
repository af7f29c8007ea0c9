//! The commands of `cqrs outbox`.

mod change;
mod list;
mod show;
mod status;

use std::time::Duration;

use cqrs_outbox::{Outbox, RelayDatabase};

use crate::Outcome;
use crate::args::{Command, OutboxArgs, SqlArgs};
use crate::database::{Database, connect, tables};
use crate::failure::Failure;
use crate::output::line;

/// A table of rows whose publish failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Dead,
    Parked,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Parked => "parked",
        }
    }

    /// The name of [`FailedRow::at`](cqrs_outbox::FailedRow::at).
    fn time_name(self) -> &'static str {
        match self {
            Self::Dead => "died at",
            Self::Parked => "next attempt",
        }
    }
}

pub(crate) async fn run(args: OutboxArgs) -> Result<Outcome, Failure> {
    let migrates = match &args.command {
        Command::Sql(SqlArgs { dialect }) => {
            for (migration, sql) in tables(&args.database)?.migrations((*dialect).into()) {
                line(&format!("-- Migration {}: {}\n{sql}", migration.version, migration.name))?;
            }
            return Ok(Outcome::Done);
        }
        command => matches!(command, Command::Migrate),
    };
    let limit = args.database.timeout;
    match connect(&args.database, migrates).await? {
        Database::Mysql(outbox) => run_on(&outbox, limit, args.command).await,
        Database::Postgres(outbox) => run_on(&outbox, limit, args.command).await,
        Database::Sqlite(outbox) => run_on(&outbox, limit, args.command).await,
    }
}

async fn run_on<DB: RelayDatabase>(
    outbox: &Outbox<DB>,
    limit: Duration,
    command: Command,
) -> Result<Outcome, Failure> {
    match command {
        Command::Status(args) => status::run(outbox, limit, &args).await,
        Command::Dead(args) => list::run(outbox, State::Dead, limit, &args).await,
        Command::Parked(args) => list::run(outbox, State::Parked, limit, &args).await,
        Command::Show(args) => show::run(outbox, limit, &args).await,
        Command::Replay(args) => change::replay(outbox, limit, &args).await,
        Command::Purge(args) => change::purge(outbox, limit, &args).await,
        // Has no limit: a change of a large table takes its time.
        Command::Migrate => {
            outbox.migrate().await?;
            line("The tables are there, in this version.")?;
            Ok(Outcome::Done)
        }
        // Needs no database: see `run`.
        Command::Sql(_) => Ok(Outcome::Done),
    }
}
