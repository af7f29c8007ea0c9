//! The plans of the relay's statements do not depend on the statistics of its tables.

use cqrs_core::Message;
use integration_tests::postgres::{execute, options};
use sqlx::{PgPool, Postgres};

use crate::{Running, SERVERS, broker, fresh, relay, wait};

const ROWS: i64 = 50_000;
/// One row in so many is too large, and is declared dead.
const REFUSED: i64 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_statistics_cause_no_full_reads() {
    let _shared = SERVERS.read().await;
    let (schema, topic) = fresh::<Postgres>("plans").await;
    let broker = broker(|config| config.max_message_size = 1_000).await;
    let mut tx = schema.pool.begin().await.unwrap();
    let poison = "x".repeat(1_100);
    let body = |n: i64| if n % REFUSED == 0 { poison.as_str() } else { "{}" };
    let message =
        |n: i64| Message::new(&*topic, body(n).to_owned()).with_key((n % 1_000).to_string());
    let messages: Vec<_> = (0..ROWS).map(message).collect();
    for chunk in messages.chunks(5_000) {
        schema.outbox.put(&mut tx, chunk).await.unwrap();
    }
    // It finds an empty table.
    execute(&schema.pool, "ANALYZE cqrs_outbox".into()).await;
    tx.commit().await.unwrap();
    let running = Running::start(relay(&schema, &broker));
    // Counts without the index, whose reads are measured.
    let no_index = [("enable_indexscan", "off"), ("enable_indexonlyscan", "off")];
    let counting = PgPool::connect_with(options(&schema.name).options(no_index)).await.unwrap();
    let count = "SELECT count(*) FROM cqrs_outbox";
    let is_empty =
        async || sqlx::query_scalar::<_, i64>(count).fetch_one(&counting).await.unwrap() == 0;
    wait(is_empty, "an empty outbox").await;
    assert_eq!(running.stop().await.published, (ROWS - ROWS / REFUSED) as u64);
    let dead = "SELECT count(*) FROM cqrs_outbox_dead";
    assert_eq!(schema.column::<i64>(dead).await, [ROWS / REFUSED]);
    // A connection reports what it read and what it deleted together.
    let deleted = "SELECT n_tup_del FROM pg_stat_user_tables \
                   WHERE relid = 'cqrs_outbox'::regclass";
    let is_reported = async || schema.column::<i64>(deleted).await[0] >= ROWS;
    wait(is_reported, "report of the deletes").await;
    let read = "SELECT idx_tup_read FROM pg_stat_user_indexes \
                WHERE relid = 'cqrs_outbox'::regclass";
    let read = schema.column::<i64>(read).await[0];
    assert!(read < 4 * ROWS, "{read} entries of the index read for {ROWS} rows");
    schema.drop().await;
}
