//! Tests that run every example without a server and check its output.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// An example that `cargo test` built beside this test.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("this test");
    let target = test.ancestors().nth(2).expect("the target directory");
    Command::new(target.join("examples").join(name))
}

/// Runs an example and returns what it printed.
fn run(name: &str, arguments: &[&str]) -> (bool, String) {
    let output = example(name)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{name} is not built ({error}): run `cargo test`"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn output(example: &str) -> String {
    let (succeeded, text) = run(example, &[]);
    assert!(succeeded, "{example} failed:\n{text}");
    text
}

/// Checks that the lines are in the text in this order.
fn assert_lines(text: &str, lines: &[&str]) {
    let mut rest = text;
    for line in lines {
        let at =
            rest.find(line).unwrap_or_else(|| panic!("no {line:?} (in this order) in:\n{text}"));
        rest = &rest[at..];
    }
}

#[test]
fn quickstart_handles_its_own_notification() {
    let text = output("quickstart");
    // Two services run: each line of one comes in its order, but not those of both.
    let signing_up = [
        "handler    creates Ada",
        "a domain event counts: 1 user(s)",
        "answer     user-1",
        "error      an e-mail address has an @",
        "answer     user-2",
        "Done: 2 users, 2 mails, 0 messages undelivered.",
    ];
    let mailing = [
        r#""event_name":"UserCreated","topic":"user_events""#,
        "writes to ada@example.org",
        "writes to eve@example.org",
        "Done: 2 users, 2 mails, 0 messages undelivered.",
    ];
    assert_lines(&text, &signing_up);
    assert_lines(&text, &mailing);
}

#[test]
fn quickstart_says_how_it_is_used() {
    for arguments in [&["--broker", "pigeon"][..], &["--help"]] {
        let (succeeded, text) = run("quickstart", arguments);
        assert!(!succeeded && text.contains("usage: [--broker memory | kafka | amqp]"), "{text}");
    }
}

#[test]
fn domain_events_run_in_rounds_and_fail_by_the_policy() {
    let text = output("domain_events");
    assert!(text.contains("invoice: written for order 1\n  packing: order 1"), "{text}");
    assert!(text.contains("not enough in stock"), "{text}");
    assert!(!text.contains("invoice: written for order 2"), "{text}");
    assert!(text.contains("invoice: written for order 3"), "{text}");
}

#[test]
fn middlewares_observe_stop_and_answer() {
    let text = output("middleware");
    assert!(text.contains("a middleware stopped the call: log in first"), "{text}");
    assert!(text.contains("handler: ada asks for account 4"), "{text}");
    assert!(text.contains("70 EUR (cached)") && !text.contains("asks for account 7"), "{text}");
}

#[test]
fn a_unit_of_work_commits_all_or_nothing() {
    let text = output("unit_of_work");
    assert!(text.contains(r#"commit ["account: -500", "audit: 500"]"#), "{text}");
    assert!(text.contains(r#"roll back ["account: -5000", "audit: 5000"]"#), "{text}");
    assert!(text.contains("2 rows are visible, 1 notification is out"), "{text}");
}

#[test]
fn orders_are_stored_published_and_counted_once() {
    let text = output("orders");
    let lines = [
        r#"{"customer":"ada","cents":700}: 201 placed"#,
        r#"{"customer":"eve","cents":-1}: 422 an order has a price"#,
        "the first event arrives again",
        "2 orders, ada owes 1000, 1 duplicate",
    ];
    assert_lines(&text, &lines);
}

#[test]
fn consume_kafka_reads_several_topics_from_earliest() {
    let lines = ["ada@example.org has signed up", "ordered for 799 cents", "stopped: 3 handled"];
    assert_lines(&output("consume_kafka"), &lines);
}

#[test]
fn consume_rabbitmq_reads_two_routing_keys() {
    let lines =
        ["beside the queue user.created.mailer", "welcome, ada", "farewell", "stopped: 2 handled"];
    assert_lines(&output("consume_rabbitmq"), &lines);
}

#[test]
fn manual_ack_settles_in_every_way() {
    let text = output("manual_ack");
    for lines in [
        ["bob, 200 cents, attempt 1", "-> again in 1s", "bob, 200 cents, attempt 2"],
        ["eve, 300 cents, attempt 1", "-> dropped", "eve, 300 cents, attempt 2"],
        ["-> dead letter", "dead: no such account", "stopped: 3 handled, 1 dead-lettered"],
    ] {
        assert_lines(&text, &lines);
    }
}

#[test]
fn protobuf_and_json_share_a_topic() {
    let text = output("protobuf");
    assert_lines(
        &text,
        &[
            "ada joined standup (",
            "bytes, application/x-protobuf)",
            "eve joined standup",
            "stopped: 2 handled",
        ],
    );
}

#[test]
fn decode_errors_are_skipped_handed_or_dead_lettered() {
    let text = output("decode_errors");
    assert_lines(&text, &["not ours: UserMoved", "welcome, eve"]);
    assert_lines(
        &text,
        &[r#"dead: "garbage""#, "3 handled, 2 skipped, 1 dead-lettered, 0 attempts failed"],
    );
}

#[test]
fn retries_succeed_or_become_dead_letters() {
    let text = output("retries_and_dead_letters");
    for line in [
        "attempt 4 for busy@example.org",
        "permanent after 1 attempts",
        "exhausted after 4 attempts",
        "panic after 4 attempts",
        "2 handled, 3 dead-lettered, 12 attempts failed, 4 of them panicked",
    ] {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
}

#[test]
fn batch_isolates_its_poison_message() {
    let text = output("batch");
    assert_lines(
        &text,
        &["insert [13]: the database refuses 13", r#"dead: {"payload":{"visitor":13"#],
    );
    assert!(text.contains("stopped: 16 handled, 1 dead-lettered"), "{text}");
}

#[test]
fn parallel_handlers_keep_the_order_of_each_key() {
    let lines = ["at once", "came in their order", "stopped: 100 handled"];
    assert_lines(&output("parallel_with_order"), &lines);
}

/// Sends a request to the server at `address` and returns the response.
fn http(address: &str, request: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    let length = body.len();
    let headers = format!("host: {address}\r\nconnection: close\r\ncontent-length: {length}");
    let json = "content-type: application/json";
    write!(stream, "{request} HTTP/1.1\r\n{headers}\r\n{json}\r\n\r\n{body}").expect("sent");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("a response");
    response
}

/// A process that a failed test ends, too.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
    }
}

#[cfg(unix)]
#[test]
fn http_and_consumer_stop_cleanly() {
    let mut command = example("http_and_consumer");
    command.env("ADDRESS", "127.0.0.1:0").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process(command.spawn().expect("it is built"));
    let mut output = BufReader::new(process.0.stdout.take().expect("its output")).lines();
    let mut line = || output.next().expect("a line").expect("UTF-8");
    let first = line();
    let address = first.strip_prefix("listening on ").expect("the address first");

    for (body, status) in [
        (r#"{"name":"Ada","email":"ada@example.org"}"#, "201"),
        (r#"{"name":"Bob","email":"nowhere"}"#, "422"),
        (r#"{"name":"Eve","email":"ada@example.org"}"#, "409"),
    ] {
        let response = http(address, "POST /users", body);
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{body}: {response}");
    }
    assert_eq!(line(), "mail to ada@example.org: welcome!");
    for route in ["GET /health/live", "GET /health/ready"] {
        assert!(http(address, route, "").starts_with("HTTP/1.1 200 "), "{route}");
    }

    let signal = Command::new("kill").arg(process.0.id().to_string()).status();
    assert!(signal.expect("kill").success());
    assert_eq!(line(), "stopped: 1 handled");
    assert!(process.0.wait().expect("its end").success());
    let mut rest = String::new();
    let errors = process.0.stderr.as_mut().expect("its errors");
    errors.read_to_string(&mut rest).expect("UTF-8");
    assert_eq!(rest, "", "the stop is clean");
}

#[test]
fn testing_a_service_explains_a_missing_event() {
    let lines = [
        "handled: a user in, a mail out",
        "retried after [10s, 60s, 300s], in no time: 370 s on the clock",
        "with a lost ack: 2 mails to eve",
        "no WelcomeSent was handled within 100ms; recorded so far:",
        "stopped: 3 handled",
    ];
    assert_lines(&output("testing_a_service"), &lines);
}
