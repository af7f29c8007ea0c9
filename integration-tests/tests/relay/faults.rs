//! The relay while its database, its broker or a row fails.

use std::time::{Duration, Instant};

use cqrs_core::Message;
use cqrs_outbox::FailedFilter;
use integration_tests::control::{Restore, brokers, full};
use integration_tests::database::TestDatabase;
use integration_tests::kafka::{create_topic, fresh_topic};
use integration_tests::on_each_database;
use integration_tests::outbox::{TimedBroker, audit, drained, write};

use crate::{LIMIT, Running, SERVERS, broker, fresh, relay, wait};

on_each_database!(
    poison_at_the_head_is_dead_and_delays_nobody,
    cut_session_is_made_again_and_nothing_is_lost,
    stopped_database_hangs_no_statement,
    killed_database_loses_nothing,
    broker_outage_makes_no_row_dead,
);

/// Fault 26.
async fn poison_at_the_head_is_dead_and_delays_nobody<DB: TestDatabase>() {
    let _shared = SERVERS.read().await;
    let (schema, topic) = fresh::<DB>("poison").await;
    let broker = TimedBroker::new(broker(|config| config.max_message_size = 1_000).await);
    let running = Running::start(relay(&schema, &broker));
    let normal_topic = fresh_topic("poison");
    create_topic(&normal_topic, 4, &[]).await;
    write(&schema, &normal_topic, 100, 2_000, 10).await;
    drained(&schema, LIMIT).await;
    running.stop().await;
    let normal = broker.p99();
    let large = "x".repeat(2_000);
    let poison = (0..100).map(|n| Message::new(&*topic, large.clone()).with_key(format!("p{n}")));
    let mut tx = schema.pool.begin().await.unwrap();
    schema.outbox.put(&mut tx, &poison.collect::<Vec<_>>()).await.unwrap();
    tx.commit().await.unwrap();
    let running = Running::start(relay(&schema, &broker));
    let committed = write(&schema, &topic, 100, 2_000, 10).await;
    drained(&schema, LIMIT).await;
    let p99 = broker.p99();
    let status = running.handle.status().await.unwrap();
    assert_eq!((status.dead, status.parked), (100, 0));
    let all = FailedFilter::default();
    let dead = schema.outbox.dead_rows(&all, 0, 1_000).await.unwrap();
    assert!(dead.iter().all(|row| row.last_error.contains("too large")), "{:?}", dead[0]);
    let first = dead[0].id;
    assert_eq!(schema.outbox.replay_dead(&all, 1).await.unwrap(), 1);
    let is_dead_again =
        async || schema.outbox.dead_rows(&all, first, 1_000).await.unwrap().len() == 100;
    wait(is_dead_again, "dead row").await;
    assert_eq!(schema.outbox.purge_dead(&all, 1_000).await.unwrap(), 100);
    running.stop().await;
    let arrived = audit(&topic, &committed).await;
    println!(
        "SUMMARY relay {} poison committed={} arrived={} dead=100 lost=0 unexpected=0 reordered=0 \
         duplicates={} p99={p99:.1?} p99_without_poison={normal:.1?}",
        DB::SERVER,
        committed.values().sum::<u32>(),
        arrived.rows,
        arrived.duplicates,
    );
    assert_eq!(arrived.duplicates, 0);
    schema.drop().await;
}

/// Fault 28, its second part.
async fn cut_session_is_made_again_and_nothing_is_lost<DB: TestDatabase>() {
    let _shared = SERVERS.read().await;
    let (schema, topic) = fresh::<DB>("listen").await;
    let broker = broker(|_| {}).await;
    let running = Running::start(relay(&schema, &broker));
    let cutting = async {
        let mut last = None;
        for _ in 0..3 {
            // A query may fail while sessions are cut: the next one tells.
            let session = async || schema.try_numbers(DB::SESSIONS).await.ok()?.first().copied();
            wait(async || session().await.is_some_and(|id| Some(id) != last), "session").await;
            last = session().await;
            schema.run(DB::KILL.replace("$1", &last.unwrap().to_string())).await;
        }
    };
    let (committed, ()) = tokio::join!(write(&schema, &topic, 100, 4_000, 10), cutting);
    drained(&schema, LIMIT).await;
    running.stop().await;
    let arrived = audit(&topic, &committed).await;
    println!(
        "SUMMARY relay {} session-cut x3 committed={} arrived={} lost=0 unexpected=0 reordered=0 \
         duplicates={}",
        DB::SERVER,
        committed.values().sum::<u32>(),
        arrived.rows,
        arrived.duplicates,
    );
    schema.drop().await;
}

/// The server is there and answers nothing.
async fn stopped_database_hangs_no_statement<DB: TestDatabase>() {
    let _alone = SERVERS.write().await;
    let (schema, topic) = fresh::<DB>("stopped").await;
    let broker = broker(|_| {}).await;
    let running = Running::start(relay(&schema, &broker).statement_timeout(Duration::from_secs(1)));
    let _restore = Restore::by(["resume", DB::SERVER]);
    let stopping = async {
        let is_busy = async || running.handle.status().await.is_ok_and(|of| of.published > 500);
        wait(is_busy, "published rows").await;
        brokers(&["pause", DB::SERVER]).await;
        wait(async || running.handle.is_database_away(), "outage").await;
        brokers(&["resume", DB::SERVER]).await;
    };
    let (committed, ()) = tokio::join!(write(&schema, &topic, 100, 8_000, 10), stopping);
    drained(&schema, LIMIT).await;
    running.stop().await;
    let arrived = audit(&topic, &committed).await;
    println!(
        "SUMMARY relay {} database-stopped committed={} arrived={} lost=0 unexpected=0 reordered=0 \
         duplicates={}",
        DB::SERVER,
        committed.values().sum::<u32>(),
        arrived.rows,
        arrived.duplicates,
    );
    schema.drop().await;
}

/// Fault 28.
async fn killed_database_loses_nothing<DB: TestDatabase>() {
    let _alone = SERVERS.write().await;
    let (schema, topic) = fresh::<DB>("database").await;
    let broker = broker(|_| {}).await;
    let running = Running::start(relay(&schema, &broker));
    let _restore = Restore::by(["start", DB::SERVER]);
    let kills = 3;
    let killing = async {
        for n in 1..=kills {
            let is_busy =
                async || running.handle.status().await.is_ok_and(|of| of.published > n * 500);
            wait(is_busy, "published rows").await;
            brokers(&["kill", DB::SERVER]).await;
            brokers(&["start", DB::SERVER]).await;
        }
    };
    let rows = if full() { 100_000 } else { 8_000 };
    let (committed, ()) = tokio::join!(write(&schema, &topic, 100, rows, 10), killing);
    let written = Instant::now();
    drained(&schema, LIMIT).await;
    let lag = written.elapsed();
    running.stop().await;
    let arrived = audit(&topic, &committed).await;
    println!(
        "SUMMARY relay {} database-killed x{kills} committed={} arrived={} lost=0 unexpected=0 reordered=0 \
         duplicates={} lag={lag:.1?}",
        DB::SERVER,
        committed.values().sum::<u32>(),
        arrived.rows,
        arrived.duplicates,
    );
    schema.drop().await;
}

async fn broker_outage_makes_no_row_dead<DB: TestDatabase>() {
    let _alone = SERVERS.write().await;
    let (schema, topic) = fresh::<DB>("outage").await;
    let broker = broker(|config| config.publish_timeout = Duration::from_secs(4)).await;
    let running = Running::start(relay(&schema, &broker));
    let restore = Restore::by(["start", "kafka"]);
    let outage = async {
        let is_busy = async || running.handle.status().await.unwrap().published > 500;
        wait(is_busy, "published rows").await;
        brokers(&["kill", "kafka"]).await;
        // The length of the outage is the subject: publishes reach their deadlines.
        tokio::time::sleep(Duration::from_secs(if full() { 120 } else { 12 })).await;
        let parked = schema.numbers("SELECT count(*) FROM cqrs_outbox_parked WHERE attempts > 0");
        let parked = parked.await[0];
        brokers(&["start", "kafka"]).await;
        parked
    };
    let (committed, parked) = tokio::join!(write(&schema, &topic, 100, 4_000, 10), outage);
    drop(restore);
    drained(&schema, LIMIT).await;
    let status = running.handle.status().await.unwrap();
    running.stop().await;
    let arrived = audit(&topic, &committed).await;
    println!(
        "SUMMARY relay {} broker-killed committed={} arrived={} lost=0 unexpected=0 reordered=0 \
         duplicates={} dead={} attempts_counted_in_the_outage={}",
        DB::SERVER,
        committed.values().sum::<u32>(),
        arrived.rows,
        arrived.duplicates,
        status.dead,
        parked,
    );
    assert_eq!(status.dead, 0);
    assert_eq!(parked, 0, "an outage counts no attempt");
    schema.drop().await;
}
