//! `cqrs outbox show`: one failed row with its headers.

use std::time::Duration;

use cqrs_outbox::{FailedFilter, FailedRow, Outbox, RelayDatabase};
use serde_json::{Map, Value, json};

use super::State;
use super::list::summary;
use crate::Outcome;
use crate::args::ShowArgs;
use crate::database::answer;
use crate::failure::Failure;
use crate::output::{bytes, bytes_json, json_line, line, plain, time};

pub(super) async fn run<DB: RelayDatabase>(
    outbox: &Outbox<DB>,
    limit: Duration,
    args: &ShowArgs,
) -> Result<Outcome, Failure> {
    let filter = FailedFilter::default().ids([args.id]);
    // The lower ids are all others.
    let after = args.id.saturating_sub(1);
    let mut rows = answer(limit, outbox.dead_rows(&filter, after, 1)).await?;
    let mut state = State::Dead;
    if rows.is_empty() {
        rows = answer(limit, outbox.parked_rows(&filter, after, 1)).await?;
        state = State::Parked;
    }
    let Some(failed) = rows.first() else {
        return Err(Failure::new(format!(
            "no dead or parked row has the id {}; a replayed row has a new one",
            args.id
        )));
    };
    match args.json {
        true => json_line(&detail(failed, state, args.body))?,
        false => print(failed, state, args.body)?,
    }
    Ok(Outcome::Done)
}

fn print(failed: &FailedRow, state: State, with_body: bool) -> Result<(), Failure> {
    let message = &failed.row.message;
    let fields = [
        ("id", failed.row.id.to_string()),
        ("state", state.name().to_owned()),
        ("lane", failed.row.lane.to_string()),
        ("topic", plain(&message.topic)),
        ("key", message.key.as_deref().map_or_else(|| "-".to_owned(), bytes)),
        ("name", plain(&message.name)),
        ("event id", message.id.to_string()),
        ("content type", message.content_type.as_deref().map_or_else(|| "-".to_owned(), plain)),
        ("occurred at", time(message.timestamp)),
        ("written at", time(failed.row.created_at)),
        ("attempts", failed.attempts.to_string()),
        ("first failed", time(failed.first_failed_at)),
        (state.time_name(), time(failed.at)),
        ("last error", plain(&failed.last_error)),
    ];
    for (name, value) in fields {
        line(&format!("{name:12}  {value}"))?;
    }
    for (name, value) in headers(failed) {
        line(&format!("header        {}: {}", plain(&name), bytes(&value)))?;
    }
    line(&format!("body          {} bytes", message.body.len()))?;
    if with_body {
        line(&format!("\n{}", bytes(&message.body)))?;
    }
    Ok(())
}

fn detail(failed: &FailedRow, state: State, with_body: bool) -> Value {
    let message = &failed.row.message;
    let mut detail = summary(failed, state);
    let headers: Map<_, _> =
        headers(failed).map(|(name, value)| (name, bytes_json(&value))).collect();
    let more = json!({
        "content_type": message.content_type.as_deref(),
        "occurred_at": time(message.timestamp),
        "written_at": time(failed.row.created_at),
        "headers": headers,
        "body_size": message.body.len(),
    });
    if let (Value::Object(detail), Value::Object(more)) = (&mut detail, more) {
        detail.extend(more);
        if with_body {
            detail.insert("body".to_owned(), bytes_json(&message.body));
        }
    }
    detail
}

/// The headers, texts and bytes alike.
fn headers(failed: &FailedRow) -> impl Iterator<Item = (String, Vec<u8>)> {
    let headers = &failed.row.message.headers;
    let texts = headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    let others = headers.iter_bytes().map(|(name, value)| (name.to_string(), value.to_vec()));
    texts.chain(others)
}
