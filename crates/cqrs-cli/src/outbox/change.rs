//! `cqrs outbox replay` and `purge`: what changes dead rows, in batches and with a question before.

use std::collections::BTreeSet;
use std::io::{self, BufRead, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cqrs_outbox::{FailedCount, FailedFilter, Outbox, OutboxError, RelayDatabase};
use indicatif::{HumanCount, ProgressBar};

use super::list::PAGE;
use super::status::style;
use crate::Outcome;
use crate::args::{ConsentArgs, PurgeArgs, ReplayArgs};
use crate::database::answer;
use crate::failure::{Failure, warn};
use crate::output::{age, line, report};

/// The rows of one transaction.
const BATCH: u32 = 1_000;

/// The words of a change.
struct Words {
    /// For the question.
    act: &'static str,
    /// For the display.
    acting: &'static str,
    /// For the report.
    done: &'static str,
}

pub(super) async fn replay<DB: RelayDatabase>(
    outbox: &Outbox<DB>,
    limit: Duration,
    args: &ReplayArgs,
) -> Result<Outcome, Failure> {
    let words = Words { act: "Replay", acting: "Replaying", done: "replayed" };
    let mut filter = args.filter.filter();
    if !args.ids.is_empty() {
        filter = filter.ids(args.ids.iter().copied());
    }
    let missing = missing_ids(outbox, limit, &filter, &args.ids).await?;
    let count = answer(limit, outbox.count_dead(&filter)).await?;
    let outcome = match agreed(&words, "", &count, filter, &args.consent)? {
        Some(filter) => {
            in_batches(&words, limit, count.rows, || outbox.replay_dead(&filter, BATCH)).await?
        }
        None => Outcome::Done,
    };
    if missing.is_empty() || matches!(outcome, Outcome::Interrupted) {
        return Ok(outcome);
    }
    let missing: Vec<_> = missing.iter().map(i64::to_string).collect();
    Err(Failure::new(format!(
        "no dead row has these ids and meets the other options: {} (a replayed row has a new id)",
        missing.join(", ")
    )))
}

/// Those of `ids` that no dead row of the filter has.
async fn missing_ids<DB: RelayDatabase>(
    outbox: &Outbox<DB>,
    limit: Duration,
    filter: &FailedFilter,
    ids: &[i64],
) -> Result<BTreeSet<i64>, Failure> {
    let mut missing: BTreeSet<_> = ids.iter().copied().collect();
    let Some(first) = missing.first() else {
        return Ok(missing);
    };
    let mut after = first.saturating_sub(1);
    loop {
        let rows = answer(limit, outbox.dead_rows(filter, after, PAGE)).await?;
        for dead in &rows {
            after = dead.id;
            missing.remove(&after);
        }
        if rows.len() < PAGE as usize {
            return Ok(missing);
        }
    }
}

pub(super) async fn purge<DB: RelayDatabase>(
    outbox: &Outbox<DB>,
    limit: Duration,
    args: &PurgeArgs,
) -> Result<Outcome, Failure> {
    let words = Words { act: "Delete", acting: "Deleting", done: "deleted" };
    let filter = args.filter.filter().older_than(args.older_than);
    let count = answer(limit, outbox.count_dead(&filter)).await?;
    let which = format!(" older than {}", age(args.older_than));
    let Some(filter) = agreed(&words, &which, &count, filter, &args.consent)? else {
        return Ok(Outcome::Done);
    };
    in_batches(&words, limit, count.rows, || outbox.purge_dead(&filter, BATCH)).await
}

fn rows(count: u64) -> String {
    match count {
        1 => "1 dead row".to_owned(),
        count => format!("{} dead rows", HumanCount(count)),
    }
}

/// Tells the number of rows and asks. The filter of the rows that were counted, if there is something to do: not
/// of those that die, or die again, or become old enough, after the count.
fn agreed(
    words: &Words,
    which: &str,
    count: &FailedCount,
    filter: FailedFilter,
    consent: &ConsentArgs,
) -> Result<Option<FailedFilter>, Failure> {
    let what = format!("{}{which}", rows(count.rows));
    let Some(last_id) = count.last_id.filter(|_| !consent.dry_run) else {
        line(&format!("{what}; nothing is {}.", words.done))?;
        return Ok(None);
    };
    if !consent.yes {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Err(Failure::new(format!(
                "{what}: there is no terminal to ask on; add --yes, or --dry-run to count them alone"
            )));
        }
        if !ask(&format!("{} {what}?", words.act), &mut stdin.lock())? {
            line(&format!("Nothing is {}.", words.done))?;
            return Ok(None);
        }
    }
    Ok(Some(filter.up_to(last_id).as_of(count.at)))
}

/// Asks on the error stream. Anything but a yes is a no.
fn ask(question: &str, input: &mut impl BufRead) -> Result<bool, Failure> {
    let mut stderr = io::stderr();
    let _closed = write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    let read = input.read_line(&mut answer);
    read.map_err(|error| Failure::new(format!("reading the answer: {error}")))?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

/// Runs batches until one is empty, with a progress bar on a terminal. Ctrl-C ends it after a batch.
async fn in_batches<F>(
    words: &Words,
    limit: Duration,
    total: u64,
    mut batch: impl FnMut() -> F,
) -> Result<Outcome, Failure>
where
    F: Future<Output = Result<u64, OutboxError>>,
{
    let bar = ProgressBar::new(total);
    bar.set_style(style("{msg} {wide_bar} {human_pos} of {human_len}, {eta} left")?);
    bar.set_message(words.acting);
    let is_interrupted = interrupted(&bar);
    // The task begins to listen.
    tokio::task::yield_now().await;
    bar.suspend(|| report(&format!("{} {}.", words.acting, rows(total))))?;
    let mut done = 0;
    let outcome = loop {
        match answer(limit, batch()).await {
            Ok(0) => break Outcome::Done,
            Ok(rows) => done += rows,
            Err(error) => {
                bar.abandon();
                return Err(error.with(so_far(words, done, total)));
            }
        }
        bar.set_position(done);
        if is_interrupted.load(Ordering::Relaxed) && done < total {
            break Outcome::Interrupted;
        }
    };
    bar.finish_and_clear();
    match outcome {
        Outcome::Interrupted => warn(format_args!("Stopped. {}", so_far(words, done, total))),
        _ => report(&format!("{} {}.", rows(done), is(words, done)))?,
    }
    Ok(outcome)
}

/// The passive of one row, or of many.
fn is(words: &Words, count: u64) -> String {
    format!("{} {}", if count == 1 { "is" } else { "are" }, words.done)
}

fn so_far(words: &Words, done: u64, total: u64) -> String {
    format!(
        "{} of {} {}. Run the command again for the rest.",
        HumanCount(done),
        rows(total),
        is(words, total)
    )
}

/// Set by the first Ctrl-C. The second one ends the process: the database rolls the batch back, unless its commit
/// is under way.
fn interrupted(bar: &ProgressBar) -> Arc<AtomicBool> {
    let (flag, bar) = (Arc::new(AtomicBool::new(false)), bar.clone());
    let set = Arc::clone(&flag);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_err() {
            return;
        }
        set.store(true, Ordering::Relaxed);
        bar.suspend(|| warn("Stopping after this batch. Ctrl-C again: at once."));
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(130);
        }
    });
    flag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        for (answer, expected) in [
            ("y\n", true),
            ("Yes\n", true),
            ("\n", false),
            ("", false),
            ("n\n", false),
            ("yo\n", false),
        ] {
            assert_eq!(ask("Replay?", &mut answer.as_bytes()).unwrap(), expected, "{answer:?}");
        }
    }
}
