//! Parts of the tests of the relay: its process, the rows that writers commit, and what arrived in Kafka.

#![allow(clippy::unwrap_used)] // A helper of tests fails the test.

mod timed;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use cqrs_core::Message;
use cqrs_outbox::Outbox;
use serde::{Deserialize, Serialize};
pub use timed::TimedBroker;
use tokio::process::{Child, Command};

use crate::database::{Schema, TestDatabase};
use crate::kafka::{Record, read_all};

/// The options of a relay's process. The addresses of the servers are in the environment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RelayOptions {
    /// The server of the outbox.
    pub server: String,
    /// Its schema.
    pub schema: String,
    /// The lease, in milliseconds.
    pub lease_ms: u64,
}

/// A relay in its own process. Killed when it is dropped.
#[derive(Debug)]
pub struct RelayProcess(Child);

impl RelayProcess {
    /// Starts `program`, which is `env!("CARGO_BIN_EXE_relay")`. Its log is in the directory of temporary
    /// files, under the name of the schema.
    pub fn spawn(program: &str, options: &RelayOptions) -> Self {
        let log: PathBuf = std::env::temp_dir().join(format!("{}.log", options.schema));
        let log = OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(program);
        command.arg(serde_json::to_string(options).unwrap()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap())
    }

    /// `kill -9`; returns when the process is gone.
    pub async fn kill(mut self) {
        self.0.kill().await.unwrap();
    }

    /// Sends a signal by its name.
    pub async fn signal(&self, name: &str) {
        let pid = self.0.id().unwrap().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().await.unwrap();
        assert!(sent.success(), "kill {name} {pid}");
    }

    /// SIGTERM, and its end.
    pub async fn stop(mut self) {
        self.signal("-TERM").await;
        let ended = tokio::time::timeout(Duration::from_secs(60), self.0.wait()).await;
        assert!(ended.expect("an end in time").unwrap().success());
    }
}

/// What was committed: the number of rows of each key.
pub type Committed = HashMap<String, u32>;

/// Writes `rows` rows of `keys` keys, `batch` in a transaction, each numbered in its key. One transaction
/// in ten is rolled back. Returns what was committed, in spite of a server that is killed meanwhile.
pub async fn write<DB: TestDatabase>(
    schema: &Schema<DB>,
    topic: &str,
    keys: usize,
    rows: usize,
    batch: usize,
) -> Committed {
    const WRITERS: usize = 4;
    let marks = "CREATE TABLE IF NOT EXISTS marks (writer int8, number int8)";
    schema.run(marks).await;
    schema.run("TRUNCATE TABLE marks").await;
    let writers = (0..WRITERS).map(|writer| {
        let (outbox, topic) = (schema.outbox.clone(), topic.to_owned());
        async move {
            let mut committed = Committed::new();
            let own: Vec<_> =
                (writer..keys).step_by(WRITERS).map(|key| format!("k{key}")).collect();
            let mut turn = own.iter().cycle();
            for number in 0..rows / WRITERS / batch {
                let of: Vec<_> = turn.by_ref().take(batch).collect();
                let is_rolled_back = number % 10 == 9;
                let mut next = committed.clone();
                let messages = of.iter().map(|key| {
                    let seq = next.entry((*key).clone()).or_default();
                    let body = if is_rolled_back { "rolled back".into() } else { seq.to_string() };
                    *seq += 1;
                    Message::new(&*topic, body).with_key((*key).clone())
                });
                let messages: Vec<_> = messages.collect();
                let mut tx = retried(async || outbox.pool().begin().await).await;
                if put(&outbox, &mut tx, &messages, number, writer).await.is_err() {
                    continue;
                }
                if is_rolled_back {
                    let _gone = tx.rollback().await;
                } else if tx.commit().await.is_ok() {
                    outbox.wakeup().wake();
                    committed = next;
                } else if retried(async || is_stored(schema, number, writer).await).await {
                    committed = next;
                }
            }
            committed
        }
    });
    let committed = futures_util::future::join_all(writers).await;
    committed.into_iter().flatten().collect()
}

/// Puts messages, and a mark that tells after a commit without an answer if it happened.
async fn put<DB: TestDatabase>(
    outbox: &Outbox<DB>,
    transaction: &mut DB::Connection,
    messages: &[Message],
    number: usize,
    writer: usize,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    DB::run(transaction, format!("INSERT INTO marks VALUES ({writer}, {number})")).await?;
    Ok(outbox.put(transaction, messages).await?)
}

async fn is_stored<DB: TestDatabase>(
    schema: &Schema<DB>,
    number: usize,
    writer: usize,
) -> Result<bool, sqlx::Error> {
    let sql = format!("SELECT count(*) FROM marks WHERE writer = {writer} AND number = {number}");
    Ok(schema.try_numbers(sql).await? == [1])
}

async fn retried<T, E: std::fmt::Display>(mut try_it: impl AsyncFnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        match try_it().await {
            Ok(done) => return done,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until no row is pending or parked.
pub async fn drained<DB: TestDatabase>(schema: &Schema<DB>, limit: Duration) {
    let end = Instant::now() + limit;
    let sql =
        "SELECT (SELECT count(*) FROM cqrs_outbox) + (SELECT count(*) FROM cqrs_outbox_parked)";
    loop {
        let left = retried(async || schema.try_numbers(sql).await).await[0];
        if left == 0 {
            return;
        }
        assert!(Instant::now() < end, "{left} rows left in {}", schema.name);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The audit of what arrived.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Rows that arrived, each counted once.
    pub rows: usize,
    /// Further copies of them.
    pub duplicates: usize,
}

/// Reads the topic and checks it: nothing committed is missing, nothing else is there, and the first
/// deliveries of each key are in order.
pub async fn audit(topic: &str, committed: &Committed) -> Arrived {
    check(&read_all(topic).await, committed)
}

fn check(records: &[Record], committed: &Committed) -> Arrived {
    let mut next: HashMap<String, u32> = HashMap::new();
    let mut arrived = Arrived::default();
    for record in records {
        let key = String::from_utf8(record.key.clone().unwrap()).unwrap();
        let body = String::from_utf8(record.body.clone().unwrap()).unwrap();
        let number: u32 = body.parse().unwrap_or_else(|_| panic!("unexpected: {key} {body}"));
        let next = next.entry(key.clone()).or_default();
        assert!(number <= *next, "{key}: {number} arrived before {next}");
        if number == *next {
            *next += 1;
            arrived.rows += 1;
        } else {
            arrived.duplicates += 1;
        }
    }
    for (key, rows) in committed {
        assert_eq!(next.remove(key).unwrap_or(0), *rows, "rows of {key}");
    }
    assert!(next.is_empty(), "unexpected keys: {:?}", next.keys().take(3));
    arrived
}
