//! Tests of the operators' API on SQLite, without a server.

#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

use std::time::Duration;

use cqrs_core::{MemoryBroker, Message};
use cqrs_outbox::{FailedFilter, OutboxErrorKind, Relay, SqliteOutbox, Tables};
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqlitePoolOptions;

const HOUR: Duration = Duration::from_secs(3_600);

/// An outbox in memory.
async fn outbox() -> SqliteOutbox {
    // One connection: each has a database of its own.
    let options = SqlitePoolOptions::new().max_connections(1);
    let outbox = SqliteOutbox::new(options.connect("sqlite::memory:").await.unwrap());
    outbox.migrate().await.unwrap();
    outbox
}

async fn run(outbox: &SqliteOutbox, sql: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(outbox.pool()).await.unwrap();
}

/// Writes messages and moves them to a table of failed rows. `time`: its column with a time.
async fn fail(outbox: &SqliteOutbox, messages: &[Message], table: &str, time: &str, error: &str) {
    const COLUMNS: &str = "id, lane, event_id, name, topic, key, content_type, headers, body, occurred_at, \
                           mandatory, created_at";
    let mut tx = outbox.pool().begin().await.unwrap();
    outbox.put(&mut tx, messages).await.unwrap();
    tx.commit().await.unwrap();
    let sql = format!(
        "INSERT INTO cqrs_{table} ({COLUMNS}, attempts, first_failed_at, {time}, last_error) \
         SELECT {COLUMNS}, 1, created_at, created_at, '{error}' FROM cqrs_outbox; \
         DELETE FROM cqrs_outbox"
    );
    run(outbox, sql).await;
}

async fn die(outbox: &SqliteOutbox, messages: &[Message], error: &str) {
    fail(outbox, messages, "outbox_dead", "died_at", error).await;
}

fn messages(topic: &str, count: usize) -> Vec<Message> {
    (0..count).map(|n| Message::new(topic, "{}").with_key(n.to_string())).collect()
}

async fn dead(outbox: &SqliteOutbox, filter: &FailedFilter) -> Vec<i64> {
    let rows = outbox.dead_rows(filter, 0, 1_000).await.unwrap();
    rows.iter().map(|dead| dead.id).collect()
}

#[tokio::test]
async fn filter_chooses_rows_that_meet_all_conditions() {
    let outbox = outbox().await;
    let named = messages("orders", 1).remove(0).with_name("OrderPlaced");
    die(&outbox, &[named], "the body is too large").await;
    die(&outbox, &messages("orders", 2), "the topic is unknown").await;
    die(&outbox, &messages("users", 1), "the topic is unknown").await;
    let all = FailedFilter::default();
    assert_eq!(dead(&outbox, &all).await, [1, 2, 3, 4]);
    let cases = [
        (all.clone().topic("orders"), vec![1, 2, 3]),
        (all.clone().name("OrderPlaced"), vec![1]),
        (all.clone().error("unknown"), vec![2, 3, 4]),
        (all.clone().error("UNKNOWN"), vec![]),
        (all.clone().error("unknown").topic("orders"), vec![2, 3]),
        (all.clone().ids([2, 4, 99]), vec![2, 4]),
        (all.clone().ids([]), vec![]),
        (all.clone().up_to(2), vec![1, 2]),
        (all.clone().older_than(HOUR), vec![]),
        (all.clone().older_than(Duration::MAX), vec![]),
    ];
    for (filter, expected) in cases {
        assert_eq!(dead(&outbox, &filter).await, expected, "{filter:?}");
        let count = outbox.count_dead(&filter).await.unwrap();
        let (rows, last) = (expected.len() as u64, expected.last().copied());
        assert_eq!((count.rows, count.last_id), (rows, last), "{filter:?}");
    }
    let page = outbox.dead_rows(&all, 1, 2).await.unwrap();
    assert_eq!(page.iter().map(|dead| dead.id).collect::<Vec<_>>(), [2, 3]);
}

#[tokio::test]
async fn parked_rows_are_chosen_by_their_first_failure() {
    let outbox = outbox().await;
    fail(&outbox, &messages("orders", 3), "outbox_parked", "next_at", "no leader").await;
    run(&outbox, "UPDATE cqrs_outbox_parked SET first_failed_at = 0 WHERE id = 2").await;
    let old = FailedFilter::default().older_than(HOUR);
    let rows = outbox.parked_rows(&old, 0, 10).await.unwrap();
    assert_eq!(rows.iter().map(|parked| parked.id).collect::<Vec<_>>(), [2]);
    assert_eq!(outbox.parked_rows(&FailedFilter::default(), 0, 10).await.unwrap().len(), 3);
}

#[tokio::test]
async fn row_that_cannot_be_read_is_listed_replayed_and_purged() {
    let outbox = outbox().await;
    die(&outbox, &messages("orders", 3), "the row cannot be read").await;
    run(&outbox, "UPDATE cqrs_outbox_dead SET headers = '[1]' WHERE id IN (1, 2)").await;
    let all = FailedFilter::default();
    let rows = outbox.dead_rows(&all, 0, 10).await.unwrap();
    let parts: Vec<_> =
        rows.iter().map(|row| (row.id, &*row.topic, row.unreadable.is_some())).collect();
    assert_eq!(parts, [(1, "orders", true), (2, "orders", true), (3, "orders", false)]);
    let unreadable = rows[0].unreadable.as_ref().unwrap();
    assert!(unreadable.contains("headers") && !unreadable.contains("[1]"), "{unreadable}");
    assert_eq!(rows[0].body_size, 2);
    assert_eq!(outbox.dead_body(&rows[0]).await.unwrap().unwrap(), "{}");
    assert_eq!(outbox.replay_dead(&all.clone().ids([1]), 10).await.unwrap(), 1);
    assert_eq!(outbox.dead_body(&rows[0]).await.unwrap(), None);
    assert_eq!(outbox.purge_dead(&all.clone().ids([2]), 10).await.unwrap(), 1);
    assert_eq!(dead(&outbox, &all).await, [3]);
}

#[tokio::test]
async fn rows_with_one_id_are_on_one_page() {
    let outbox = outbox().await;
    die(&outbox, &messages("orders", 4), "too large").await;
    run(&outbox, "UPDATE cqrs_outbox_dead SET id = 2 WHERE id = 3").await;
    let all = FailedFilter::default();
    let page = async |after, limit| {
        let rows = outbox.dead_rows(&all, after, limit).await.unwrap();
        rows.iter().map(|dead| dead.id).collect::<Vec<_>>()
    };
    assert_eq!(page(0, 1).await, [1]);
    assert_eq!(page(0, 2).await, [1, 2, 2]);
    assert_eq!(page(1, 1).await, [2, 2]);
    assert_eq!(page(2, 1).await, [4]);
    assert_eq!(page(0, 0).await, [] as [i64; 0]);
    let rows = outbox.dead_rows(&all, 1, 1).await.unwrap();
    assert_ne!(rows[0].event_id, rows[1].event_id);
}

#[tokio::test]
async fn replay_up_to_an_id_ends_when_rows_die_again() {
    let outbox = outbox().await;
    die(&outbox, &messages("orders", 5), "too large").await;
    let events =
        |rows: &[cqrs_outbox::FailedRow]| rows.iter().map(|dead| dead.event_id).collect::<Vec<_>>();
    let all = FailedFilter::default();
    let before = events(&outbox.dead_rows(&all, 0, 10).await.unwrap());
    let last = outbox.count_dead(&all).await.unwrap().last_id.unwrap();
    let bounded = all.clone().up_to(last);
    let mut batches = Vec::new();
    loop {
        let replayed = outbox.replay_dead(&bounded, 2).await.unwrap();
        batches.push(replayed);
        if replayed == 0 {
            break;
        }
        die(&outbox, &[], "too large again").await;
    }
    assert_eq!(batches, [2, 2, 1, 0]);
    let after = outbox.dead_rows(&all, 0, 10).await.unwrap();
    assert_eq!(events(&after), before, "the same events, in their order");
    assert!(after.iter().all(|dead| dead.id > last));
}

#[tokio::test]
async fn time_of_the_count_bounds_later_changes() {
    let outbox = outbox().await;
    die(&outbox, &messages("orders", 4), "too large").await;
    run(&outbox, "UPDATE cqrs_outbox_dead SET died_at = died_at - 5400000000 WHERE id < 3").await;
    let all = FailedFilter::default();
    let count = outbox.count_dead(&all).await.unwrap();
    let then = all.clone().as_of(count.at - HOUR);
    assert_eq!(dead(&outbox, &then).await, [1, 2]);
    assert_eq!(dead(&outbox, &then.clone().older_than(HOUR / 3)).await, [1, 2]);
    assert_eq!(dead(&outbox, &then.clone().older_than(HOUR)).await, [] as [i64; 0]);
    assert_eq!(dead(&outbox, &all.clone().older_than(HOUR)).await, [1, 2]);
    assert_eq!(dead(&outbox, &all.clone().as_of(count.at)).await, [1, 2, 3, 4]);
    assert_eq!(outbox.replay_dead(&then, 1).await.unwrap(), 1);
    assert_eq!(outbox.purge_dead(&then, 10).await.unwrap(), 1);
    assert_eq!(dead(&outbox, &all).await, [3, 4]);
}

#[tokio::test]
async fn purge_deletes_only_old_rows_in_bounded_batches() {
    let outbox = outbox().await;
    die(&outbox, &messages("orders", 5), "too large").await;
    run(&outbox, "UPDATE cqrs_outbox_dead SET died_at = 0 WHERE id <> 2").await;
    let old = FailedFilter::default().older_than(HOUR);
    for expected in [3, 1, 0] {
        assert_eq!(outbox.purge_dead(&old, 3).await.unwrap(), expected);
    }
    assert_eq!(dead(&outbox, &FailedFilter::default()).await, [2]);
}

#[tokio::test]
async fn status_has_counts_and_live_relays() {
    let outbox = outbox().await;
    die(&outbox, &messages("orders", 2), "too large").await;
    fail(&outbox, &messages("orders", 3), "outbox_parked", "next_at", "no leader").await;
    let mut connection = outbox.pool().acquire().await.unwrap();
    outbox.put(&mut connection, &messages("orders", 4)).await.unwrap();
    drop(connection);
    run(&outbox, "UPDATE cqrs_outbox SET created_at = created_at - 3600000000").await;
    let status = outbox.status().await.unwrap();
    assert_eq!((status.pending, status.parked, status.dead), (4, 3, 2));
    let oldest = status.oldest.unwrap();
    assert!(oldest >= HOUR && oldest < HOUR + Duration::from_secs(60), "{oldest:?}");
    assert_eq!((status.lanes, status.owned_lanes, status.relays.len()), (1, 0, 0));

    let relay = Relay::builder(&outbox, MemoryBroker::new()).build().unwrap();
    let (handle, running) = (relay.handle(), tokio::spawn(relay.run()));
    let owned = async {
        loop {
            let status = outbox.status().await.unwrap();
            if status.owned_lanes == 1 && status.pending == 0 {
                break status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let status = tokio::time::timeout(Duration::from_secs(60), owned).await.unwrap();
    assert_eq!((status.relays.len(), status.relays[0].lanes), (1, 1));
    assert!(status.relays[0].seen_ago < Duration::from_secs(30), "{status:?}");
    handle.stop();
    running.await.unwrap();
    let status = outbox.status().await.unwrap();
    assert_eq!((status.owned_lanes, status.relays.len(), status.oldest), (0, 0, None));
}

#[tokio::test]
async fn owner_without_a_heartbeat_is_no_live_relay() {
    let outbox = outbox().await;
    run(&outbox, "UPDATE cqrs_outbox_lane SET owner = randomblob(16)").await;
    let status = outbox.status().await.unwrap();
    assert_eq!((status.owned_lanes, status.relays.len()), (1, 0));
}

#[tokio::test]
async fn missing_tables_have_their_kind() {
    let tables = Tables::default().with_prefix("other_").unwrap();
    let outbox = SqliteOutbox::with_tables(outbox().await.pool().clone(), tables).unwrap();
    let error = outbox.status().await.unwrap_err();
    assert_eq!(error.kind(), OutboxErrorKind::NotMigrated);
}
