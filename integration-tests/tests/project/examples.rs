//! Tests that run the examples on real brokers and check their output.

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

/// The last line of each example that runs on any broker.
const NEUTRAL: [(&str, &str); 6] = [
    ("manual_ack", "stopped: 3 handled, 1 dead-lettered"),
    ("protobuf", "stopped: 2 handled"),
    ("decode_errors", "stopped: 3 handled, 2 skipped, 1 dead-lettered, 0 attempts failed"),
    ("retries_and_dead_letters", "stopped: 2 handled, 3 dead-lettered, 12 attempts failed"),
    ("batch", "stopped: 16 handled, 1 dead-lettered"),
    ("parallel_with_order", "stopped: 100 handled, 0 given back"),
];

#[test]
fn the_consuming_examples_run_on_kafka() {
    servers::kafka();
    let text = story("consume_kafka", &["--broker", "kafka"]);
    assert!(text.contains("stopped: 3 handled, 0 given back"), "{text}");
    for (example, end) in NEUTRAL {
        let text = story(example, &["--broker", "kafka"]);
        assert!(text.contains("on Apache Kafka") && text.contains(end), "{example}: {text}");
    }
}

#[test]
fn the_consuming_examples_run_on_rabbitmq() {
    integration_tests::amqp::dsn();
    let text = story("consume_rabbitmq", &["--broker", "amqp"]);
    assert!(text.contains("(queue: user.created.") && text.contains("2 handled"), "{text}");
    for (example, end) in NEUTRAL {
        let text = story(example, &["--broker", "amqp"]);
        assert!(text.contains("on RabbitMQ") && text.contains(end), "{example}: {text}");
    }
}

#[test]
fn kafka_producing_names_places_and_errors() {
    servers::kafka();
    let text = story("kafka_producing", &[]);
    assert!(text.contains("1000 more confirmed in order"), "{text}");
    assert!(text.contains("a bad topic name:") && text.contains("0 undelivered"), "{text}");
}

#[test]
fn rabbitmq_producing_names_unroutable_messages() {
    integration_tests::amqp::dsn();
    let text = story("rabbitmq_producing", &[]);
    assert!(text.contains("nobody is bound to invoice.sent:"), "{text}");
    assert!(text.contains("unroutable") && text.contains("0 undelivered"), "{text}");
}
