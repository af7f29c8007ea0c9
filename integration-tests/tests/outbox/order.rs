//! Tests of the order of a key whose writers lock no row of their own, on PostgreSQL.

use std::time::Duration;

use cqrs_core::{MemoryBroker, Message};
use cqrs_outbox::Relay;
use integration_tests::consuming::fixture::until_within;
use integration_tests::outbox::drained;

use super::*;

const LIMIT: Duration = Duration::from_secs(30);

/// The first writer of a key commits last, unless the second one waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_key_is_published_in_order_of_commits() {
    for is_locked in [false, true] {
        let schema = Schema::new().await;
        let outbox = schema.outbox.clone();
        let outbox = if is_locked { outbox.lock_keys() } else { outbox };
        let message = |body: &'static str| Message::new("orders", body).with_key("order-1");
        let mut slow = outbox.pool().begin().await.unwrap();
        let pid: i32 =
            sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *slow).await.unwrap();
        outbox.put(&mut slow, &[message("first writer")]).await.unwrap();
        let write = |messages: Vec<Message>| {
            let outbox = outbox.clone();
            async move {
                let mut tx = outbox.pool().begin().await.unwrap();
                outbox.put(&mut tx, &messages).await.unwrap();
                tx.commit().await.unwrap();
            }
        };
        let second = tokio::spawn(write(vec![message("second writer")]));
        let commits = if is_locked {
            let is_waiting = async || {
                let sql =
                    "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))";
                let query = sqlx::query_scalar::<_, i64>(sql).bind(pid);
                query.fetch_one(&schema.pool).await.unwrap() == 1
            };
            until_within(LIMIT, "the second writer waits", is_waiting).await;
            // Nobody else does: not another key, the same one of another topic, or a message without a key.
            let others = vec![
                Message::new("orders", "other").with_key("order-2"),
                Message::new("other", "other").with_key("order-1"),
                Message::new("other", "other"),
            ];
            let others = tokio::time::timeout(LIMIT, write(others)).await;
            others.expect("no wait for another key");
            assert!(!second.is_finished());
            slow.commit().await.unwrap();
            second.await.unwrap();
            ["first writer", "second writer"]
        } else {
            second.await.unwrap();
            slow.commit().await.unwrap();
            ["second writer", "first writer"]
        };

        let broker = MemoryBroker::new();
        let relay = Relay::builder(&schema.outbox, broker.clone()).build().unwrap();
        let (handle, running) = (relay.handle(), tokio::spawn(relay.run()));
        drained(&schema, LIMIT).await;
        handle.stop();
        running.await.unwrap();
        let sent = broker.messages("orders").into_iter();
        let sent: Vec<_> = sent
            .filter(|sent| sent.key.as_deref() == Some(b"order-1"))
            .map(|sent| sent.body)
            .collect();
        assert_eq!(sent, ["first writer", "second writer"], "in order of their ids");
        assert_eq!(sent == commits, is_locked);
        schema.drop().await;
    }
}

/// Each writer has its keys in another order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_many_locked_keys_end_without_a_deadlock() {
    let schema = Schema::new().await;
    let writers = (0..4_usize).map(|writer| {
        // One row is compressed, so that the statement has all its parameters.
        let outbox = schema.outbox.clone().lock_keys().compress_above(1_000);
        tokio::spawn(async move {
            let body = |key: usize| if key == 0 { "large,".repeat(1_000) } else { "{}".to_owned() };
            let message = |key: usize| Message::new("orders", body(key)).with_key(key.to_string());
            let mut keys: Vec<_> = (0..20).collect();
            keys.rotate_left(writer * 5);
            if writer % 2 == 1 {
                keys.reverse();
            }
            let messages: Vec<_> = keys.into_iter().map(message).collect();
            for _ in 0..50 {
                let mut tx = outbox.pool().begin().await.unwrap();
                outbox.put(&mut tx, &messages).await.unwrap();
                tx.commit().await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        tokio::time::timeout(LIMIT, writer).await.expect("an end in time").unwrap();
    }
    assert_eq!(schema.column::<i64>("SELECT count(*) FROM cqrs_outbox").await, [4_000]);
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                 AND classid = 'cqrs_outbox'::regclass::oid";
    assert_eq!(schema.column::<i64>(locks).await, [0], "the locks end with their transactions");
    schema.drop().await;
}
