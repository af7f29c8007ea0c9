//! Tests of the tables of python-cqrs 5 on a real PostgreSQL: both sides write and publish the outbox, and share the
//! inbox.

mod bounds;
mod draining;
mod failing;
mod inbox;
mod writing;

use std::time::Duration;

use cqrs_kafka::KafkaMessageBroker;
use cqrs_outbox::{PythonOutbox, PythonRelayBuilder, PythonRelayHandle, RelayReport};
use integration_tests::consuming::TIMEOUT;
use integration_tests::consuming::fixture::until;
use integration_tests::interop::users;
use integration_tests::kafka::{create_topic, fresh_topic};
use integration_tests::peers::{Peer, Python};
use integration_tests::postgres::Schema;
use integration_tests::servers;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// The tables, as the package makes them, in a schema of their own.
struct Tables {
    schema: Schema,
}

/// A row of the outbox, as the package's model reads it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Row {
    event_id: String,
    /// Set if both columns hold the same id.
    same_id: bool,
    status: String,
    attempts: i16,
    name: String,
    topic: String,
    created_at: String,
}

/// An event that the package has stored: its id, and the bytes that its producer sends.
type Written = (String, Vec<u8>);

impl Tables {
    async fn new() -> Self {
        let tables = Self { schema: Schema::new().await };
        tables.call("tables_create", json!({})).await;
        tables
    }

    async fn call(&self, what: &str, mut arguments: Value) -> Value {
        arguments["database"] = servers::postgres().into();
        arguments["schema"] = self.schema.name.as_str().into();
        Peer::shared(Python::Cqrs5).call(what, arguments).await
    }

    /// Lets a handler of the package write an event for each payload, in the class of `style`.
    async fn add(
        &self,
        topic: &str,
        style: &str,
        payloads: Vec<Value>,
        compressed: bool,
    ) -> Vec<Written> {
        let request = json!({
            "topic": topic, "style": style, "payloads": payloads, "compressed": compressed,
        });
        let written = self.call("outbox_add", request).await;
        let written: Vec<(String, String)> = serde_json::from_value(written).unwrap();
        written.into_iter().map(|(id, body)| (id, from_hex(&body))).collect()
    }

    async fn rows(&self) -> Vec<Row> {
        serde_json::from_value(self.call("outbox_rows", json!({})).await).unwrap()
    }

    /// Lets the package's producer send to Kafka; returns the sizes of its batches.
    async fn produce(&self, style: &str, compressed: bool, batches: usize) -> Vec<usize> {
        let request = json!({
            "style": style, "compressed": compressed, "batches": batches,
            "broker": "kafka", "address": servers::kafka(),
        });
        serde_json::from_value(self.call("outbox_produce", request).await).unwrap()
    }

    fn outbox(&self) -> PythonOutbox {
        PythonOutbox::new(self.schema.pool.clone())
    }

    /// Rows by their status and counter.
    async fn count(&self, status: &'static str, attempts: i16) -> i64 {
        let sql =
            "SELECT count(*) FROM outbox WHERE event_status::text = $1 AND flush_counter = $2";
        let query = sqlx::query_scalar(sql).bind(status).bind(attempts);
        query.fetch_one(&self.schema.pool).await.unwrap()
    }

    async fn until_produced(&self, rows: usize) {
        let rows = rows as i64;
        until("all are produced", async || self.count("PRODUCED", 0).await == rows).await;
    }

    async fn execute(&self, sql: &str) {
        integration_tests::postgres::execute(&self.schema.pool, sql.to_owned()).await;
    }
}

/// A relay in this process.
struct Running {
    handle: PythonRelayHandle,
    task: JoinHandle<RelayReport>,
}

impl Running {
    fn start(relay: PythonRelayBuilder) -> Self {
        let (millis, second) = (Duration::from_millis, Duration::from_secs(1));
        let relay = relay.poll(millis(20), millis(50)).backoff(millis(50), second).build().unwrap();
        Self { handle: relay.handle(), task: tokio::spawn(relay.run()) }
    }

    async fn stop(self) -> RelayReport {
        self.handle.stop();
        tokio::time::timeout(TIMEOUT, self.task).await.expect("an end in time").unwrap()
    }
}

fn broker() -> KafkaMessageBroker {
    crate::kafka::broker()
}

/// A topic of one partition, in which the order is that of publishing.
async fn topic() -> String {
    let topic = fresh_topic("tables");
    create_topic(&topic, 1, &[]).await;
    topic
}

/// Different payloads of `UserCreated`.
fn payloads(count: usize) -> Vec<Value> {
    let payload = |(number, mut user): (usize, integration_tests::interop::UserCreated)| {
        user.visits = number as u64;
        json!(user)
    };
    users().into_iter().cycle().take(count).enumerate().map(payload).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
