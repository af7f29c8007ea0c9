//! Tests of the program `cqrs outbox` on PostgreSQL and MariaDB.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use integration_tests::consuming::fixture::until_within;
use integration_tests::servers;
use serde_json::Value;
use sqlx::Connection as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::operations::die;
use super::*;

on_each_database!(
    dead_rows_are_listed_replayed_and_purged,
    statement_is_given_up_at_the_timeout,
    migrate_creates_the_schema_and_its_tables,
);

/// Runs the program, which `scripts/test` built, on the tables of a schema.
pub(super) fn run<DB: TestDatabase>(schema: &database::Schema<DB>, arguments: &[&str]) -> Output {
    cqrs(&["--schema", &schema.name], arguments, &DB::url())
}

fn cqrs(before: &[&str], arguments: &[&str], url: &str) -> Output {
    started(before, arguments, url).wait_with_output().unwrap()
}

fn started(before: &[&str], arguments: &[&str], url: &str) -> Child {
    let test = std::env::current_exe().expect("this test");
    let program = test.ancestors().nth(2).expect("the target directory").join("cqrs");
    let mut command = Command::new(&program);
    command.arg("outbox").args(before).args(arguments).env("DATABASE_URL", url);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap_or_else(|error| {
        panic!("{} is not built ({error}): run `./scripts/test`", program.display())
    })
}

/// The output of a run that succeeds.
fn done<DB: TestDatabase>(schema: &database::Schema<DB>, arguments: &[&str]) -> String {
    let output = run(schema, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn dead_rows_are_listed_replayed_and_purged<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    die(&schema, "orders", 3, "the body is too large").await;
    die(&schema, "users", 2, "the topic is unknown").await;
    let text = done(&schema, &["status"]);
    assert!(text.contains("dead     5\nlanes    0 of 64 owned\n"), "{text}");
    let exceeded = run(&schema, &["status", "--max-dead", "4"]);
    assert_eq!(exceeded.status.code(), Some(2), "{exceeded:?}");
    let text = done(&schema, &["dead", "--json", "--topic", "users"]);
    let row: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&row["key"], &row["last_error"]), (&"0".into(), &"the topic is unknown".into()));
    assert_eq!(done(&schema, &["dead"]).lines().count(), 6);
    let id = row["id"].to_string();
    assert!(done(&schema, &["show", &id]).contains("state         dead\n"));
    assert_eq!(done(&schema, &["parked"]).lines().count(), 1);

    let text = done(&schema, &["replay", "--id", &id, "--yes"]);
    assert!(text.ends_with("1 dead row is replayed.\n"), "{text}");
    let text = done(&schema, &["purge", "--older-than", "1h", "--yes"]);
    assert_eq!(text, "0 dead rows older than 1h; nothing is deleted.\n");
    let text = done(&schema, &["purge", "--older-than", "0s", "--yes"]);
    assert!(text.ends_with("4 dead rows are deleted.\n"), "{text}");
    let counts = "SELECT count(*) FROM cqrs_outbox UNION ALL SELECT count(*) FROM cqrs_outbox_dead";
    assert_eq!(schema.numbers(counts).await, [1, 0]);
    schema.drop().await;
}

#[tokio::test]
async fn many_dead_rows_are_replayed_in_batches() {
    let schema = Schema::new().await;
    die(&schema, "orders", 100_000, "the body is too large").await;
    let text = done(&schema, &["replay", "--all", "--yes"]);
    assert!(text.ends_with("100,000 dead rows are replayed.\n"), "{text}");
    let counts = "SELECT count(*) FROM cqrs_outbox \
                  UNION ALL SELECT count(DISTINCT xmin::text) FROM cqrs_outbox";
    assert_eq!(schema.column::<i64>(counts).await, [100_000, 100], "100 transactions");
    schema.drop().await;
}

/// Sends what Ctrl-C sends.
fn interrupt(child: &Child) {
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
}

#[tokio::test]
async fn second_interrupt_rolls_the_batch_back() {
    let schema = Schema::new().await;
    die(&schema, "orders", 3, "the body is too large").await;
    let mut lock = schema.pool.begin().await.unwrap();
    let query = "SELECT id FROM cqrs_outbox_dead FOR UPDATE";
    sqlx::query(query).execute(&mut *lock).await.unwrap();
    let pid: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *lock).await.unwrap();
    let waiting = async || -> Vec<i32> {
        let query = "SELECT pid FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))";
        sqlx::query_scalar(query).bind(pid).fetch_all(&schema.pool).await.unwrap()
    };
    let arguments = ["replay", "--all", "--yes"];
    let mut child = started(&["--schema", &schema.name], &arguments, &servers::postgres());
    let limit = Duration::from_secs(30);
    until_within(limit, "the batch waits for the lock", async || !waiting().await.is_empty()).await;
    let server = waiting().await[0];
    interrupt(&child);
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(errors.next().unwrap().unwrap().starts_with("Stopping after this batch."));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    lock.rollback().await.unwrap();
    let has_ended = async || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1";
        let query = sqlx::query_scalar::<_, i64>(query).bind(server);
        query.fetch_one(&schema.pool).await.unwrap() == 0
    };
    until_within(limit, "the server notices the end", has_ended).await;
    let counts = "SELECT count(*) FROM cqrs_outbox UNION ALL SELECT count(*) FROM cqrs_outbox_dead";
    assert_eq!(schema.column::<i64>(counts).await, [0, 3]);
    schema.drop().await;
}

async fn statement_is_given_up_at_the_timeout<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    let mut locking = schema.pool.acquire().await.unwrap().detach();
    DB::run(&mut locking, DB::LOCK.replace("$1", "cqrs_outbox_dead")).await.unwrap();
    let blocked = DB::BLOCKED.replace("$1", &schema.name);
    let is_any_blocked = async || schema.numbers(&*blocked).await != [0];
    for command in [&["status"][..], &["dead"], &["show", "1"], &["purge", "--older-than", "1h"]] {
        let started = Instant::now();
        let output = run(&schema, &[command, &["--timeout", "500ms"]].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("no answer of the database within 500ms"), "{text}");
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        let limit = Duration::from_secs(30);
        until_within(limit, "the server ends it", async || !is_any_blocked().await).await;
    }
    locking.close().await.unwrap();
    schema.drop().await;
}

/// A pooler refuses the settings of a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooler_that_refuses_settings_is_used_without() {
    let schema = Schema::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let upstream = servers::postgres_options("");
    let upstream = format!("{}:{}", upstream.get_host(), upstream.get_port());
    let refusals = Arc::new(AtomicUsize::new(0));
    let refused = Arc::clone(&refusals);
    let pooler = tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut startup = vec![0; client.read_u32().await.unwrap() as usize - 4];
            client.read_exact(&mut startup).await.unwrap();
            if String::from_utf8_lossy(&startup).contains("statement_timeout") {
                refused.fetch_add(1, Ordering::Relaxed);
                let fields = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0";
                let length = u32::try_from(fields.len() + 4).unwrap();
                let error = [&b"E"[..], &length.to_be_bytes(), fields].concat();
                client.write_all(&error).await.unwrap();
                continue;
            }
            let mut server = TcpStream::connect(&upstream).await.unwrap();
            server.write_u32(u32::try_from(startup.len() + 4).unwrap()).await.unwrap();
            server.write_all(&startup).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    let url = servers::postgres();
    let (login, rest) = url.rsplit_once('@').unwrap();
    let (_, name) = rest.split_once('/').unwrap();
    let url = format!("{login}@{address}/{name}?sslmode=disable");
    let schema_name = schema.name.clone();
    let ran =
        tokio::task::spawn_blocking(move || cqrs(&["--schema", &schema_name], &["status"], &url));
    let output = ran.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(refusals.load(Ordering::Relaxed), 1);
    pooler.abort();
    schema.drop().await;
}

/// The privileges that `docs/reference/cli.md` names are enough, and each of them is needed.
#[tokio::test]
async fn documented_privileges_are_enough() {
    let schema = Schema::new().await;
    die(&schema, "orders", 3, "the body is too large").await;
    let role = format!("{}_role", schema.name);
    let grant = async |privileges: &str| {
        execute(&schema.pool, format!("GRANT {privileges} TO {role}")).await;
    };
    execute(&schema.pool, format!("CREATE ROLE {role}")).await;
    grant(&format!("USAGE ON SCHEMA {}", schema.name)).await;
    let url = servers::postgres();
    let separator = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{separator}options[role]={role}");
    let run = |arguments: &[&str]| cqrs(&["--schema", &schema.name], arguments, &url);
    let works = |arguments: &[&str]| {
        let output = run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let is_denied = |arguments: &[&str]| {
        let output = run(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(text.contains("permission denied"), "{arguments:?}: {text}");
    };
    let dead = format!("{}.cqrs_outbox_dead", schema.name);
    let ids: Vec<i64> = schema.column("SELECT id FROM cqrs_outbox_dead ORDER BY id").await;
    let [first, second] = [ids[0].to_string(), ids[1].to_string()];
    let replay = ["replay", "--id", &first, "--yes"];
    let purge = ["purge", "--older-than", "0s", "--yes"];

    is_denied(&["status"]);
    grant(&format!("SELECT ON ALL TABLES IN SCHEMA {}", schema.name)).await;
    assert!(works(&["status"]).contains("dead     3\n"));
    works(&["dead"]);
    works(&["parked"]);
    works(&["show", &second]);
    is_denied(&purge);
    grant(&format!("DELETE ON {dead}")).await;
    is_denied(&purge);
    grant(&format!("UPDATE ON {dead}")).await;
    is_denied(&replay);
    grant(&format!("INSERT ON {}.cqrs_outbox", schema.name)).await;
    assert!(works(&replay).ends_with("1 dead row is replayed.\n"));
    assert!(works(&purge).ends_with("2 dead rows are deleted.\n"));
    execute(&schema.pool, format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    schema.drop().await;
}

#[tokio::test]
async fn errors_name_the_remedy_and_no_password() {
    let schema = Schema::new().await;
    let output = run(&schema, &["status", "--prefix", "other_"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("cqrs outbox migrate") && text.contains("--schema"), "{text}");

    let url = servers::postgres();
    let (before, host) = url.rsplit_once('@').expect("postgres://USER:PASSWORD@HOST/NAME");
    let (user, _) = before.rsplit_once(':').expect("a password");
    let output = cqrs(&[], &["status"], &format!("{user}:tellnobody@{host}"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(text.contains("password authentication failed"), "{text}");
    assert!(!text.contains("tellnobody"), "{text}");
    schema.drop().await;
}

async fn migrate_creates_the_schema_and_its_tables<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    let other = format!("{}_b", schema.name);
    for _ in 0..2 {
        let output = cqrs(&["--schema", &other], &["migrate"], &DB::url());
        assert!(output.status.success(), "{output:?}");
    }
    let output = cqrs(&["--schema", &other], &["status", "--json"], &DB::url());
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&status["lanes"], &status["dead"]), (&64.into(), &0.into()));
    schema.run(DB::DROP.replace("$1", &other)).await;
    schema.drop().await;
}
