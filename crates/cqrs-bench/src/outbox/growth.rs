//! The relay's rate and the time of its reads by the number of pending rows, and of dead ones.

use std::time::{Duration, Instant};

use sqlx::PgPool;

use super::fixture::Fixture;
use super::insert::millis;
use super::relays::{Relays, wait};
use super::table::{Series, Table, percentile};
use crate::measure::Unit;

/// Rows that the writer adds at once.
const BATCH: usize = 500;

/// Rows of each lane in the measured read, and the number of such reads.
const LIMIT: i64 = 15;
const READS: usize = 20;

struct Cell<'f> {
    on: &'f Fixture,
    index: PgPool,
    pending: usize,
    dead: usize,
    rate: Series,
    /// Microseconds for each row of a read.
    read: Series,
}

pub(super) async fn run(
    fixtures: &[Fixture],
    pending: &[usize],
    dead: &[usize],
    took: Duration,
    rounds: usize,
) {
    let mut cells = Vec::new();
    for (on, dead) in fixtures.iter().zip(dead) {
        on.fill_dead(*dead).await;
        for pending in pending {
            let (index, pending) = (on.index_pool().await, *pending);
            let (rate, read) = (Series::default(), Series::default());
            cells.push(Cell { on, index, pending, dead: *dead, rate, read });
        }
    }
    for round in 0..=rounds {
        for cell in &mut cells {
            let figures = cell.measure(took).await;
            if round > 0 {
                cell.rate.push(figures.0);
                cell.read.push(figures.1);
            }
        }
    }
    let columns = ["pending", "dead", "events/s", "ratio", "read, us per row", "ratio"];
    let mut table = Table::new(&columns);
    for cell in &cells {
        let (rate, read) = (&cell.rate, &cell.read);
        let (base_rate, base_read) = (&cells[0].rate, &cells[0].read);
        table.row([
            cell.pending.to_string(),
            cell.dead.to_string(),
            rate.text(0),
            rate.against(base_rate),
            read.text(2),
            read.against(base_read),
        ]);
    }
    table.print(&format!("outbox-relay growth: {took:?} each, {rounds} rounds"));
}

impl Cell<'_> {
    /// The events a second while a writer keeps the number of pending rows, and the time of a read.
    async fn measure(&self, took: Duration) -> (f64, f64) {
        self.on.truncate().await;
        self.on.fill(self.pending).await;
        let read = self.read().await;
        let broker = self.on.broker().await;
        let relays = Relays::start(&self.on.outbox, std::slice::from_ref(&broker));
        let has_sent = async || broker.sent() > 0;
        wait(Duration::from_millis(1), "a first publish", has_sent).await;
        let (start, before) = (Instant::now(), broker.sent());
        let mut written = self.pending;
        while start.elapsed() < took {
            if written < self.pending + broker.sent() {
                self.on.fill(BATCH).await;
                written += BATCH;
                self.on.outbox.wakeup().wake();
            } else {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let rate = Unit::MessagesPerSecond.of(broker.sent() - before, start.elapsed());
        relays.stop().await;
        (rate, read)
    }

    /// The microseconds for each row of the relay's read of all lanes.
    async fn read(&self) -> f64 {
        let mut figures = Vec::new();
        for _ in 0..READS {
            let start = Instant::now();
            let rows = sqlx::query(
                "SELECT r.lane, r.id, r.event_id, r.name, r.topic, r.key, r.content_type, \
                 r.headers::text, r.body FROM cqrs_outbox_lane l CROSS JOIN LATERAL (SELECT * \
                 FROM cqrs_outbox o WHERE o.lane = l.lane AND o.id > $1 ORDER BY o.id LIMIT $2) r",
            );
            let rows = rows.bind(i64::MIN).bind(LIMIT).fetch_all(&self.index).await;
            let rows = rows.expect("rows").len();
            figures.push(millis(start.elapsed()) * 1e3 / rows as f64);
        }
        percentile(&figures, 0.5)
    }
}
