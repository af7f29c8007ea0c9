//! Tests of the history of published rows, on PostgreSQL.

use std::error::Error as _;
use std::time::Duration;

use cqrs_core::{MemoryBroker, Message};
use cqrs_outbox::{OutboxErrorKind, Relay, RelayBuilder, RelayHandle, RelayReport};
use integration_tests::consuming::fixture::until_within;
use integration_tests::outbox::drained;
use integration_tests::postgres::options;
use sqlx::Postgres;
use tokio::task::JoinHandle;

use super::*;

const LIMIT: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(86_400);

const HISTORY: &str = "SELECT count(*) FROM cqrs_outbox_done";

/// The names of the partitions, without those of the present day and later ones.
const OLD_PARTITIONS: &str = "SELECT relname::text FROM pg_inherits JOIN pg_class ON oid = inhrelid \
                              WHERE inhparent = 'cqrs_outbox_done'::regclass AND relname \
                              < 'cqrs_outbox_done_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD') \
                              ORDER BY relname";

fn start(relay: RelayBuilder<Postgres>) -> (RelayHandle<Postgres>, JoinHandle<RelayReport>) {
    let pause = Duration::from_millis(10);
    let relay = relay.backoff(pause, pause).build().unwrap();
    (relay.handle(), tokio::spawn(relay.run()))
}

async fn stop((handle, running): (RelayHandle<Postgres>, JoinHandle<RelayReport>)) -> RelayReport {
    handle.stop();
    tokio::time::timeout(LIMIT, running).await.expect("an end in time").unwrap()
}

async fn put(outbox: &PostgresOutbox, messages: &[Message]) {
    let mut tx = outbox.pool().begin().await.unwrap();
    outbox.put(&mut tx, messages).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_rows_are_kept_as_they_were() {
    let schema = Schema::new().await;
    let large = "order,".repeat(10_000);
    let message = |body: &str| Message::new("orders", body.to_owned());
    // The last one is too large, and dies.
    let messages =
        [message("{}").with_key("a"), message("[]"), message(&large[..6_000]), message(&large)];
    put(&schema.outbox.clone().compress_above(1_000), &messages).await;
    schema.run("CREATE TABLE written AS SELECT * FROM cqrs_outbox").await;
    let broker = MemoryBroker::builder().max_message_size(10_000).build();
    // So that one is parked, and confirmed from there.
    broker.faults().refuse_messages(1);
    let relay = Relay::builder(&schema.outbox, broker.clone());
    let relay = start(relay.keep_history(DAY).await.unwrap());
    drained(&schema, LIMIT).await;
    assert_eq!(stop(relay).await.published, 3);

    let same = "SELECT count(*) FROM cqrs_outbox_done d JOIN written w ON (d.lane, d.id, d.event_id, d.name, \
                d.topic, d.key, d.content_type, d.headers::text, d.body, d.occurred_at, d.mandatory, \
                d.created_at, d.uncompressed_size) IS NOT DISTINCT FROM (w.lane, w.id, w.event_id, w.name, \
                w.topic, w.key, w.content_type, w.headers::text, w.body, w.occurred_at, w.mandatory, \
                w.created_at, w.uncompressed_size)";
    assert_eq!(schema.numbers(same).await, [3]);
    assert_eq!(schema.numbers(HISTORY).await, [3]);
    let days = "SELECT count(*) FROM cqrs_outbox_done WHERE tableoid::regclass::text \
                = 'cqrs_outbox_done_' || to_char(done_at AT TIME ZONE 'UTC', 'YYYYMMDD')";
    assert_eq!(schema.numbers(days).await, [3], "each is in the partition of its day");
    let estimate = async || schema.outbox.status().await.unwrap().history == Some(3);
    until_within(LIMIT, "the server has counted the rows", estimate).await;
    let shown = String::from_utf8(cli::run(&schema, &["status"]).stdout).unwrap();
    assert!(shown.contains("dead     1\nhistory  about 3\nlanes    0 of 64 owned\n"), "{shown}");

    // A relay without the setting.
    put(&schema.outbox, &messages[..2]).await;
    let relay = start(Relay::builder(&schema.outbox, broker));
    drained(&schema, LIMIT).await;
    stop(relay).await;
    assert_eq!(schema.numbers(HISTORY).await, [3]);
    schema.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_made_once_and_dropped_after_their_time() {
    let schema = Schema::new().await;
    assert_eq!(schema.outbox.status().await.unwrap().history, None);
    // Days ago, and of somebody else.
    let own = "'cqrs_outbox_done_' || to_char(d, 'YYYYMMDD')";
    for (name, days) in [(own, 10), (own, 7), ("'archive'", 20)] {
        schema
            .run(format!(
                "DO $$ DECLARE d date := (now() AT TIME ZONE 'UTC')::date - {days}; BEGIN EXECUTE \
                 format('CREATE TABLE %I PARTITION OF cqrs_outbox_done FOR VALUES FROM (%L) TO (%L)', \
                 {name}, d || ' 00:00+00', d + 1 || ' 00:00+00'); END $$"
            ))
            .await;
    }
    let old = async || schema.column::<String>(OLD_PARTITIONS).await;
    assert_eq!(old().await.len(), 3);
    let starts = (0..4).map(|_| {
        let relay = Relay::builder(&schema.outbox, MemoryBroker::new());
        tokio::spawn(relay.keep_history(7 * DAY))
    });
    let mut relays = Vec::new();
    for starting in starts.collect::<Vec<_>>() {
        relays.push(start(starting.await.unwrap().unwrap()));
    }
    // The one of seven days ago has rows that are younger than the retention.
    until_within(LIMIT, "the oldest is dropped", async || old().await.len() == 2).await;
    let kept = old().await;
    assert_eq!(kept[0], "archive");
    let ahead = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'cqrs_outbox_done'::regclass";
    assert_eq!(schema.numbers(ahead).await, [2 + 4], "today and three days");
    for relay in relays {
        stop(relay).await;
    }
    assert_eq!(old().await, kept);
    schema.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_partition_is_made_when_a_delete_fails() {
    let schema = Schema::new().await;
    let broker = MemoryBroker::new();
    let relay = Relay::builder(&schema.outbox, broker.clone());
    let relay = start(relay.keep_history(DAY).await.unwrap());
    put(&schema.outbox, &[Message::new("orders", "first")]).await;
    drained(&schema, LIMIT).await;
    let drop = "DO $$ BEGIN EXECUTE (SELECT string_agg('DROP TABLE ' || inhrelid::regclass, ';') \
                FROM pg_inherits WHERE inhparent = 'cqrs_outbox_done'::regclass); END $$";
    schema.run(drop).await;
    put(&schema.outbox, &[Message::new("orders", "second")]).await;
    drained(&schema, LIMIT).await;
    assert_eq!(schema.numbers(HISTORY).await, [1]);
    assert_eq!(broker.messages("orders").len(), 2, "none is published again");
    stop(relay).await;
    schema.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_that_cannot_be_kept_is_an_error_at_the_start() {
    let schema = Schema::new().await;
    let relay = |outbox: &PostgresOutbox| Relay::builder(outbox, MemoryBroker::new());
    let error = relay(&schema.outbox).keep_history(DAY - Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.kind(), OutboxErrorKind::Config);

    let role = format!("{}_role", schema.name);
    schema
        .run(format!(
            "CREATE ROLE {role}; GRANT USAGE ON SCHEMA {0} TO {role}; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {0} TO {role}",
            schema.name
        ))
        .await;
    let pool = Postgres::pool(options(&schema.name).options([("role", &role)]));
    let outbox = PostgresOutbox::new(pool);
    let error = relay(&outbox).keep_history(DAY).await.unwrap_err();
    assert!(error.to_string().contains("needs the owner of its table"), "{error}");
    assert!(error.source().unwrap().to_string().contains("permission denied"), "{error:?}");

    // The owner has made the partitions.
    drop(relay(&schema.outbox).keep_history(DAY).await.unwrap());
    let running = start(relay(&outbox).keep_history(DAY).await.unwrap());
    put(&outbox, &[Message::new("orders", "{}")]).await;
    drained(&schema, LIMIT).await;
    assert_eq!(schema.numbers(HISTORY).await, [1]);
    stop(running).await;

    schema.run("DROP TABLE cqrs_outbox_done").await;
    let error = relay(&schema.outbox).keep_history(DAY).await.unwrap_err();
    assert_eq!(error.kind(), OutboxErrorKind::NotMigrated);
    assert_eq!(outbox.status().await.unwrap().history, None);
    outbox.pool().close().await;
    schema.run(format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    schema.drop().await;
}
