//! Tests of the relay on rows that python-cqrs has written, with a real Kafka.

use std::time::Duration;

use cqrs_core::MemoryBroker;
use cqrs_outbox::{OutboxErrorKind, PythonRelay};
use integration_tests::consuming::fixture::until;
use integration_tests::kafka::{Raw, delete_topics, read_raw};
use serde_json::json;

use super::{Running, Tables, broker, payloads, topic};

async fn records(topic: &str) -> Vec<Raw> {
    read_raw(topic).await.into_iter().map(|(_, record)| record).collect()
}

/// Key, body and headers.
fn frames(records: &[Raw]) -> Vec<impl PartialEq + std::fmt::Debug + use<'_>> {
    records.iter().map(|record| (&record.key, &record.body, &record.headers)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_bytes_reach_kafka_verbatim_and_in_order() {
    let (tables, topic) = (Tables::new().await, topic().await);
    let mut written = tables.add(&topic, "dataclass", payloads(400), false).await;
    written.extend(tables.add(&topic, "pydantic", payloads(400), true).await);
    // Two relays, the second of which waits for the lock of the first.
    let relays = [(); 2]
        .map(|()| Running::start(PythonRelay::builder(&tables.outbox(), broker()).batch(100)));
    written.extend(tables.add(&topic, "dataclass", payloads(200), false).await);
    tables.until_produced(written.len()).await;
    let mut published = 0;
    for relay in relays {
        let report = relay.stop().await;
        assert_eq!(report.unsettled, 0);
        published += report.published;
    }
    assert_eq!(published, 1_000);
    let records = records(&topic).await;
    assert_eq!(records.len(), 1_000);
    for (record, (_, body)) in records.iter().zip(&written) {
        assert_eq!(record.body.as_deref(), Some(&body[..]));
        assert!(record.key.is_none() && record.headers.is_empty(), "{record:?}");
    }
    let rows = tables.rows().await;
    for (row, (id, _)) in rows.iter().zip(&written) {
        assert_eq!((&*row.status, row.attempts, &row.event_id), ("PRODUCED", 0, id));
    }
    println!("SUMMARY python-relay written=1000 arrived=1000 lost=0 reordered=0 duplicates=0");
    tables.schema.drop().await;
    delete_topics(&topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frame_is_that_of_pythons_producer() {
    for compressed in [false, true] {
        let (tables, topic) = (Tables::new().await, topic().await);
        tables.add(&topic, "dataclass", payloads(4), compressed).await;
        let joined = json!({ "user_id": "1", "meeting_id": "2" });
        tables.add(&topic, "protobuf", vec![joined], compressed).await;
        let relay = PythonRelay::builder(&tables.outbox(), broker()).protobuf(["UserJoined"]);
        let relay = Running::start(relay);
        tables.until_produced(5).await;
        relay.stop().await;
        tables.execute("UPDATE outbox SET event_status = 'NEW'").await;
        assert_eq!(tables.produce("dataclass", compressed, 2).await, [5, 0]);
        let records = records(&topic).await;
        let (ours, theirs) = records.split_at(5);
        assert_eq!(frames(ours), frames(theirs));
        let names: Vec<_> = ours[4].headers.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["event_name", "message_id"]);
        tables.schema.drop().await;
        delete_topics(&topic).await;
    }
}

/// The package's producer locks no rows: both may publish the same one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_beside_pythons_producer_loses_nothing() {
    let (tables, topic) = (Tables::new().await, topic().await);
    let written = tables.add(&topic, "dataclass", payloads(300), false).await;
    let relay = Running::start(PythonRelay::builder(&tables.outbox(), broker()).batch(20));
    let python = tables.produce("dataclass", false, 4);
    let more = tables.add(&topic, "dataclass", payloads(100), false);
    let (sizes, more) = tokio::join!(python, more);
    let written = [written, more].concat();
    tables.until_produced(400).await;
    let report = relay.stop().await;
    let records = records(&topic).await;
    for (id, body) in &written {
        let copies = records.iter().filter(|record| record.body.as_ref() == Some(body)).count();
        assert!((1..=2).contains(&copies), "{copies} copies of {id}");
    }
    println!(
        "SUMMARY python-relay beside-producer written=400 ours={} theirs={} lost=0 duplicates={}",
        report.published,
        sizes.iter().sum::<usize>(),
        records.len() - 400,
    );
    tables.schema.drop().await;
    delete_topics(&topic).await;
}

/// The server ends the relay's session within a batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_session_loses_and_reorders_nothing() {
    let (tables, topic) = (Tables::new().await, topic().await);
    let written = tables.add(&topic, "dataclass", payloads(1_000), false).await;
    let relays = [(); 2]
        .map(|()| Running::start(PythonRelay::builder(&tables.outbox(), broker()).batch(50)));
    let mut cuts = 0;
    while tables.count("PRODUCED", 0).await < 1_000 {
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' \
                   AND classid = 6517106 AND objid = 'outbox'::regclass::oid AND granted";
        cuts += tables.schema.column::<i64>(sql).await[0];
        if cuts >= 10 {
            tables.until_produced(1_000).await;
        }
    }
    let mut published = 0;
    for relay in relays {
        published += relay.stop().await.published;
    }
    let records = records(&topic).await;
    let mut next = 0;
    for record in &records {
        let body = record.body.as_ref().unwrap();
        let place = written.iter().position(|(_, written)| written == body).unwrap();
        assert!(place <= next, "{place} arrived before {next}");
        next += usize::from(place == next);
    }
    assert_eq!(next, 1_000, "all have arrived");
    assert!(cuts > 0, "no session was cut");
    println!(
        "SUMMARY python-relay cut-sessions written=1000 cuts={cuts} published={published} lost=0 \
         reordered=0 duplicates={}",
        records.len() - 1_000,
    );
    tables.schema.drop().await;
    delete_topics(&topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_counts_rows_and_shows_the_relay() {
    let (tables, hour) = (Tables::new().await, Duration::from_secs(3_600));
    tables.add("users", "dataclass", payloads(6), false).await;
    for (status, attempts, ids) in
        [("NOT_PRODUCED", 2, "2, 3"), ("NOT_PRODUCED", 5, "4"), ("PRODUCED", 0, "6")]
    {
        let sql = format!(
            "UPDATE outbox SET event_status = '{status}', flush_counter = {attempts} WHERE id IN ({ids})"
        );
        tables.execute(&sql).await;
    }
    tables.execute("UPDATE outbox SET created_at = now() AT TIME ZONE 'UTC'").await;
    // The age is that of the rows that wait.
    for (id, hours) in [(1, 1), (3, 2), (6, 3)] {
        let sql = format!(
            "UPDATE outbox SET created_at = created_at - interval '{hours} hours' WHERE id = {id}"
        );
        tables.execute(&sql).await;
    }
    let broker = MemoryBroker::new();
    let relay = PythonRelay::builder(&tables.outbox(), broker.clone());
    let handle = relay.build().unwrap().handle();
    let status = handle.status().await.unwrap();
    assert_eq!((status.pending, status.parked, status.dead), (2, 2, 1));
    let oldest = status.oldest.unwrap();
    assert!(oldest >= hour && oldest < hour + hour / 2, "{oldest:?}");

    let relay = Running::start(PythonRelay::builder(&tables.outbox(), broker.clone()));
    until("a rate", async || relay.handle.status().await.unwrap().rate > 0.0).await;
    tables.until_produced(3).await;
    until("the failed ones", async || tables.count("PRODUCED", 2).await == 2).await;
    until("its end", async || relay.handle.status().await.unwrap().rate == 0.0).await;
    let status = relay.handle.status().await.unwrap();
    assert_eq!((status.pending, status.parked, status.dead), (0, 0, 1));
    assert_eq!((status.published, status.oldest, status.lanes), (4, None, 0));
    assert!(!status.is_database_away && status.last_error.is_none(), "{status:?}");

    tables.execute("ALTER TABLE outbox RENAME TO elsewhere").await;
    until("an outage", async || relay.handle.is_database_away()).await;
    let error = relay.handle.status().await.unwrap_err();
    assert_eq!(error.kind(), OutboxErrorKind::NotMigrated);
    tables.execute("ALTER TABLE elsewhere RENAME TO outbox").await;
    until("the end of the outage", async || !relay.handle.is_database_away()).await;
    let last_error = relay.handle.status().await.unwrap().last_error.unwrap();
    assert!(last_error.contains("outbox"), "{last_error}");
    relay.stop().await;
    tables.schema.drop().await;
}
