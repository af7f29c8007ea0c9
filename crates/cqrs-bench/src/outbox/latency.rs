//! The time from a commit to the confirm of its event, while the relays are idle otherwise.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cqrs_core::Message;
use cqrs_outbox::{PostgresOutbox, lane_of};
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

use super::fixture::Fixture;
use super::insert::millis;
use super::relays::{Relays, owned};
use super::table::{Series, Table, percentile};
use super::watched::Confirmed;

const BODY: usize = 256;

pub(super) async fn run(on: &Fixture, events: usize, every: Duration, rounds: usize) {
    let mut table = Table::new(&["wake-up", "median ms", "p99 ms", "worst ms"]);
    // The relay that the writer's process has.
    let (broker, mut confirms) = on.broker().await.with_confirms();
    let near = Relays::start(&on.outbox, &[broker]);
    owned(on.pool(), &[64]).await;
    let keys: Vec<_> = (0..on.keys()).map(|key| on.key(key)).collect();
    let figures = measure(on, &keys, events, every, rounds, &mut confirms).await;
    table.row(std::iter::once("in the process".to_owned()).chain(figures));
    // A second one as in another process: its wake-up is the NOTIFY of the first one.
    let own: Vec<Uuid> = owners(on).await;
    let (broker, mut confirms) = on.broker().await.with_confirms();
    let far = Relays::start(&on.other_process().await, &[broker]);
    owned(on.pool(), &[32, 32]).await;
    let lanes: Vec<i16> = sqlx::query_scalar("SELECT lane FROM cqrs_outbox_lane WHERE owner <> $1")
        .bind(own[0])
        .fetch_all(on.pool())
        .await
        .expect("lanes");
    let is_far = |key: &String| lanes.contains(&lane_of(Some(key.as_bytes()), Uuid::nil(), 64));
    let keys: Vec<_> = keys.into_iter().filter(is_far).collect();
    let figures = measure(on, &keys, events, every, rounds, &mut confirms).await;
    table.row(std::iter::once("NOTIFY to another".to_owned()).chain(figures));
    near.stop().await;
    far.stop().await;
    let title = "outbox-relay latency, commit to the broker's confirm";
    table.print(&format!("{title}: one event every {every:?}, {events} events, {rounds} rounds"));
}

async fn owners(on: &Fixture) -> Vec<Uuid> {
    let sql = "SELECT DISTINCT owner FROM cqrs_outbox_lane";
    sqlx::query_scalar(sql).fetch_all(on.pool()).await.expect("owners")
}

async fn measure(
    on: &Fixture,
    keys: &[String],
    events: usize,
    every: Duration,
    rounds: usize,
    confirms: &mut UnboundedReceiver<Confirmed>,
) -> [String; 3] {
    let (mut median, mut p99, mut worst) =
        (Series::default(), Series::default(), Series::default());
    for round in 0..=rounds {
        let mut ticks = tokio::time::interval(every);
        let mut latencies = Vec::with_capacity(events);
        for event in 0..events {
            ticks.tick().await;
            let key = keys[event % keys.len()].clone();
            let commit = write(&on.outbox, &on.topic, [key]).await;
            let (_, confirmed) = confirms.recv().await.expect("a confirm");
            latencies.push(millis(confirmed.saturating_duration_since(commit.at)));
        }
        if round > 0 {
            median.push(percentile(&latencies, 0.5));
            p99.push(percentile(&latencies, 0.99));
            worst.push(percentile(&latencies, 1.0));
        }
    }
    [median.text(1), p99.text(1), worst.text(1)]
}

/// The events of a transaction.
pub(super) struct Commit {
    pub(super) ids: Vec<Uuid>,
    pub(super) at: Instant,
}

/// Writes one event for each key in one transaction, and wakes the relays of this process after the commit.
pub(super) async fn write(
    outbox: &PostgresOutbox,
    topic: &str,
    keys: impl IntoIterator<Item = String>,
) -> Commit {
    let body = vec![b'x'; BODY];
    let message = |key| Message::new(topic, body.clone()).with_key(key);
    let messages: Vec<_> = keys.into_iter().map(message).collect();
    let mut transaction = outbox.pool().begin().await.expect("a transaction");
    outbox.put(&mut transaction, &messages).await.expect("rows");
    transaction.commit().await.expect("a commit");
    let at = Instant::now();
    outbox.wakeup().wake();
    Commit { ids: messages.iter().map(|message| message.id).collect(), at }
}

/// Pairs commits with confirms: the latencies in milliseconds.
pub(super) fn latencies(commits: &[Commit], confirms: &HashMap<Uuid, Instant>) -> Vec<f64> {
    let latency = |commit: &Commit, id: &Uuid| {
        let confirmed = confirms.get(id).expect("a confirm of each event");
        millis(confirmed.saturating_duration_since(commit.at))
    };
    let of = |commit: &Commit| commit.ids.iter().map(|id| latency(commit, id)).collect::<Vec<_>>();
    commits.iter().flat_map(of).collect()
}
