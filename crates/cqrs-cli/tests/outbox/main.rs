//! Tests of `cqrs outbox` as a process, on SQLite files.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod fixture;

use std::io::Read as _;
use std::process::Stdio;
use std::time::Duration;

use cqrs_core::Message;
use serde_json::Value;

use crate::fixture::{Database, Ran, message};

#[tokio::test]
async fn status_counts_rows_as_text_and_json() {
    let database = Database::new().await;
    database.put(&[message("orders", "a"), message("orders", "b")]).await;
    database.park(&[message("orders", "c")], "no leader").await;
    database.kill(&[message("orders", "d")], "too large").await;
    let text = database.run(&["status"]).done();
    assert!(text.starts_with("pending  2, the oldest for "), "{text}");
    assert!(
        text.contains("\nparked   1\ndead     1\nlanes    0 of 1 owned\nrelays   0 alive"),
        "{text}"
    );

    database.sql("INSERT INTO cqrs_outbox_relay VALUES (x'0190a0b1c2d370008000000000000001', unixepoch() * 1000000)").await;
    database
        .sql("INSERT INTO cqrs_outbox_relay VALUES (x'0190a0b1c2d370008000000000000002', 0)")
        .await;
    let json: Value = serde_json::from_str(&database.run(&["status", "--json"]).done()).unwrap();
    assert_eq!(
        (&json["pending"], &json["parked"], &json["dead"]),
        (&2.into(), &1.into(), &1.into())
    );
    assert_eq!((&json["relays_alive"], &json["owned_lanes"]), (&1.into(), &0.into()));
    assert_eq!(json["relays"][1]["is_alive"], false);
    let text = database.run(&["status"]).done();
    assert!(
        text.contains("0190a0b1-c2d3-7000-8000-000000000001") && text.contains("(dead)"),
        "{text}"
    );
}

#[tokio::test]
async fn exceeded_threshold_exits_with_two() {
    let database = Database::new().await;
    database.put(&[message("orders", "a")]).await;
    database.kill_more(1, "too large").await;
    database.sql("UPDATE cqrs_outbox SET created_at = created_at - 90000000").await;
    for fine in [&["--max-oldest", "10m"], &["--max-dead", "1"], &["--max-parked", "0"]] {
        database.run(&[&["status"], &fine[..]].concat()).done();
    }
    let ran = database.run(&["status", "--max-oldest", "60s", "--max-dead", "0"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("longer than --max-oldest 1m"), "{ran:?}");
    assert!(ran.stderr.contains("1 dead rows, more than --max-dead 0"), "{ran:?}");
    assert!(ran.stdout.starts_with("pending  1"), "{ran:?}");
    // A mistake in the command line is no exceeded threshold.
    let ran = database.run(&["status", "--max-oldest", "60"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("a number without a unit"), "{ran:?}");
}

#[tokio::test]
async fn watch_refreshes_until_interrupted() {
    let database = Database::new().await;
    database.put(&[message("orders", "a")]).await;
    let mut child = database
        .command(&["status", "--watch", "--interval", "10ms", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = fixture::lines(child.stdout.take().unwrap());
    let pending = |line: String| serde_json::from_str::<Value>(&line).unwrap()["pending"].clone();
    assert_eq!(pending(lines.next().unwrap().unwrap()), 1);
    database.sql("DELETE FROM cqrs_outbox").await;
    // Refreshes before the deletion may be in the pipe.
    while pending(lines.next().unwrap().unwrap()) != 0 {}
    fixture::interrupt(&child);
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let database = Database::new().await;
    database
        .kill(&[message("orders", "order-1").with_name("OrderPlaced")], "too large\u{1b}[2J")
        .await;
    database.kill(&[Message::new("users", "{}").with_key(vec![0xff, 0])], "unknown topic").await;
    database.park(&[message("orders", "order-2")], "no leader").await;
    let text = database.run(&["dead"]).done();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("ID  TOPIC") && lines[0].contains("DIED AT"), "{text}");
    assert!(lines[1].starts_with("1   orders  order-1  OrderPlaced"), "{text}");
    assert!(lines[1].ends_with("too large\\u{1b}[2J"), "{text}");
    assert!(lines[2].contains("0xff00"), "{text}");

    let ids = |arguments: &[&str]| database.run(arguments).ids();
    assert_eq!(ids(&["dead", "--json"]), [1, 2]);
    assert_eq!(ids(&["dead", "--json", "--topic", "users"]), [2]);
    assert_eq!(ids(&["dead", "--json", "--name", "OrderPlaced"]), [1]);
    assert_eq!(ids(&["dead", "--json", "--error", "large"]), [1]);
    assert_eq!(ids(&["dead", "--json", "--after", "1"]), [2]);
    assert_eq!(ids(&["parked", "--json"]), [3]);
    let limited = database.run(&["dead", "--json", "--limit", "1"]);
    assert!(limited.stderr.contains("--after 1"), "{limited:?}");
    assert_eq!(limited.ids(), [1]);
    let parked: Value = serde_json::from_str(&database.run(&["parked", "--json"]).done()).unwrap();
    assert_eq!((&parked["key"], &parked["last_error"]), (&"order-2".into(), &"no leader".into()));
    assert!(parked["next_attempt"].is_string() && parked["event_id"].is_string(), "{parked}");
}

#[tokio::test]
async fn lists_go_beyond_one_page() {
    let database = Database::new().await;
    database.kill_more(250, "too large").await;
    let text = database.run(&["dead", "--limit", "230"]).done();
    assert_eq!(text.lines().count(), 231, "with one heading");
    assert_eq!(database.run(&["dead", "--json", "--limit", "1000"]).ids().len(), 250);
}

#[tokio::test]
async fn closed_output_is_no_error() {
    let database = Database::new().await;
    database.kill_more(2_000, "too large").await;
    let mut child = database
        .command(&["dead", "--limit", "2000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!((child.wait().unwrap().code(), &*errors), (Some(0), ""));
}

/// Runs it with a standard output that nobody reads. Its code and its errors.
fn run_closed(database: &Database, arguments: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = database.command(arguments);
    let child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let ended = child.wait_with_output().unwrap();
    (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
}

#[tokio::test]
async fn closed_output_does_not_stop_a_change() {
    let database = Database::new().await;
    database.kill_more(3, "too large").await;
    let done = (Some(0), String::new());
    assert_eq!(run_closed(&database, &["replay", "--id", "1", "--yes"]), done);
    assert_eq!(database.keys("outbox").await, ["0"]);
    assert_eq!(run_closed(&database, &["purge", "--older-than", "0s", "--yes"]), done);
    assert_eq!(database.count("outbox_dead").await, 0);
}

#[tokio::test]
async fn closed_output_does_not_hide_an_exceeded_threshold() {
    let database = Database::new().await;
    database.kill_more(1, "too large").await;
    let (code, errors) = run_closed(&database, &["status", "--max-dead", "0"]);
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("more than --max-dead 0"), "{errors}");
    assert_eq!(run_closed(&database, &["status", "--max-dead", "1"]), (Some(0), String::new()));
}

#[tokio::test]
async fn show_hides_the_body_until_asked() {
    let database = Database::new().await;
    let mut secret = message("orders", "order-1");
    secret.body = "{\"card\":\"4111\"}".into();
    secret.headers.insert("traceparent", "00-x").unwrap();
    secret.headers.insert_bytes("raw", vec![0, 0xff]).unwrap();
    database.kill(&[secret], "too large").await;
    database.park(&[message("orders", "order-2")], "no leader").await;
    let text = database.run(&["show", "1"]).done();
    assert!(
        text.contains("state         dead\n") && text.contains("body          15 bytes"),
        "{text}"
    );
    assert!(text.contains("traceparent: 00-x") && text.contains("raw: 0x00ff"), "{text}");
    assert!(!text.contains("4111"), "{text}");
    assert!(database.run(&["show", "1", "--body"]).done().contains("{\"card\":\"4111\"}"));
    let json: Value = serde_json::from_str(&database.run(&["show", "1", "--json"]).done()).unwrap();
    assert_eq!((&json["body_size"], &json["body"]), (&15.into(), &Value::Null));
    assert_eq!(json["headers"]["raw"]["hex"], "00ff");
    let json = database.run(&["show", "1", "--json", "--body"]).done();
    assert!(json.contains("4111"), "{json}");
    assert!(database.run(&["show", "2"]).done().contains("state         parked\n"));
    let missing = database.run(&["show", "3"]).failed();
    assert!(missing.contains("no dead or parked row has the id 3"), "{missing}");
}

#[tokio::test]
async fn rows_that_are_unreadable_or_share_an_id_are_shown() {
    let database = Database::new().await;
    database.kill_more(3, "the row cannot be read").await;
    database.sql("UPDATE cqrs_outbox_dead SET id = 1, headers = '[1]' WHERE id = 2").await;
    let limited = database.run(&["dead", "--json", "--limit", "1"]);
    assert!(limited.stderr.contains("--after 1"), "{limited:?}");
    assert_eq!(limited.ids(), [1, 1]);
    assert_eq!(database.run(&["dead", "--json", "--after", "1"]).ids(), [3]);
    let text = database.run(&["show", "1", "--body"]).done();
    assert_eq!(text.matches("state         dead\n").count(), 2, "{text}");
    assert_eq!(text.matches("unreadable    ").count(), 1, "{text}");
    assert_eq!(text.matches("\n{}\n").count(), 2, "{text}");
}

#[tokio::test]
async fn replay_moves_the_chosen_rows_back() {
    let database = Database::new().await;
    database.kill(&[message("orders", "a"), message("orders", "b")], "too large").await;
    database.kill(&[message("users", "c"), message("users", "d")], "unknown topic").await;
    let text = database.run(&["replay", "--id", "1", "3", "--yes"]).done();
    assert!(text.ends_with("2 dead rows are replayed.\n"), "{text}");
    assert_eq!(database.keys("outbox").await, ["a", "c"]);
    let text = database.run(&["replay", "--all", "--topic", "users", "--yes"]).done();
    assert!(text.ends_with("1 dead row is replayed.\n"), "{text}");
    assert_eq!(database.keys("outbox").await, ["a", "c", "d"]);
    assert_eq!(database.keys("outbox_dead").await, ["b"]);
    let text = database.run(&["replay", "--all", "--error", "no such error", "--yes"]).done();
    assert_eq!(text, "0 dead rows; nothing is replayed.\n");
    let wrong = database.run(&["replay", "--yes"]).failed();
    assert!(wrong.contains("--id"), "{wrong}");
}

#[tokio::test]
async fn replay_names_the_ids_that_are_not_dead() {
    let database = Database::new().await;
    database.kill(&[message("orders", "a"), message("orders", "b")], "too large").await;
    let missing = "no dead row has these ids and meets the other options: 42, 99";
    for arguments in [&["--yes"][..], &["--dry-run"], &[]] {
        let ran = database.run(&[&["replay", "--id", "99", "42", "42"], arguments].concat());
        assert!(ran.code == 1 && ran.stderr.contains(missing), "{ran:?}");
    }
    // Those that are dead are replayed.
    let ran = database.run(&["replay", "--id", "99", "42", "2", "--yes"]);
    assert!(ran.code == 1 && ran.stderr.contains(missing), "{ran:?}");
    assert!(ran.stdout.ends_with("1 dead row is replayed.\n"), "{ran:?}");
    assert_eq!(database.keys("outbox").await, ["b"]);
    let ran = database.run(&["replay", "--id", "1", "--topic", "users", "--yes"]);
    assert!(ran.code == 1 && ran.stderr.contains("meets the other options: 1"), "{ran:?}");
    assert_eq!(database.keys("outbox_dead").await, ["a"]);
}

#[tokio::test]
async fn changes_need_consent() {
    let database = Database::new().await;
    database.kill_more(3, "too large").await;
    for command in [&["replay", "--all"][..], &["purge", "--older-than", "0s"]] {
        let refused = database.run(command).failed();
        assert!(refused.contains("3 dead rows") && refused.contains("add --yes"), "{refused}");
        let dry = database.run(&[command, &["--dry-run"]].concat()).done();
        assert!(dry.starts_with("3 dead rows") && dry.contains("nothing is"), "{dry}");
    }
    assert_eq!(database.keys("outbox_dead").await.len(), 3);
}

#[tokio::test]
async fn purge_deletes_rows_that_died_long_ago() {
    let database = Database::new().await;
    database.kill_more(2_500, "too large").await;
    database
        .sql("UPDATE cqrs_outbox_dead SET died_at = died_at - 2678400000000 WHERE id > 3")
        .await;
    let text = database.run(&["purge", "--older-than", "30d", "--yes"]).done();
    assert!(text.ends_with("2,497 dead rows are deleted.\n"), "{text}");
    assert_eq!(database.keys("outbox_dead").await.len(), 3);
}

/// 100 MB of dead rows, in memory for less than half of that.
#[tokio::test]
async fn replay_of_many_rows_needs_little_memory() {
    let database = Database::new().await;
    database.kill_more(100_000, "too large").await;
    database.sql("UPDATE cqrs_outbox_dead SET body = randomblob(1000)").await;
    let (ran, peak) = database.run_measured(&["replay", "--all", "--yes"]);
    assert!(ran.done().ends_with("100,000 dead rows are replayed.\n"));
    assert_eq!(database.count("outbox").await, 100_000);
    assert_eq!(database.count("outbox_dead").await, 0);
    assert!(peak < 50_000, "{peak} KiB");
}

#[tokio::test]
async fn interrupt_ends_between_batches() {
    let database = Database::new().await;
    database.kill_more(3_500, "too large").await;
    // The first batch waits for the lock.
    let lock = database.outbox.pool().begin_with("BEGIN IMMEDIATE").await.unwrap();
    let mut child = database
        .command(&["replay", "--all", "--yes"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = fixture::lines(child.stdout.take().unwrap());
    assert_eq!(lines.next().unwrap().unwrap(), "Replaying 3,500 dead rows.");
    fixture::interrupt(&child);
    let mut errors = fixture::lines(child.stderr.take().unwrap());
    let stopping = errors.next().unwrap().unwrap();
    assert!(stopping.starts_with("Stopping after this batch."), "{stopping}");
    lock.rollback().await.unwrap();
    let stopped = errors.next().unwrap().unwrap();
    assert!(stopped.starts_with("Stopped. 1,000 of 3,500 dead rows are replayed."), "{stopped}");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(database.count("outbox").await, 1_000);
    assert_eq!(database.count("outbox_dead").await, 2_500);
}

/// Starts a change that waits for the lock, runs `meanwhile` in the lock's transaction, and lets the change end.
async fn change_beside(
    database: &Database,
    arguments: &[&str],
    first: &str,
    meanwhile: &'static str,
) {
    let mut lock = database.outbox.pool().begin_with("BEGIN IMMEDIATE").await.unwrap();
    let mut child = database.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = fixture::lines(child.stdout.take().unwrap());
    assert_eq!(lines.next().unwrap().unwrap(), first);
    sqlx::raw_sql(meanwhile).execute(&mut *lock).await.unwrap();
    lock.commit().await.unwrap();
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn rows_old_enough_after_the_count_stay() {
    let database = Database::new().await;
    database.kill_more(3, "too large").await;
    database.sql("UPDATE cqrs_outbox_dead SET died_at = 0 WHERE id = 3").await;
    let arguments = ["purge", "--older-than", "1h", "--yes"];
    let becomes_old = "UPDATE cqrs_outbox_dead SET died_at = \
                       CAST(unixepoch('subsec') * 1000000 AS INTEGER) - 3600000000 WHERE id = 1";
    change_beside(&database, &arguments, "Deleting 1 dead row.", becomes_old).await;
    assert_eq!(database.keys("outbox_dead").await, ["0", "1"]);
}

#[tokio::test]
async fn rows_that_die_after_the_count_stay() {
    let database = Database::new().await;
    database.kill_more(3, "too large").await;
    let dies = "UPDATE cqrs_outbox_dead SET died_at = died_at + 60000000 WHERE id = 1";
    change_beside(&database, &["replay", "--all", "--yes"], "Replaying 3 dead rows.", dies).await;
    assert_eq!(database.keys("outbox_dead").await, ["0"]);
    assert_eq!(database.keys("outbox").await, ["1", "2"]);
}

#[tokio::test]
async fn change_gives_up_at_the_timeout() {
    let database = Database::new().await;
    database.kill_more(3, "too large").await;
    let lock = database.outbox.pool().begin_with("BEGIN IMMEDIATE").await.unwrap();
    let ran = database.run(&["replay", "--all", "--yes", "--timeout", "300ms"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("0 of 3 dead rows are replayed."), "{ran:?}");
    lock.rollback().await.unwrap();
    assert_eq!(database.count("outbox_dead").await, 3);
    database.run(&["status", "--timeout", "1000d"]).done();
    let zero = database.run(&["status", "--timeout", "0s"]).failed();
    assert!(zero.contains("must be above 0"), "{zero}");
}

#[tokio::test]
async fn missing_tables_and_file_name_the_remedy() {
    let database = Database::new().await;
    let text = database.run(&["status", "--prefix", "other_"]).failed();
    for part in ["a table is missing", "cqrs outbox migrate", "--schema", "--prefix"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let schema = database.run(&["status", "--schema", "orders"]).failed();
    assert!(schema.contains("SQLite has no schemas"), "{schema}");
    let missing = std::env::temp_dir().join("cqrs-cli-not-there.db");
    let url = format!("sqlite:{}", missing.display());
    let text = database.run(&["status", "--database", &url]).failed();
    assert!(text.contains("cqrs outbox migrate"), "{text}");
    assert!(!missing.exists());
}

#[tokio::test]
async fn migrate_creates_the_file_and_the_tables() {
    let database = Database::empty();
    for _ in 0..2 {
        let text = database.run(&["migrate", "--prefix", "events_"]).done();
        assert_eq!(text, "The tables are there, in this version.\n");
    }
    let text = database.run(&["status", "--prefix", "events_"]).done();
    assert!(text.starts_with("pending  0\n"), "{text}");
}

#[test]
fn sql_prints_the_migrations_without_a_database() {
    let sql = |arguments: &[&str]| Ran::of(fixture::cqrs(arguments)).done();
    let postgres = sql(&["sql", "postgres", "--schema", "orders"]);
    assert!(postgres.contains("CREATE TABLE \"orders\".cqrs_outbox ("), "{postgres}");
    let mysql = sql(&["sql", "mysql", "--schema", "orders"]);
    assert!(mysql.contains("CREATE TABLE IF NOT EXISTS `orders`.cqrs_outbox ("), "{mysql}");
    assert!(sql(&["sql", "sqlite"]).contains("CREATE TABLE cqrs_outbox_dead ("));
}

#[test]
fn no_output_shows_the_password() {
    const PASSWORD: &str = "tellnobody";
    let urls = [
        "postgres://ada:tellnobody@127.0.0.1:1/shop",
        "postgres://ada:tellnobody@127.0.0.1:1/shop?sslmode=maybe",
        "postgres://ada:tell#nobody@127.0.0.1:1/shop",
        "postgres://ada:tellnobody/@127.0.0.1:1/shop",
        "mysql://ada:tellnobody@127.0.0.1:1/shop",
        "mysql://ada:tell#nobody@127.0.0.1:1/shop",
        "mysql://ada:tellnobody@127.0.0.1:1/shop?ssl-mode=maybe",
        "oracle://ada:tellnobody@127.0.0.1:1/shop",
        "sqlite://tellnobody?mode=maybe",
        "tellnobody",
    ];
    for url in urls {
        let mut by_argument = fixture::cqrs(&["status", "--database", url]);
        let mut by_variable = fixture::cqrs(&["status"]);
        by_variable.env("DATABASE_URL", url);
        let mut wrong = fixture::cqrs(&["status", "--no-such-option", "--database", url]);
        for command in [&mut by_argument, &mut by_variable, &mut wrong] {
            let ran = Ran::of_ref(command);
            assert_eq!(ran.code, 1, "{ran:?}");
            assert!(!ran.all().contains(PASSWORD) && !ran.all().contains("nobody@"), "{ran:?}");
        }
    }
    // An option is forgotten or misspelled.
    let url = urls[0];
    let assigned = format!("--databse={url}");
    for arguments in [
        &["status", url][..],
        &[url],
        &["status", &assigned],
        &["status", "--max-dead", url],
        &["replay", "--id", url],
        &["sql", url],
        &["status", "--databse", url],
        &["status", "ada:tellnobody@127.0.0.1/shop"],
    ] {
        let ran = Ran::of(fixture::cqrs(arguments));
        assert!(ran.code == 1 && ran.stderr.contains("--help"), "{ran:?}");
        assert!(ran.stderr.starts_with("error: "), "{ran:?}");
        assert!(!ran.all().contains(PASSWORD), "{ran:?}");
    }
    // Others are told what is wrong.
    let ran = Ran::of(fixture::cqrs(&["status", "--max-ded", "1"]));
    assert!(ran.code == 1 && ran.stderr.contains("--max-ded"), "{ran:?}");
    let mut help = fixture::cqrs(&["status", "--help"]);
    let help = Ran::of_ref(help.env("DATABASE_URL", urls[0]));
    assert!(help.code == 0 && help.stdout.contains("DATABASE_URL"), "{help:?}");
    assert!(!help.stdout.contains(PASSWORD), "{help:?}");
    let none = Ran::of(fixture::cqrs(&["status"])).failed();
    assert!(none.contains("set DATABASE_URL"), "{none}");
}

#[test]
fn refused_connection_is_told_at_once() {
    let started = std::time::Instant::now();
    let url = "postgres://ada:x@127.0.0.1:1/shop";
    let text = Ran::of(fixture::cqrs(&["status", "--database", url])).failed();
    assert!(text.contains("connecting to the database") && text.contains("refused"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}
