//! Tests of the operators' API on PostgreSQL and MariaDB.

use std::time::Duration;

use cqrs_core::{MemoryBroker, Message};
use cqrs_outbox::{FailedFilter, Relay};
use integration_tests::consuming::fixture::until_within;
use integration_tests::outbox::drained;

use super::*;

on_each_database!(
    filter_chooses_rows_that_meet_all_conditions,
    time_of_the_count_bounds_later_changes,
    concurrent_replays_share_the_rows_without_copies,
    replay_up_to_an_id_ends_when_rows_die_again,
    status_has_counts_and_live_relays,
    unreadable_rows_are_listed_and_share_a_page,
    large_bodies_are_compressed_and_published_as_they_were,
    relay_that_owned_no_lane_is_forgotten,
);

const LIMIT: Duration = Duration::from_secs(30);

/// Writes `count` messages and moves them to the dead rows.
pub(super) async fn die<DB: TestDatabase>(
    schema: &database::Schema<DB>,
    topic: &str,
    count: usize,
    error: &str,
) {
    let message = |n: usize| Message::new(topic, "{}").with_key(n.to_string());
    let messages: Vec<_> = (0..count).map(message).collect();
    let mut tx = schema.pool.begin().await.unwrap();
    schema.outbox.put(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();
    kill_pending(schema, error).await;
}

/// Moves all rows of the outbox to the dead ones.
async fn kill_pending<DB: TestDatabase>(schema: &database::Schema<DB>, error: &str) {
    let now = DB::NOW;
    schema
        .run(format!(
            "INSERT INTO cqrs_outbox_dead SELECT o.lane, o.id, o.event_id, o.name, o.topic, o.key, \
             o.content_type, o.headers, o.body, o.occurred_at, o.mandatory, o.created_at, o.uncompressed_size, 1, {now}, \
             '{error}', {now} FROM cqrs_outbox o; DELETE FROM cqrs_outbox"
        ))
        .await;
}

async fn filter_chooses_rows_that_meet_all_conditions<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    die(&schema, "orders", 2, "the body is too large").await;
    die(&schema, "users", 2, "the topic is unknown").await;
    let all = FailedFilter::default();
    let rows = schema.outbox.dead_rows(&all, 0, 10).await.unwrap();
    let ids: Vec<_> = rows.iter().map(|dead| dead.id).collect();
    let cases = [
        (all.clone(), 4),
        (all.clone().topic("orders"), 2),
        (all.clone().error("unknown").topic("orders"), 0),
        (all.clone().name("nobody"), 0),
        (all.clone().ids([ids[0], ids[3]]), 2),
        (all.clone().ids([]), 0),
        (all.clone().up_to(ids[2]), 3),
        (all.clone().older_than(Duration::from_secs(3_600)), 0),
        (all.clone().older_than(Duration::MAX), 0),
        (all.clone().older_than(Duration::ZERO), 4),
    ];
    for (filter, expected) in cases {
        let rows = schema.outbox.dead_rows(&filter, 0, 10).await.unwrap();
        assert_eq!(rows.len(), expected, "{filter:?}");
        let count = schema.outbox.count_dead(&filter).await.unwrap();
        let last = rows.last().map(|dead| dead.id);
        assert_eq!((count.rows, count.last_id), (expected as u64, last), "{filter:?}");
    }
    assert_eq!(schema.outbox.dead_rows(&all, ids[0], 2).await.unwrap().len(), 2);
    assert!(schema.outbox.parked_rows(&all, 0, 10).await.unwrap().is_empty());
    schema.drop().await;
}

async fn time_of_the_count_bounds_later_changes<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    let hour = Duration::from_secs(3_600);
    die(&schema, "orders", 2, "too large").await;
    let day = DB::DAY;
    schema.run(format!("UPDATE cqrs_outbox_dead SET died_at = died_at - {day} / 16")).await;
    die(&schema, "users", 2, "too large").await;
    let all = FailedFilter::default();
    let dead = async |filter: &FailedFilter| {
        let rows = schema.outbox.dead_rows(filter, 0, 10).await.unwrap();
        rows.into_iter().map(|dead| dead.topic).collect::<Vec<_>>()
    };
    let count = schema.outbox.count_dead(&all).await.unwrap();
    let then = all.clone().as_of(count.at - hour);
    assert_eq!(dead(&all.clone().as_of(count.at)).await.len(), 4);
    assert_eq!(dead(&all.clone().older_than(hour)).await, ["orders", "orders"]);
    assert_eq!(dead(&then.clone().older_than(hour / 3)).await, ["orders", "orders"]);
    assert!(dead(&then.clone().older_than(hour)).await.is_empty());
    assert_eq!(schema.outbox.replay_dead(&then, 1).await.unwrap(), 1);
    assert_eq!(schema.outbox.purge_dead(&then, 10).await.unwrap(), 1);
    assert_eq!(dead(&all).await, ["users", "users"]);
    schema.drop().await;
}

async fn concurrent_replays_share_the_rows_without_copies<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    die(&schema, "orders", 2_000, "too large").await;
    let all = FailedFilter::default();
    let last = schema.outbox.count_dead(&all).await.unwrap().last_id.unwrap();
    let runs = (0..4).map(|_| {
        let (outbox, filter) = (schema.outbox.clone(), all.clone().up_to(last));
        tokio::spawn(async move {
            let mut sum = 0;
            loop {
                match outbox.replay_dead(&filter, 100).await.unwrap() {
                    0 => break sum,
                    replayed => sum += replayed,
                }
            }
        })
    });
    let mut sum = 0;
    for run in runs.collect::<Vec<_>>() {
        sum += run.await.unwrap();
    }
    assert_eq!((sum, schema.outbox.count_dead(&all).await.unwrap().rows), (2_000, 0));
    let counts = "SELECT count(*) FROM cqrs_outbox \
                  UNION ALL SELECT count(DISTINCT event_id) FROM cqrs_outbox";
    assert_eq!(schema.numbers(counts).await, [2_000, 2_000]);
    schema.drop().await;
}

async fn replay_up_to_an_id_ends_when_rows_die_again<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    die(&schema, "orders", 25, "too large").await;
    let all = FailedFilter::default();
    let last = schema.outbox.count_dead(&all).await.unwrap().last_id.unwrap();
    let bounded = all.clone().up_to(last);
    for expected in [10, 10, 5, 0] {
        assert_eq!(schema.outbox.replay_dead(&bounded, 10).await.unwrap(), expected);
        kill_pending(&schema, "too large again").await;
    }
    assert_eq!(schema.outbox.purge_dead(&all.clone().older_than(LIMIT), 10).await.unwrap(), 0);
    for expected in [20, 5, 0] {
        assert_eq!(schema.outbox.purge_dead(&all, 20).await.unwrap(), expected);
    }
    schema.drop().await;
}

async fn status_has_counts_and_live_relays<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    die(&schema, "orders", 3, "too large").await;
    let status = schema.outbox.status().await.unwrap();
    assert_eq!((status.pending, status.parked, status.dead), (0, 0, 3));
    assert_eq!((status.lanes, status.owned_lanes, status.relays.len()), (64, 0, 0));
    let relay = Relay::builder(&schema.outbox, MemoryBroker::new()).build().unwrap();
    let (handle, running) = (relay.handle(), tokio::spawn(relay.run()));
    let owns_all = async || schema.outbox.status().await.unwrap().owned_lanes == 64;
    until_within(LIMIT, "the relay owns all lanes", owns_all).await;
    let status = schema.outbox.status().await.unwrap();
    assert_eq!((status.relays.len(), status.relays[0].lanes), (1, 64));
    assert!(status.relays[0].seen_ago < LIMIT, "{status:?}");
    handle.stop();
    running.await.unwrap();
    let status = schema.outbox.status().await.unwrap();
    assert_eq!((status.owned_lanes, status.relays.len()), (0, 0));
    schema.drop().await;
}

async fn unreadable_rows_are_listed_and_share_a_page<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    die(&schema, "orders", 4, "the row cannot be read").await;
    let all = FailedFilter::default();
    let ids: Vec<_> =
        schema.outbox.dead_rows(&all, 0, 10).await.unwrap().iter().map(|dead| dead.id).collect();
    let (first, second, third) = (ids[0], ids[1], ids[2]);
    let same = format!("UPDATE cqrs_outbox_dead SET id = {second} WHERE id = {third}");
    schema.run(same).await;
    schema.run(format!("UPDATE cqrs_outbox_dead SET headers = '[1]' WHERE id = {first}")).await;
    let page = schema.outbox.dead_rows(&all, 0, 2).await.unwrap();
    let parts: Vec<_> = page.iter().map(|row| (row.id, row.unreadable.is_some())).collect();
    assert_eq!(parts, [(first, true), (second, false), (second, false)]);
    for row in &page {
        assert_eq!((&*row.topic, row.body_size), ("orders", 2));
        assert!(row.created_at.elapsed().unwrap() < LIMIT, "{row:?}");
        assert_eq!(schema.outbox.dead_body(row).await.unwrap().unwrap(), "{}");
    }
    assert_eq!(schema.outbox.replay_dead(&all, 10).await.unwrap(), 4);
    assert_eq!(schema.outbox.dead_body(&page[0]).await.unwrap(), None);
    schema.drop().await;
}

async fn large_bodies_are_compressed_and_published_as_they_were<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    let compressing = schema.outbox.clone().compress_above(1_000);
    let large = "order,".repeat(10_000);
    // Of bytes without a pattern, which compression makes larger.
    let hash = |n: u64| n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let random: Vec<u8> = (0..250).flat_map(|n| hash(n * n * n + 7)).collect();
    let bodies = [large.clone().into_bytes(), random, b"{}".to_vec()];
    let messages: Vec<_> =
        (0..3).map(|n| Message::new("orders", bodies[n].clone()).with_key(n.to_string())).collect();
    let mut tx = schema.pool.begin().await.unwrap();
    compressing.put(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();
    let sizes = format!("SELECT {} FROM cqrs_outbox ORDER BY id", DB::BODY_SIZE);
    let stored = schema.numbers(sizes).await;
    assert!(stored[0] < 1_000 && stored[1..] == [2_000, 2], "{stored:?}");

    // The relay of an outbox without the setting. It parks, declares dead and replays them, too.
    let small = MemoryBroker::builder().max_message_size(10_000).build();
    let relay = Relay::builder(&schema.outbox, small.clone()).build().unwrap();
    let (handle, running) = (relay.handle(), tokio::spawn(relay.run()));
    drained(&schema, LIMIT).await;
    handle.stop();
    running.await.unwrap();
    assert_eq!(small.messages("orders").len(), 2);
    let all = FailedFilter::default();
    let dead = schema.outbox.dead_rows(&all, 0, 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].body_size), (1, 60_000));
    assert_eq!(schema.outbox.dead_body(&dead[0]).await.unwrap().unwrap(), large);
    assert_eq!(schema.outbox.replay_dead(&all, 10).await.unwrap(), 1);
    let broker = MemoryBroker::new();
    broker.faults().refuse_messages(1);
    let (first, longest) = (Duration::from_millis(10), Duration::from_millis(10));
    let relay = Relay::builder(&schema.outbox, broker.clone()).backoff(first, longest);
    let relay = relay.build().unwrap();
    let (handle, running) = (relay.handle(), tokio::spawn(relay.run()));
    drained(&schema, LIMIT).await;
    handle.stop();
    running.await.unwrap();
    assert_eq!(broker.messages("orders")[0].body, large);
    schema.drop().await;
}

/// An event of a foreign writer, whose time is no number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_with_an_endless_time_is_dead_and_stops_no_other() {
    let schema = Schema::new().await;
    let broker = MemoryBroker::new();
    let mut tx = schema.pool.begin().await.unwrap();
    let messages = ["a", "b"].map(|key| Message::new("orders", "{}").with_key(key));
    schema.outbox.put(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();
    schema.run("UPDATE cqrs_outbox SET occurred_at = 'infinity' WHERE key = 'a'").await;
    let relay = Relay::builder(&schema.outbox, broker.clone()).build().unwrap();
    let (handle, running) = (relay.handle(), tokio::spawn(relay.run()));
    drained(&schema, LIMIT).await;
    handle.stop();
    running.await.unwrap();
    assert_eq!(broker.messages("orders").len(), 1);
    let dead = schema.outbox.dead_rows(&FailedFilter::default(), 0, 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].event_id), (1, messages[0].id));
    assert!(dead[0].unreadable.as_ref().unwrap().contains("occurred_at"), "{:?}", dead[0]);
    schema.drop().await;
}

async fn relay_that_owned_no_lane_is_forgotten<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    let (now, day) = (DB::NOW, DB::DAY);
    let killed = uuid::Uuid::now_v7();
    let insert = format!("INSERT INTO cqrs_outbox_relay (id, seen_at) VALUES ($ID, {now} - {day})");
    schema.run(insert.replace("$ID", &DB::uuid(killed))).await;
    let relay = Relay::builder(&schema.outbox, MemoryBroker::new()).build().unwrap();
    let (handle, running) = (relay.handle(), tokio::spawn(relay.run()));
    let is_alone = async || {
        let relays = schema.outbox.status().await.unwrap().relays;
        relays.len() == 1 && relays[0].id != killed
    };
    until_within(LIMIT, "the killed relay is forgotten", is_alone).await;
    handle.stop();
    running.await.unwrap();
    schema.drop().await;
}
