//! Tests of the program `cqrs outbox` on PostgreSQL.

use std::process::{Command, Output};

use integration_tests::servers;
use serde_json::Value;

use super::operations::die;
use super::*;

/// Runs the program, which `scripts/test` built, on the tables of a schema.
fn run(schema: &Schema, arguments: &[&str]) -> Output {
    cqrs(&["--schema", &schema.name], arguments, &servers::postgres())
}

fn cqrs(before: &[&str], arguments: &[&str], url: &str) -> Output {
    let test = std::env::current_exe().expect("this test");
    let program = test.ancestors().nth(2).expect("the target directory").join("cqrs");
    let mut command = Command::new(&program);
    command.arg("outbox").args(before).args(arguments).env("DATABASE_URL", url);
    command.output().unwrap_or_else(|error| {
        panic!("{} is not built ({error}): run `./scripts/test`", program.display())
    })
}

/// The output of a run that succeeds.
fn done(schema: &Schema, arguments: &[&str]) -> String {
    let output = run(schema, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn dead_rows_are_listed_replayed_and_purged() {
    let schema = Schema::new().await;
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
    assert_eq!(schema.column::<i64>(counts).await, [1, 0]);
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

#[tokio::test]
async fn migrate_creates_the_schema_and_its_tables() {
    let schema = Schema::new().await;
    let other = format!("{}_b", schema.name);
    for _ in 0..2 {
        let output = cqrs(&["--schema", &other], &["migrate"], &servers::postgres());
        assert!(output.status.success(), "{output:?}");
    }
    let output = cqrs(&["--schema", &other], &["status", "--json"], &servers::postgres());
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&status["lanes"], &status["dead"]), (&64.into(), &0.into()));
    execute(&schema.pool, format!("DROP SCHEMA {other} CASCADE")).await;
    schema.drop().await;
}
