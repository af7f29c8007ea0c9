//! `cqrs`: the command line of the framework. Its first commands are those of the outbox.
//!
//! A thin shell: what the commands do is the API of [`cqrs_outbox::Outbox`].

mod args;
mod database;
mod failure;
mod outbox;
mod output;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, Group};
use crate::failure::{Failure, usage, warn};

/// How a command ended that did not fail.
enum Outcome {
    /// It is done.
    Done,
    /// A figure is above its threshold.
    Exceeded,
    /// Ctrl-C stopped it.
    Interrupted,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            if !error.use_stderr() {
                // The help cannot be shown if the output is closed.
                let _closed = error.print();
                return ExitCode::SUCCESS;
            }
            match usage(&error) {
                Some(text) => warn(text),
                None => drop(error.print()),
            }
            // Not clap's own code 2, which means here that a threshold is exceeded.
            return ExitCode::FAILURE;
        }
    };
    match run(args) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Exceeded) => ExitCode::from(2),
        Ok(Outcome::Interrupted) => ExitCode::from(130),
        // Who reads the output has read enough, as `head` does.
        Err(failure) if failure.is_closed_output() => ExitCode::SUCCESS,
        Err(failure) => {
            warn(format_args!("error: {failure}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<Outcome, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(format!("no runtime: {error}")))?;
    let Group::Outbox(args) = args.group;
    runtime.block_on(outbox::run(args))
}
