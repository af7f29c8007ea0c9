//! Tests of the relay's connections: the hooks of the application's pool, and notifications between relays.

use std::time::Duration;

use cqrs_core::{MemoryBroker, Message};
use cqrs_outbox::{Relay, Tables};
use integration_tests::consuming::fixture::until_within;
use integration_tests::postgres::options;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPoolOptions;

use super::*;

/// The schema is set by a hook of the pool alone, and the names are longer than a channel's may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_use_the_pools_hooks_and_wake_each_other() {
    let schema = Schema::new().await;
    let path = format!("SET search_path = {}", schema.name);
    let pool = PgPoolOptions::new().after_connect(move |connection, _| {
        let path = AssertSqlSafe(path.clone());
        Box::pin(async move { sqlx::query(path).execute(connection).await.map(drop) })
    });
    let pool = pool.connect_with(options("public")).await.unwrap();
    let tables = Tables::default().with_prefix("p".repeat(40)).unwrap();
    let broker = MemoryBroker::new();
    let published = broker.subscriber("orders", "audit");
    let (mut outboxes, mut relays) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let outbox = PostgresOutbox::with_tables(pool.clone(), tables.clone()).unwrap();
        outbox.migrate().await.unwrap();
        let relay = Relay::builder(&outbox, broker.clone());
        let relay = relay.poll(Duration::from_secs(60), Duration::from_secs(60)).build().unwrap();
        relays.push((relay.handle(), tokio::spawn(relay.run())));
        outboxes.push(outbox);
    }
    let within = Duration::from_secs(30);
    let lanes = async |at: usize| relays[at].0.status().await.unwrap().lanes;
    let is_shared = async || lanes(0).await == 32 && lanes(1).await == 32;
    until_within(within, "each relay has half of the lanes", is_shared).await;

    let message = |key: u32| Message::new("orders", "{}").with_key(key.to_string());
    let messages: Vec<_> = (0..100).map(message).collect();
    let mut tx = pool.begin().await.unwrap();
    outboxes[0].put(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();
    // Only the relays of this value see it; the other is notified.
    outboxes[0].wakeup().wake();
    for _ in 0..100 {
        let next = tokio::time::timeout(within, published.recv()).await;
        next.expect("a message before the poll").unwrap().ack();
    }
    for (handle, running) in relays {
        handle.stop();
        running.await.unwrap();
    }
    schema.drop().await;
}
