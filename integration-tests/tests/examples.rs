//! The examples that talk to real brokers are run, and their stories checked.

use std::process::Command;

use integration_tests::servers;

/// Runs an example that `scripts/test` built with the features `kafka` and `amqp`.
fn story(example: &str, arguments: &[&str]) -> String {
    let test = std::env::current_exe().expect("this test");
    let target = test.ancestors().nth(2).expect("the target directory");
    let output = Command::new(target.join("examples").join(example))
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{example} is not built ({error}): run `./scripts/test`"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{example} {arguments:?} failed:\n{text}");
    text
}

#[test]
fn quickstart_runs_on_kafka() {
    servers::kafka();
    let text = story("quickstart", &["--broker", "kafka"]);
    assert!(text.contains("Publishing to Apache Kafka."), "{text}");
    assert!(text.contains("Done: 2 users, 2 mails, 0 messages undelivered."), "{text}");
}

#[test]
fn quickstart_runs_on_rabbitmq() {
    integration_tests::amqp::dsn();
    let text = story("quickstart", &["--broker", "amqp"]);
    assert!(text.contains("Publishing to RabbitMQ."), "{text}");
    assert!(text.contains("Done: 2 users, 2 mails, 0 messages undelivered."), "{text}");
}

#[test]
fn kafka_producing_tells_where_records_stand_and_what_is_wrong() {
    servers::kafka();
    let text = story("kafka_producing", &[]);
    assert!(text.contains("1000 more confirmed in order"), "{text}");
    assert!(text.contains("a bad topic name:") && text.contains("0 undelivered"), "{text}");
}

#[test]
fn rabbitmq_producing_tells_what_is_unroutable() {
    integration_tests::amqp::dsn();
    let text = story("rabbitmq_producing", &[]);
    assert!(text.contains("nobody is bound to invoice.sent:"), "{text}");
    assert!(text.contains("unroutable") && text.contains("0 undelivered"), "{text}");
}
