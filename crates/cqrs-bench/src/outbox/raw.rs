//! What the servers do without a relay: one reader that selects rows in batches and deletes them.

use std::time::Instant;

use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row as _};

use crate::measure::Unit;

const BATCH: i64 = 1_000;

/// Reads and deletes all rows on one connection, and returns the rows a second.
pub(super) async fn select_and_delete(pool: &PgPool, rows: usize) -> f64 {
    let mut connection = pool.acquire().await.expect("a connection");
    let (mut lane, mut id, mut gone) = (-1_i16, 0_i64, 0_u64);
    let start = Instant::now();
    loop {
        let select = sqlx::query(
            "SELECT lane, id, event_id, name, topic, key, content_type, headers::text, body \
             FROM cqrs_outbox WHERE (lane, id) > ($1, $2) ORDER BY lane, id LIMIT $3",
        );
        let read = select.bind(lane).bind(id).bind(BATCH).fetch_all(&mut *connection).await;
        let read = read.expect("rows");
        let Some(last) = read.last() else { break };
        (lane, id) = (last.get("lane"), last.get("id"));
        let lanes: Vec<i16> = read.iter().map(|row: &PgRow| row.get("lane")).collect();
        let ids: Vec<i64> = read.iter().map(|row: &PgRow| row.get("id")).collect();
        // One index probe for each row, as the relay has it: the plan of a join depends on when the table was analyzed.
        let delete = sqlx::query(
            "DELETE FROM cqrs_outbox WHERE ctid = ANY (ARRAY (SELECT r.ctid \
             FROM unnest($1::int2[], $2::int8[]) AS q (lane, id) CROSS JOIN LATERAL \
             (SELECT o.ctid FROM cqrs_outbox o WHERE o.lane = q.lane AND o.id = q.id LIMIT 1) r))",
        );
        let deleted = delete.bind(lanes).bind(ids).execute(&mut *connection).await;
        gone += deleted.expect("deleted rows").rows_affected();
    }
    assert_eq!(gone, rows as u64, "rows that were deleted");
    Unit::MessagesPerSecond.of(rows, start.elapsed())
}
