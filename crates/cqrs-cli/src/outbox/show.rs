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
    if rows.is_empty() {
        return Err(Failure::new(format!(
            "no dead or parked row has the id {}; a replayed row has a new one",
            args.id
        )));
    }
    for failed in &rows {
        let body = match (args.body, state) {
            (false, _) => None,
            (true, State::Dead) => answer(limit, outbox.dead_body(failed)).await?,
            (true, State::Parked) => answer(limit, outbox.parked_body(failed)).await?,
        };
        if args.body && body.is_none() {
            return Err(Failure::new(format!("the row {} is gone by now", args.id)));
        }
        match args.json {
            true => json_line(&detail(failed, state, body.as_deref()))?,
            false => print(failed, state, body.as_deref())?,
        }
    }
    Ok(Outcome::Done)
}

fn print(failed: &FailedRow, state: State, body: Option<&[u8]>) -> Result<(), Failure> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut fields = vec![
        ("id", failed.id.to_string()),
        ("state", state.name().to_owned()),
        ("lane", failed.lane.to_string()),
        ("topic", plain(&failed.topic)),
        ("key", or_none(failed.key.as_deref().map(bytes))),
        ("name", plain(&failed.name)),
        ("event id", failed.event_id.to_string()),
        ("content type", or_none(failed.content_type.as_deref().map(plain))),
        ("occurred at", time(failed.occurred_at)),
        ("written at", time(failed.created_at)),
        ("attempts", failed.attempts.to_string()),
        ("first failed", time(failed.first_failed_at)),
        (state.time_name(), time(failed.at)),
        ("last error", plain(&failed.last_error)),
    ];
    fields.extend(failed.unreadable.as_deref().map(|error| ("unreadable", plain(error))));
    for (name, value) in fields {
        line(&format!("{name:12}  {value}"))?;
    }
    for (name, value) in headers(failed) {
        line(&format!("header        {}: {}", plain(&name), bytes(&value)))?;
    }
    line(&format!("body          {} bytes", failed.body_size))?;
    match body {
        Some(body) => line(&format!("\n{}", bytes(body))),
        None => Ok(()),
    }
}

fn detail(failed: &FailedRow, state: State, body: Option<&[u8]>) -> Value {
    let mut detail = summary(failed, state);
    let headers: Map<_, _> =
        headers(failed).map(|(name, value)| (name, bytes_json(&value))).collect();
    let more = json!({
        "content_type": failed.content_type,
        "occurred_at": time(failed.occurred_at),
        "written_at": time(failed.created_at),
        "headers": headers,
        "body_size": failed.body_size,
    });
    if let (Value::Object(detail), Value::Object(more)) = (&mut detail, more) {
        detail.extend(more);
        if let Some(body) = body {
            detail.insert("body".to_owned(), bytes_json(body));
        }
    }
    detail
}

/// The headers, texts and bytes alike.
fn headers(failed: &FailedRow) -> impl Iterator<Item = (String, Vec<u8>)> {
    let headers = &failed.headers;
    let texts = headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    let others = headers.iter_bytes().map(|(name, value)| (name.to_string(), value.to_vec()));
    texts.chain(others)
}
