//! The rate of relays that share the lanes already, over rows that are committed at once, beside what the servers do
//! without a relay.

use std::time::{Duration, Instant};

use super::fixture::Fixture;
use super::raw;
use super::relays::{Relays, even_shares, owned, wait};
use super::table::{Series, Table};
use crate::event::{Codec, Template};
use crate::measure::Unit;
use crate::publish::{Load, WINDOW};
use crate::raw::kafka::RawProducer;

/// The figures of some relays.
struct Side {
    relays: usize,
    rate: Series,
    /// Bytes for each event.
    wal: Series,
}

pub(super) async fn run(on: &Fixture, rows: usize, relays: &[usize], rounds: usize) {
    let bytes = Template::new(Codec::Bytes, 256);
    let producer = RawProducer::new(on.servers(), on.topic.as_str().into(), bytes);
    let load = Load { messages: rows, tasks: 1, window: WINDOW };
    let index = on.index_pool().await;
    let (mut publishing, mut reading) = (Series::default(), Series::default());
    let mut wal = Series::default();
    let side = |relays| Side { relays, rate: Series::default(), wal: Series::default() };
    let mut sides: Vec<_> = relays.iter().copied().map(side).collect();
    for round in 0..=rounds {
        let published = load.run(producer.clone()).await.values[0];
        let wal_per_row = fill(on, rows).await;
        let read = raw::select_and_delete(&index, rows).await;
        if round > 0 {
            publishing.push(published);
            wal.push(wal_per_row);
            reading.push(read);
        }
        for side in &mut sides {
            let (rate, wal) = drain(on, side.relays, rows, &index).await;
            if round > 0 {
                side.rate.push(rate);
                side.wal.push(wal);
            }
        }
    }
    let mut table = Table::new(&["side", "events/s", "against the first", "WAL per event, bytes"]);
    for side in &sides {
        let name = format!("{} relay(s)", side.relays);
        let ratio = side.rate.against(&sides[0].rate);
        table.row([name, side.rate.text(0), ratio, side.wal.text(0)]);
    }
    let base = sides.first().map(|side| side.rate.clone()).unwrap_or_default();
    let none = String::new;
    table.row(["raw publish".into(), publishing.text(0), publishing.against(&base), none()]);
    let name = "raw SELECT and DELETE".into();
    table.row([name, reading.text(0), reading.against(&base), none()]);
    table.row(["INSERT of all rows".into(), none(), none(), wal.text(0)]);
    table.print(&format!("outbox-relay rate: {rows} rows, {} keys, {rounds} rounds", on.keys()));
}

/// Fills the table, and returns the bytes of WAL for each row.
async fn fill(on: &Fixture, rows: usize) -> f64 {
    on.truncate().await;
    let before = on.wal().await;
    on.fill(rows).await;
    (on.wal().await - before) / rows as f64
}

/// Fills the table while relays share its lanes. Returns the events a second until it is empty, and the bytes of WAL
/// for each.
async fn drain(on: &Fixture, relays: usize, rows: usize, index: &sqlx::PgPool) -> (f64, f64) {
    on.truncate().await;
    let mut brokers = Vec::new();
    for _ in 0..relays {
        brokers.push(on.broker().await);
    }
    let running = Relays::start(&on.outbox, &brokers);
    owned(index, &even_shares(relays)).await;
    on.fill(rows).await;
    let (start, before) = (Instant::now(), on.wal().await);
    let sent = async || brokers.iter().map(|broker| broker.sent()).sum::<usize>() >= rows;
    wait(Duration::from_millis(2), "publishes of all rows", sent).await;
    let is_empty = async || {
        let sql = "SELECT NOT EXISTS (SELECT FROM cqrs_outbox WHERE lane >= 0)";
        sqlx::query_scalar(sql).fetch_one(index).await.expect("an answer")
    };
    wait(Duration::from_millis(2), "empty table", is_empty).await;
    let took = start.elapsed();
    let wal = (on.wal().await - before) / rows as f64;
    running.stop().await;
    (Unit::MessagesPerSecond.of(rows, took), wal)
}
