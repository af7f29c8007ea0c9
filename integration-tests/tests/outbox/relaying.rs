//! Tests of the relay's connections: the hooks of the application's pool, notifications between relays, ids that are
//! used again, and dead sockets.

use std::time::Duration;

use cqrs_core::{MemoryBroker, Message};
use cqrs_outbox::{Relay, Tables};
use cqrs_testkit::FaultProxy;
use integration_tests::consuming::fixture::until_within;
use integration_tests::outbox::drained;
use integration_tests::postgres::options;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPoolOptions;

use super::*;

on_each_database!(dead_sockets_are_closed_after_the_statement_timeout);

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_with_an_id_used_again_is_not_deleted() {
    let schema = Schema::new().await;
    let broker = MemoryBroker::new();
    let mut tx = schema.pool.begin().await.unwrap();
    let message = Message::new("orders", "old").with_key("key");
    schema.outbox.put(&mut tx, &[message]).await.unwrap();
    tx.commit().await.unwrap();
    // As after a failover that lost the old row and the end of the sequence. The delete waits for it.
    let mut other = schema.pool.begin().await.unwrap();
    let pid: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *other).await.unwrap();
    sqlx::query("UPDATE cqrs_outbox SET event_id = gen_random_uuid(), body = 'new'")
        .execute(&mut *other)
        .await
        .unwrap();
    let relay = Relay::builder(&schema.outbox, broker.clone()).sweep(Duration::from_millis(200));
    let relay = relay.build().unwrap();
    let (handle, running) = (relay.handle(), tokio::spawn(relay.run()));
    let within = Duration::from_secs(30);
    let is_waiting = async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))";
        let query = sqlx::query_scalar::<_, i64>(sql).bind(pid);
        query.fetch_one(&schema.pool).await.unwrap() == 1
    };
    until_within(within, "the delete of the old row waits", is_waiting).await;
    other.commit().await.unwrap();
    drained(&schema, within).await;
    let bodies: Vec<_> = broker.messages("orders").into_iter().map(|sent| sent.body).collect();
    assert_eq!(bodies, ["old", "new"]);
    handle.stop();
    running.await.unwrap();
    schema.drop().await;
}

/// The server does not notice that a client is gone whose statement waits for a lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_ends_statements_that_wait_for_a_lock() {
    let within = Duration::from_secs(30);
    for heartbeat_only in [false, true] {
        let schema = Schema::new().await;
        let mut lock = schema.pool.begin().await.unwrap();
        let pid: i32 =
            sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *lock).await.unwrap();
        let query = "LOCK TABLE cqrs_outbox IN ACCESS EXCLUSIVE MODE";
        sqlx::query(query).execute(&mut *lock).await.unwrap();
        let relay = Relay::builder(&schema.outbox, MemoryBroker::new());
        let relay = relay.statement_timeout(Duration::from_millis(500));
        let relay = if heartbeat_only { relay.heartbeat_only() } else { relay };
        let relay = relay.build().unwrap();
        let (handle, running) = (relay.handle(), tokio::spawn(relay.run()));
        let waiting = async || -> Vec<i32> {
            let sql = "SELECT pid FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))";
            sqlx::query_scalar(sql).bind(pid).fetch_all(&schema.pool).await.unwrap()
        };
        until_within(within, "a read waits", async || !waiting().await.is_empty()).await;
        let first = waiting().await;
        let has_ended = async || !waiting().await.iter().any(|pid| first.contains(pid));
        until_within(within, "the server ends the read", has_ended).await;
        lock.rollback().await.unwrap();
        handle.stop();
        running.await.unwrap();
        schema.drop().await;
    }
}

/// The sockets stay open, and no byte arrives: a machine that is gone, a firewall that forgot them.
async fn dead_sockets_are_closed_after_the_statement_timeout<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    let upstream = DB::port();
    let proxy = FaultProxy::start("127.0.0.1:0", format!("localhost:{upstream}")).await.unwrap();
    let outbox = Outbox::new(schema.pool_through(proxy.address()));
    let broker = MemoryBroker::new();
    let published = broker.subscriber("orders", "audit");
    let timeout = Duration::from_millis(500);
    let relay = Relay::builder(&outbox, broker).statement_timeout(timeout).drain(timeout);
    let relay = relay.build().unwrap();
    let (handle, running) = (relay.handle(), tokio::spawn(relay.run()));
    let within = Duration::from_secs(30);
    let write = async |body: &'static str| {
        let mut tx = schema.pool.begin().await.unwrap();
        schema.outbox.put(&mut tx, &[Message::new("orders", body)]).await.unwrap();
        tx.commit().await.unwrap();
    };
    let next = async || {
        let next = tokio::time::timeout(within, published.recv()).await;
        let message = next.expect("a message in time").unwrap();
        let body = message.message().body.clone();
        message.ack();
        body
    };
    write("before").await;
    assert_eq!(next().await, "before");

    proxy.blackhole(true);
    let before = proxy.accepted();
    write("meanwhile").await;
    // More than the relay has at a time: each one that hung was closed, and made anew.
    let is_retrying = async || proxy.accepted() >= before + 8;
    until_within(within, "new connections", is_retrying).await;
    assert!(handle.is_database_away());
    proxy.blackhole(false);
    assert_eq!(next().await, "meanwhile");
    until_within(within, "the end of the outage", async || !handle.is_database_away()).await;

    proxy.blackhole(true);
    handle.stop();
    // The drain, and five seconds for the goodbye.
    let report = tokio::time::timeout(Duration::from_secs(8), running).await;
    assert_eq!(report.expect("an end within its bound").unwrap().published, 2);
    schema.drop().await;
}
