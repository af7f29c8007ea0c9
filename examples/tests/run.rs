//! Every example that needs no server is run, and its story checked.

use std::process::Command;

/// Runs an example that `cargo test` built beside this test, and returns what it printed.
fn run(example: &str, arguments: &[&str]) -> (bool, String) {
    let test = std::env::current_exe().expect("this test");
    let target = test.ancestors().nth(2).expect("the target directory");
    let output = Command::new(target.join("examples").join(example))
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{example} is not built ({error}): run `cargo test`"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn story(example: &str) -> String {
    let (succeeded, text) = run(example, &[]);
    assert!(succeeded, "{example} failed:\n{text}");
    text
}

#[test]
fn quickstart_goes_from_a_command_to_a_handled_notification() {
    let text = story("quickstart");
    let order = [
        "handler    creates Ada",
        "a domain event counts: 1 user(s)",
        "answer     user-1",
        "error      an e-mail address has an @",
        r#""event_name":"UserCreated","topic":"user_events""#,
        "writes to ada@example.org",
        "Done: 2 users, 2 mails, 0 messages undelivered.",
    ];
    let mut rest = text.as_str();
    for line in order {
        let at =
            rest.find(line).unwrap_or_else(|| panic!("no {line:?} (in this order) in:\n{text}"));
        rest = &rest[at..];
    }
}

#[test]
fn quickstart_says_how_it_is_used() {
    for (arguments, expected) in [
        (vec!["--broker", "pigeon"], "use memory, kafka or amqp"),
        (vec!["--help"], "usage: [--broker memory|kafka|amqp]"),
    ] {
        let (succeeded, text) = run("quickstart", &arguments);
        assert!(!succeeded && text.contains(expected), "{text}");
    }
}

#[test]
fn domain_events_run_in_rounds_and_fail_by_the_policy() {
    let text = story("domain_events");
    assert!(text.contains("invoice: written for order 1\n  packing: order 1"), "{text}");
    assert!(text.contains("not enough in stock"), "{text}");
    assert!(!text.contains("invoice: written for order 2"), "{text}");
    assert!(text.contains("invoice: written for order 3"), "{text}");
}

#[test]
fn middlewares_look_stop_and_answer() {
    let text = story("middleware");
    assert!(text.contains("a middleware stopped the call: log in first"), "{text}");
    assert!(text.contains("handler: ada asks for account 4"), "{text}");
    assert!(text.contains("70 EUR (cached)") && !text.contains("asks for account 7"), "{text}");
}

#[test]
fn a_unit_of_work_commits_all_or_nothing() {
    let text = story("unit_of_work");
    assert!(text.contains(r#"commit ["account: -500", "audit: 500"]"#), "{text}");
    assert!(text.contains(r#"roll back ["account: -5000", "audit: 5000"]"#), "{text}");
    assert!(text.contains("2 rows are visible, 1 notification is out"), "{text}");
}
