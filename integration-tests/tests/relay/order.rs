//! Rows that become visible in another order than that of their ids.

use std::time::Duration;

use cqrs_core::Message;
use integration_tests::control::full;
use integration_tests::database::{Schema, TestDatabase};
use integration_tests::kafka::read_all;
use integration_tests::on_each_database;
use integration_tests::outbox::{audit, drained, write};
use sqlx::Postgres;

use crate::{LIMIT, Running, SERVERS, broker, fresh, relay, wait};

on_each_database!(
    late_commit_is_published_before_next_of_its_key,
    open_transaction_delays_no_other_row,
);

/// Keys of one lane, found by hashing; the first one is the writer's that is late.
fn keys_of_one_lane(count: usize) -> Vec<String> {
    let lane = |key: &str| cqrs_outbox::lane_of(Some(key.as_bytes()), uuid::Uuid::nil(), 64);
    let keys = (0..).map(|n| format!("lane-{n}")).filter(|key| lane(key) == 7);
    keys.take(count).collect()
}

async fn put<DB: TestDatabase>(schema: &Schema<DB>, topic: &str, key: &str, body: &str) {
    let mut tx = schema.pool.begin().await.unwrap();
    let message = Message::new(topic, body.to_owned()).with_key(key.to_owned());
    schema.outbox.put(&mut tx, &[message]).await.unwrap();
    tx.commit().await.unwrap();
    schema.outbox.wakeup().wake();
}

async fn bodies(topic: &str, key: &str) -> Vec<String> {
    let records = read_all(topic).await.into_iter();
    let of_key = records.filter(|record| record.key.as_deref() == Some(key.as_bytes()));
    of_key.map(|record| String::from_utf8(record.body.unwrap()).unwrap()).collect()
}

async fn late_commit_is_published_before_next_of_its_key<DB: TestDatabase>() {
    let _shared = SERVERS.read().await;
    let (schema, topic) = fresh::<DB>("late").await;
    let broker = broker(|_| {}).await;
    // No sweep helps.
    let running = Running::start(relay(&schema, &broker).sweep(Duration::from_secs(3_600)));
    let keys = keys_of_one_lane(2);
    for round in 0..20 {
        // The late row has the lower id, and becomes visible when higher ones of its lane are through.
        let mut late = schema.pool.begin().await.unwrap();
        let first = Message::new(&*topic, format!("{round} first")).with_key(keys[0].clone());
        schema.outbox.put(&mut late, &[first]).await.unwrap();
        put(&schema, &topic, &keys[1], &round.to_string()).await;
        let is_published = async || schema.numbers("SELECT count(*) FROM cqrs_outbox").await == [0];
        wait(is_published, "publish of the later id").await;
        late.commit().await.unwrap();
        put(&schema, &topic, &keys[0], &format!("{round} second")).await;
    }
    drained(&schema, LIMIT).await;
    let late = running.handle.status().await.unwrap().late;
    assert_eq!(running.stop().await.published, 60);
    let expected: Vec<_> =
        (0..20).flat_map(|round| [format!("{round} first"), format!("{round} second")]).collect();
    assert_eq!(bodies(&topic, &keys[0]).await, expected);
    assert_eq!(late, 20, "rows that came late");
    schema.drop().await;
}

#[tokio::test]
async fn writer_takes_its_number_before_its_ids() {
    let _shared = SERVERS.read().await;
    let schema = Schema::<Postgres>::new().await;
    // A trigger runs after the id is taken, and before the row is written.
    let trigger = "CREATE FUNCTION check_number() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                   IF pg_current_xact_id_if_assigned() IS NULL THEN RAISE 'an id without a number'; \
                   END IF; RETURN NEW; END $$; \
                   CREATE TRIGGER check_number BEFORE INSERT ON cqrs_outbox FOR EACH ROW \
                   EXECUTE FUNCTION check_number()";
    schema.run(trigger).await;
    for n in 0..5 {
        put(&schema, "numbers", "key", &n.to_string()).await;
    }
    schema.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweep_finds_row_with_id_before_its_transaction() {
    let _shared = SERVERS.read().await;
    let (schema, topic) = fresh::<Postgres>("sweep").await;
    let broker = broker(|_| {}).await;
    let running = Running::start(relay(&schema, &broker).sweep(Duration::from_secs(1)));
    let keys = keys_of_one_lane(2);
    // Another writer than ours: it takes the id long before it has a transaction's number.
    let next = "SELECT nextval(pg_get_serial_sequence('cqrs_outbox', 'id'))";
    let id = schema.numbers(next).await[0];
    for n in 0..50 {
        put(&schema, &topic, &keys[1], &n.to_string()).await;
    }
    drained(&schema, LIMIT).await;
    sqlx::query(
        "INSERT INTO cqrs_outbox (lane, id, event_id, name, topic, key, body, occurred_at, mandatory) \
         OVERRIDING SYSTEM VALUE VALUES (7, $1, gen_random_uuid(), '', $2, $3, 'late', now(), true)",
    )
    .bind(id)
    .bind(&topic)
    .bind(keys[0].as_bytes())
    .execute(&schema.pool)
    .await
    .unwrap();
    drained(&schema, LIMIT).await;
    running.stop().await;
    assert_eq!(bodies(&topic, &keys[0]).await, ["late"]);
    schema.drop().await;
}

/// Fault 25.
async fn open_transaction_delays_no_other_row<DB: TestDatabase>() {
    let _shared = SERVERS.read().await;
    let (schema, topic) = fresh::<DB>("open").await;
    let broker = broker(|_| {}).await;
    let running = Running::start(relay(&schema, &broker));
    let rows = if full() { 100_000 } else { 4_000 };
    let mut open = schema.pool.begin().await.unwrap();
    let messages = [0, 1].map(|n| Message::new(&*topic, n.to_string()).with_key("open"));
    schema.outbox.put(&mut open, &messages).await.unwrap();
    let hold = async {
        // The length of the transaction is the subject.
        tokio::time::sleep(Duration::from_secs(if full() { 60 } else { 5 })).await;
        let is_published = async || {
            let status = running.handle.status().await.unwrap();
            status.pending == 0 && status.published > 0
        };
        wait(is_published, "publish of the other rows").await;
        open.commit().await.unwrap();
    };
    let (mut committed, ()) = tokio::join!(write(&schema, &topic, 100, rows, 10), hold);
    committed.insert("open".to_owned(), 2);
    drained(&schema, LIMIT).await;
    let late = running.handle.status().await.unwrap().late;
    running.stop().await;
    let arrived = audit(&topic, &committed).await;
    println!(
        "SUMMARY relay {} open-transaction committed={} arrived={} lost=0 unexpected=0 reordered=0 \
         duplicates={} late={late}",
        DB::SERVER,
        committed.values().sum::<u32>(),
        arrived.rows,
        arrived.duplicates,
    );
    assert_eq!(arrived.duplicates, 0);
    assert!(late >= 2, "{late}");
    schema.drop().await;
}
