//! Several relays on one outbox: their shares, take-overs, and former owners that go on.

use std::time::{Duration, Instant};

use integration_tests::control::full;
use integration_tests::database::{Schema, TestDatabase};
use integration_tests::on_each_database;
use integration_tests::outbox::{RelayOptions, RelayProcess, audit, drained, write};

use crate::{LIMIT, Running, SERVERS, broker, fresh, relay, wait};

const RELAY: &str = env!("CARGO_BIN_EXE_relay");

/// Unconfirmed or undeleted rows of one relay: its broker's window, and the rows of a delete and a half.
const IN_FLIGHT: usize = 1_000 + 6_000;

/// Of relays whose session tells that they are alive.
const LEASE: Duration = Duration::from_secs(30);

on_each_database!(
    relays_share_lanes_and_publish_each_row_once,
    killed_relays_lose_nothing_and_keep_order,
    stopped_process_goes_on_without_breaking_order,
);

/// Lanes per owner, the most first.
async fn owners<DB: TestDatabase>(schema: &Schema<DB>) -> Vec<i64> {
    schema
        .numbers("SELECT count(*) FROM cqrs_outbox_lane WHERE owner IS NOT NULL GROUP BY owner ORDER BY 1 DESC")
        .await
}

async fn relays_share_lanes_and_publish_each_row_once<DB: TestDatabase>() {
    let _shared = SERVERS.read().await;
    let (schema, topic) = fresh::<DB>("share").await;
    let broker = broker(|_| {}).await;
    let first = Running::start(relay(&schema, &broker));
    wait(async || owners(&schema).await == [64], "owner of all lanes").await;
    let second = Running::start(relay(&schema, &broker));
    let change = async {
        wait(async || owners(&schema).await == [32, 32], "fair share").await;
        first.stop().await;
        wait(async || owners(&schema).await == [64], "owner of all lanes").await;
    };
    let (committed, ()) = tokio::join!(write(&schema, &topic, 100, 8_000, 10), change);
    drained(&schema, LIMIT).await;
    second.stop().await;
    assert!(owners(&schema).await.is_empty());
    assert_eq!(audit(&topic, &committed).await.duplicates, 0);
    schema.drop().await;
}

/// Fault 24.
async fn killed_relays_lose_nothing_and_keep_order<DB: TestDatabase>() {
    let _shared = SERVERS.read().await;
    let (schema, topic) = fresh::<DB>("kill").await;
    let (rows, kills) = if full() { (100_000, 10) } else { (20_000, 3) };
    let (server, name) = (DB::SERVER.to_owned(), schema.name.clone());
    let lease_ms = LEASE.as_millis() as u64;
    let options = RelayOptions { server, schema: name, lease_ms };
    let mut relays: Vec<_> = (0..4).map(|_| RelayProcess::spawn(RELAY, &options)).collect();
    wait(async || owners(&schema).await == [16, 16, 16, 16], "fair share").await;
    let mut slowest = Duration::ZERO;
    let killing = async {
        for kill in 0..kills {
            relays.remove(0).kill().await;
            let since = Instant::now();
            let is_taken_over = async || {
                owners(&schema).await.iter().sum::<i64>() == 64 && owners(&schema).await.len() == 3
            };
            wait(is_taken_over, "take-over").await;
            slowest = slowest.max(since.elapsed());
            relays.push(RelayProcess::spawn(RELAY, &options));
            if kill + 1 < kills {
                wait(async || owners(&schema).await == [16, 16, 16, 16], "fair share").await;
            }
        }
    };
    let (committed, ()) = tokio::join!(write(&schema, &topic, 1_000, rows, 20), killing);
    drained(&schema, LIMIT).await;
    for relay in relays {
        relay.stop().await;
    }
    let arrived = audit(&topic, &committed).await;
    println!(
        "SUMMARY relay {} killed x{kills} committed={} arrived={} lost=0 unexpected=0 reordered=0 \
         duplicates={} slowest_take_over={slowest:.1?}",
        DB::SERVER,
        committed.values().sum::<u32>(),
        arrived.rows,
        arrived.duplicates,
    );
    assert!(arrived.duplicates <= kills * IN_FLIGHT);
    assert!(slowest < LEASE / 2, "taken over by the lease, not by the end of the session");
    schema.drop().await;
}

async fn stopped_process_goes_on_without_breaking_order<DB: TestDatabase>() {
    let _shared = SERVERS.read().await;
    let (schema, topic) = fresh::<DB>("zombie").await;
    let (server, name) = (DB::SERVER.to_owned(), schema.name.clone());
    let options = RelayOptions { server, schema: name, lease_ms: 3_000 };
    let zombie = RelayProcess::spawn(RELAY, &options);
    wait(async || owners(&schema).await == [64], "owner of all lanes").await;
    let other = RelayProcess::spawn(RELAY, &options);
    let rounds = if full() { 5 } else { 2 };
    let stopping = async {
        for _ in 0..rounds {
            wait(async || owners(&schema).await == [32, 32], "fair share").await;
            zombie.signal("-STOP").await;
            wait(async || owners(&schema).await == [64], "take-over after the lease").await;
            zombie.signal("-CONT").await;
        }
        wait(async || owners(&schema).await == [32, 32], "fair share").await;
    };
    let rows = if full() { 100_000 } else { 10_000 };
    let (committed, ()) = tokio::join!(write(&schema, &topic, 200, rows, 10), stopping);
    drained(&schema, LIMIT).await;
    zombie.stop().await;
    other.stop().await;
    let arrived = audit(&topic, &committed).await;
    println!(
        "SUMMARY relay {} stopped-and-continued x{rounds} committed={} arrived={} lost=0 unexpected=0 \
         reordered=0 duplicates={}",
        DB::SERVER,
        committed.values().sum::<u32>(),
        arrived.rows,
        arrived.duplicates,
    );
    schema.drop().await;
}
