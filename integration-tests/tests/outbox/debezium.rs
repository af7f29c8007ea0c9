//! Tests of the outbox table of a Debezium connector.

use cqrs_core::message::Headers;
use cqrs_core::{Mediator, MemoryBroker, Message, RequestHandler};
use cqrs_macros::Command;
use cqrs_outbox::{DebeziumOutbox, OutboxErrorKind, Relay};
use uuid::Uuid;

use super::*;

#[derive(Command)]
#[cqrs(crate = "cqrs_core", error = HandlerError)]
struct AddUser {
    fails: bool,
}

struct AddUsers;

impl RequestHandler<AddUser> for AddUsers {
    async fn handle(&self, command: AddUser, scope: &mut Scope) -> Result<(), HandlerError> {
        insert_user::<sqlx::Postgres>(scope, "ada").await?;
        scope.emit(UserAdded { name: "ada".to_owned() });
        if command.fails { Err(HandlerError::permanent("not today")) } else { Ok(()) }
    }
}

/// The columns and types that the router's defaults want, and those of its options.
#[tokio::test]
async fn columns_are_those_of_the_event_router() {
    let schema = Schema::new().await;
    let outbox = DebeziumOutbox::new(schema.pool.clone()).with_schema(&schema.name);
    outbox.create_table().await.unwrap();
    outbox.create_table().await.unwrap();
    let columns = "SELECT column_name::text || ' ' || data_type FROM information_schema.columns \
                   WHERE table_schema = current_schema AND table_name = 'outbox' \
                   ORDER BY ordinal_position";
    // A time with a zone would be a text to the router, which takes none.
    let expected = [
        "id uuid",
        "aggregatetype text",
        "aggregateid text",
        "type text",
        "payload bytea",
        "timestamp timestamp without time zone",
        "content_type text",
        "headers json",
    ];
    assert_eq!(schema.column::<String>(columns).await, expected);
    schema.drop().await;
}

#[tokio::test]
async fn events_are_rows_of_the_handlers_transaction() {
    let schema = schema_with_users::<sqlx::Postgres>().await;
    let outbox = DebeziumOutbox::new(schema.pool.clone());
    outbox.create_table().await.unwrap();
    let builder = Mediator::builder().handle::<AddUser, _>(AddUsers).outbox(outbox);
    let mediator = builder.build().unwrap();
    let counts = "SELECT count(*) FROM users UNION ALL SELECT count(*) FROM outbox";
    mediator.send(AddUser { fails: true }).await.unwrap_err();
    assert_eq!(schema.column::<i64>(counts).await, [0, 0]);
    mediator.send(AddUser { fails: false }).await.unwrap();
    assert_eq!(schema.column::<i64>(counts).await, [1, 1]);
    schema.drop().await;
}

/// The columns that the router takes as topic, key and body by its manual, in order of writing, with
/// `route.topic.replacement=${routedByValue}` and the converters of the manual.
async fn routed(schema: &Schema) -> Vec<(String, Option<Vec<u8>>, Vec<u8>)> {
    let sql =
        "SELECT aggregatetype, convert_to(aggregateid, 'UTF8'), payload FROM outbox ORDER BY ctid";
    sqlx::query_as(sql).fetch_all(&schema.pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_of_a_row_equal_the_record_of_the_relay() {
    let schema = Schema::new().await;
    let debezium = DebeziumOutbox::new(schema.pool.clone());
    debezium.create_table().await.unwrap();
    let mut headers = Headers::new();
    headers.set_correlation_id("request-1");
    let messages = [
        Message::new("users", vec![0, 0xff]).with_key("key-é").with_name("UserAdded"),
        Message::new("users", "{}").with_headers(headers).with_content_type("application/json"),
        Message::new("users", "").with_key(""),
    ];
    let mut tx = schema.pool.begin().await.unwrap();
    schema.outbox.put(&mut tx, &messages).await.unwrap();
    debezium.put(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();

    let broker = MemoryBroker::new();
    let published = broker.subscriber("users", "audit");
    let relay = Relay::builder(&schema.outbox, broker.clone()).build().unwrap();
    let handle = relay.handle();
    let running = tokio::spawn(relay.run());
    let mut relayed = Vec::new();
    for _ in 0..messages.len() {
        let delivery = published.recv().await.unwrap();
        let Message { topic, key, body, .. } = delivery.message().clone();
        relayed.push((topic.to_string(), key.map(|key| key.to_vec()), body.to_vec()));
        delivery.ack();
    }
    handle.stop();
    running.await.unwrap();
    // Rows of different keys have no order.
    relayed.sort_unstable();
    let mut routed = routed(&schema).await;
    routed.sort_unstable();
    assert_eq!(relayed, routed);
    let ids = schema.column::<Uuid>("SELECT id FROM outbox ORDER BY ctid").await;
    assert_eq!(ids, messages.each_ref().map(|message| message.id));
    let correlation = "SELECT headers->>'correlation_id' FROM outbox WHERE headers IS NOT NULL";
    assert_eq!(schema.column::<String>(correlation).await, ["request-1"]);
    schema.drop().await;
}

#[tokio::test]
async fn key_that_is_no_text_is_refused() {
    let schema = Schema::new().await;
    let outbox = DebeziumOutbox::new(schema.pool.clone());
    let mut tx = schema.pool.begin().await.unwrap();
    let message = Message::new("users", "{}").with_key(vec![0xff]);
    let error = outbox.put(&mut tx, &[message]).await.unwrap_err();
    assert_eq!(error.kind(), OutboxErrorKind::Config);
    assert!(error.to_string().contains("is not UTF-8"), "{error}");
    drop(tx);
    schema.drop().await;
}
