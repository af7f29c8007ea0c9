//! `cqrs outbox status`: counts, relays, thresholds, and the live display.

use std::io::IsTerminal as _;
use std::time::Duration;

use cqrs_outbox::{Outbox, OutboxStatus, RelayDatabase};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::Outcome;
use crate::args::StatusArgs;
use crate::database::answer;
use crate::failure::{Failure, warn};
use crate::output::{Table, age, json_line, line};

pub(super) async fn run<DB: RelayDatabase>(
    outbox: &Outbox<DB>,
    limit: Duration,
    args: &StatusArgs,
) -> Result<Outcome, Failure> {
    if args.watch {
        return watch(outbox, limit, args).await;
    }
    let status = answer(limit, outbox.status()).await?;
    let printed = print(&status, args);
    let exceeded = exceeded(&status, args);
    for text in &exceeded {
        warn(text);
    }
    printed.or_else(Failure::unless_closed_output)?;
    Ok(if exceeded.is_empty() { Outcome::Done } else { Outcome::Exceeded })
}

fn print(status: &OutboxStatus, args: &StatusArgs) -> Result<(), Failure> {
    match args.json {
        true => json_line(&json(status, args.lease)),
        false => line(&text(status, args.lease)),
    }
}

/// The thresholds that are exceeded.
fn exceeded(status: &OutboxStatus, args: &StatusArgs) -> Vec<String> {
    let mut exceeded = Vec::new();
    if let (Some(oldest), Some(max)) = (status.oldest, args.max_oldest)
        && oldest > max
    {
        let (oldest, max) = (age(oldest), age(max));
        exceeded.push(format!("the oldest row waits for {oldest}, longer than --max-oldest {max}"));
    }
    for (rows, kind, max) in
        [(status.dead, "dead", args.max_dead), (status.parked, "parked", args.max_parked)]
    {
        if let Some(max) = max.filter(|max| rows > *max) {
            exceeded.push(format!("{rows} {kind} rows, more than --max-{kind} {max}"));
        }
    }
    exceeded
}

fn alive(status: &OutboxStatus, lease: Duration) -> usize {
    status.relays.iter().filter(|relay| relay.seen_ago < lease).count()
}

fn text(status: &OutboxStatus, lease: Duration) -> String {
    let oldest = status.oldest.map(|oldest| format!(", the oldest for {}", age(oldest)));
    let mut lines = vec![
        format!("pending  {}{}", status.pending, oldest.unwrap_or_default()),
        format!("parked   {}", status.parked),
        format!("dead     {}", status.dead),
        format!("lanes    {} of {} owned", status.owned_lanes, status.lanes),
        format!("relays   {} alive", alive(status, lease)),
    ];
    if let Some(rows) = status.history {
        lines.insert(3, format!("history  about {rows}"));
    }
    if !status.relays.is_empty() {
        let mut table = Table::new(["RELAY", "LANES", "SEEN"]);
        for relay in &status.relays {
            let dead = if relay.seen_ago < lease { "" } else { " (dead)" };
            let seen = format!("{} ago{dead}", age(relay.seen_ago));
            table.add([relay.id.to_string(), relay.lanes.to_string(), seen]);
        }
        lines.push(String::new());
        lines.extend(table.take_lines());
    }
    lines.join("\n")
}

fn json(status: &OutboxStatus, lease: Duration) -> serde_json::Value {
    let relays = status.relays.iter().map(|relay| {
        json!({
            "id": relay.id.to_string(),
            "lanes": relay.lanes,
            "seen_seconds_ago": relay.seen_ago.as_secs_f64(),
            "is_alive": relay.seen_ago < lease,
        })
    });
    json!({
        "pending": status.pending,
        "oldest_seconds": status.oldest.map(|oldest| oldest.as_secs_f64()),
        "parked": status.parked,
        "dead": status.dead,
        "history_estimate": status.history,
        "lanes": status.lanes,
        "owned_lanes": status.owned_lanes,
        "relays_alive": alive(status, lease),
        "relays": relays.collect::<Vec<_>>(),
    })
}

/// Refreshes one display on a terminal; elsewhere each state is printed below the last one.
async fn watch<DB: RelayDatabase>(
    outbox: &Outbox<DB>,
    limit: Duration,
    args: &StatusArgs,
) -> Result<Outcome, Failure> {
    let is_live = std::io::stdout().is_terminal() && !args.json;
    let target = if is_live { ProgressDrawTarget::stdout() } else { ProgressDrawTarget::hidden() };
    let display = ProgressBar::with_draw_target(None, target);
    display.set_style(style("{msg}")?);
    let refreshing = async {
        loop {
            match answer(limit, outbox.status()).await {
                Ok(status) if is_live => display.set_message(text(&status, args.lease)),
                Ok(status) => print(&status, args)?,
                // The next refresh may succeed.
                Err(error) if error.is_retryable() && is_live => {
                    display.set_message(error.to_string());
                }
                Err(error) if error.is_retryable() => warn(error),
                Err(error) => return Err(error),
            }
            display.tick();
            tokio::time::sleep(args.interval).await;
        }
    };
    let ended = tokio::select! {
        ended = refreshing => ended,
        _ = tokio::signal::ctrl_c() => Ok(Outcome::Done),
    };
    display.abandon();
    ended
}

/// A style of indicatif's.
pub(super) fn style(template: &str) -> Result<ProgressStyle, Failure> {
    let style = ProgressStyle::with_template(template);
    style.map_err(|error| Failure::new(format!("the display {template:?}: {error}")))
}
