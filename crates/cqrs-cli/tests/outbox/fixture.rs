//! An outbox in an SQLite file, and runs of the program on it.

use std::io::{BufRead as _, BufReader, Lines, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use std::{fs, thread};

use cqrs_core::Message;
use cqrs_outbox::SqliteOutbox;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use uuid::Uuid;

const COLUMNS: &str = "id, lane, event_id, name, topic, key, content_type, headers, body, occurred_at, \
                       mandatory, created_at";

/// `cqrs outbox` with these arguments.
pub(crate) fn cqrs(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cqrs"));
    command.arg("outbox").args(arguments).env_remove("DATABASE_URL").stdin(Stdio::null());
    command
}

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(mut command: Command) -> Self {
        Self::of_ref(&mut command)
    }

    pub(crate) fn of_ref(command: &mut Command) -> Self {
        Self::from(command.output().unwrap())
    }

    /// The output of a run without an error.
    pub(crate) fn done(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// The error of a run.
    pub(crate) fn failed(self) -> String {
        assert_eq!(self.code, 1, "{self:?}");
        assert!(self.stdout.is_empty(), "{self:?}");
        self.stderr
    }

    /// The ids of a list in JSON.
    pub(crate) fn ids(self) -> Vec<i64> {
        let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_i64().unwrap();
        self.done().lines().map(id).collect()
    }

    pub(crate) fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub(crate) fn lines<R: Read>(output: R) -> Lines<BufReader<R>> {
    BufReader::new(output).lines()
}

/// Sends what Ctrl-C sends.
pub(crate) fn interrupt(child: &Child) {
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
}

pub(crate) fn message(topic: &str, key: &str) -> Message {
    Message::new(topic, "{}").with_key(key.to_owned())
}

/// An outbox in a file of its own, removed at the end.
pub(crate) struct Database {
    path: PathBuf,
    pub(crate) outbox: SqliteOutbox,
}

impl Database {
    /// Without a file.
    pub(crate) fn empty() -> Self {
        let path = std::env::temp_dir().join(format!("cqrs-cli-{}.db", Uuid::now_v7()));
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_lazy_with(options);
        Self { path, outbox: SqliteOutbox::new(pool) }
    }

    pub(crate) async fn new() -> Self {
        let database = Self::empty();
        database.outbox.migrate().await.unwrap();
        database
    }

    /// `cqrs outbox` with these arguments, on this database.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = cqrs(arguments);
        command.env("DATABASE_URL", format!("sqlite:{}", self.path.display()));
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments))
    }

    /// A run, and the most memory that it had, in KiB.
    pub(crate) fn run_measured(&self, arguments: &[&str]) -> (Ran, u64) {
        let mut command = self.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let status = format!("/proc/{}/status", child.id());
        let mut peak = None;
        while child.try_wait().unwrap().is_none() {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            // The kernel keeps the peak. A process that has just ended has none.
            peak = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).or(peak);
            thread::sleep(Duration::from_millis(2));
        }
        let output = child.wait_with_output().unwrap();
        (Ran::from(output), peak.unwrap())
    }

    pub(crate) async fn sql(&self, sql: impl Into<String>) {
        sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(self.outbox.pool()).await.unwrap();
    }

    /// Writes pending rows.
    pub(crate) async fn put(&self, messages: &[Message]) {
        let mut tx = self.outbox.pool().begin().await.unwrap();
        self.outbox.put(&mut tx, messages).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Writes dead rows.
    pub(crate) async fn kill(&self, messages: &[Message], error: &str) {
        self.fail(messages, "outbox_dead", "died_at", error).await;
    }

    /// Writes `count` dead rows with keys of their own.
    pub(crate) async fn kill_more(&self, count: usize, error: &str) {
        let messages: Vec<_> = (0..count).map(|n| message("orders", &n.to_string())).collect();
        self.kill(&messages, error).await;
    }

    /// Writes parked rows.
    pub(crate) async fn park(&self, messages: &[Message], error: &str) {
        self.fail(messages, "outbox_parked", "next_at", error).await;
    }

    async fn fail(&self, messages: &[Message], table: &str, time: &str, error: &str) {
        let last = "SELECT coalesce(max(id), 0) FROM cqrs_outbox";
        let last: i64 = sqlx::query_scalar(last).fetch_one(self.outbox.pool()).await.unwrap();
        self.put(messages).await;
        self.sql(format!(
            "INSERT INTO cqrs_{table} ({COLUMNS}, attempts, first_failed_at, {time}, last_error) \
             SELECT {COLUMNS}, 1, created_at, created_at, '{error}' FROM cqrs_outbox WHERE id > {last}; \
             DELETE FROM cqrs_outbox WHERE id > {last}"
        ))
        .await;
    }

    /// The keys of a table's rows, in order of their ids.
    pub(crate) async fn keys(&self, table: &str) -> Vec<String> {
        let sql = format!("SELECT CAST(key AS TEXT) FROM cqrs_{table} ORDER BY id");
        let query = sqlx::query_scalar(AssertSqlSafe(sql));
        query.fetch_all(self.outbox.pool()).await.unwrap()
    }

    pub(crate) async fn count(&self, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM cqrs_{table}");
        let query = sqlx::query_scalar(AssertSqlSafe(sql));
        query.fetch_one(self.outbox.pool()).await.unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        for end in ["", "-wal", "-shm"] {
            let _gone = fs::remove_file(format!("{}{end}", self.path.display()));
        }
    }
}
