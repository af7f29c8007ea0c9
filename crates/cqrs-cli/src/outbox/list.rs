//! `cqrs outbox dead` and `parked`: lists of failed rows, read in pages.

use std::time::Duration;

use cqrs_outbox::{FailedRow, Outbox, RelayDatabase};
use serde_json::{Value, json};

use super::State;
use crate::Outcome;
use crate::args::ListArgs;
use crate::database::answer;
use crate::failure::{Failure, warn};
use crate::output::{Table, bytes, bytes_json, json_line, line, plain, short, time};

/// The rows that are read at once.
pub(super) const PAGE: u32 = 100;

/// The most characters of an error in a table.
const ERROR_LENGTH: usize = 100;

pub(super) async fn run<DB: RelayDatabase>(
    outbox: &Outbox<DB>,
    state: State,
    limit: Duration,
    args: &ListArgs,
) -> Result<Outcome, Failure> {
    let filter = args.filter.filter();
    let time_heading = state.time_name().to_uppercase();
    let mut table = Table::new([
        "ID",
        "TOPIC",
        "KEY",
        "NAME",
        "EVENT ID",
        "ATTEMPTS",
        "FIRST FAILED",
        &time_heading,
        "LAST ERROR",
    ]);
    let (mut after, mut left) = (args.after, args.limit);
    while left > 0 {
        let page = left.min(PAGE);
        let rows = match state {
            State::Dead => answer(limit, outbox.dead_rows(&filter, after, page)).await?,
            State::Parked => answer(limit, outbox.parked_rows(&filter, after, page)).await?,
        };
        for failed in &rows {
            after = failed.id;
            left = left.saturating_sub(1);
            match args.json {
                true => json_line(&summary(failed, state))?,
                false => table.add(cells(failed)),
            }
        }
        if !args.json {
            table.take_lines().iter().try_for_each(|text| line(text))?;
        }
        if rows.len() < page as usize {
            return Ok(Outcome::Done);
        }
    }
    warn(format_args!("The limit is reached. For the rows behind these: --after {after}"));
    Ok(Outcome::Done)
}

fn cells(failed: &FailedRow) -> [String; 9] {
    [
        failed.id.to_string(),
        plain(&failed.topic),
        failed.key.as_deref().map_or_else(|| "-".to_owned(), bytes),
        plain(&failed.name),
        failed.event_id.to_string(),
        failed.attempts.to_string(),
        time(failed.first_failed_at),
        time(failed.at),
        short(&failed.last_error, ERROR_LENGTH),
    ]
}

/// A row as JSON, without headers and body.
pub(super) fn summary(failed: &FailedRow, state: State) -> Value {
    let time_key = state.time_name().replace(' ', "_");
    let mut summary = json!({
        "id": failed.id,
        "state": state.name(),
        "lane": failed.lane,
        "topic": failed.topic,
        "key": failed.key.as_deref().map(bytes_json),
        "name": failed.name,
        "event_id": failed.event_id.to_string(),
        "attempts": failed.attempts,
        "first_failed_at": time(failed.first_failed_at),
        time_key: time(failed.at),
        "last_error": failed.last_error,
    });
    if let Some(error) = &failed.unreadable {
        summary["unreadable"] = json!(error);
    }
    summary
}
