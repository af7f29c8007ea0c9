//! Tests that run the examples on real brokers and check their output.

use std::process::Command;

use integration_tests::{amqp, kafka, servers};

/// Runs an example that `scripts/test` built with the features `kafka` and `amqp`.
fn output(example: &str, arguments: &[&str], topics: &[(&str, &str)]) -> String {
    let test = std::env::current_exe().expect("this test");
    let target = test.ancestors().nth(2).expect("the target directory");
    let output = Command::new(target.join("examples").join(example))
        .args(arguments)
        .envs(topics.iter().copied())
        .env("KAFKA_BOOTSTRAP_SERVERS", servers::kafka())
        .env("AMQP_DSN", amqp::dsn())
        .output()
        .unwrap_or_else(|error| panic!("{example} is not built ({error}): run `./scripts/test`"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{example} {arguments:?} failed:\n{text}");
    text
}

/// Runs an example on Kafka, with a topic of its own in each of the variables.
async fn on_kafka(example: &str, variables: &[&str]) -> String {
    let topics: Vec<_> = variables.iter().map(|_| kafka::fresh_topic("example")).collect();
    for topic in &topics {
        kafka::create_topic(topic, 3, &[]).await;
    }
    let named = variables.iter().copied().zip(topics.iter().map(String::as_str));
    let text = output(example, &["--broker", "kafka"], &named.collect::<Vec<_>>());
    for topic in &topics {
        kafka::delete_topics(topic).await;
    }
    text
}

/// Runs an example on RabbitMQ, with a topic of its own, and deletes the queue of the group.
async fn on_rabbitmq(example: &str, group: &str) -> String {
    let topic = amqp::fresh("example");
    let text = output(example, &["--broker", "amqp"], &[("TOPIC", &topic)]);
    amqp::Raw::connect().await.clean(&[&format!("{topic}.{group}")], &[]).await;
    text
}

/// The group and the last line of each example that runs on any broker.
const EITHER: [(&str, &str, &str); 7] = [
    ("quickstart", "mailer", "Done: 2 users, 2 mails, 0 messages undelivered."),
    ("manual_ack", "bank", "stopped: 3 handled, 1 dead-lettered"),
    ("protobuf", "greeter", "stopped: 2 handled"),
    ("decode_errors", "mailer", "3 handled, 2 skipped, 1 dead-lettered, 0 attempts failed"),
    ("retries_and_dead_letters", "mailer", "2 handled, 3 dead-lettered, 12 attempts failed"),
    ("batch", "analytics", "stopped: 16 handled, 1 dead-lettered"),
    ("parallel_with_order", "ledger", "stopped: 100 handled, 0 given back"),
];

#[tokio::test]
async fn the_examples_run_on_kafka() {
    let text = on_kafka("consume_kafka", &["USERS_TOPIC", "ORDERS_TOPIC"]).await;
    assert!(text.contains("stopped: 3 handled, 0 given back"), "{text}");
    for (example, _, end) in EITHER {
        let text = on_kafka(example, &["TOPIC"]).await;
        assert!(text.contains(end), "{example}: {text}");
    }
}

#[tokio::test]
async fn orders_run_on_postgres_and_kafka() {
    let topic = kafka::fresh_topic("orders");
    kafka::create_topic(&topic, 3, &[]).await;
    let arguments = ["--database", &servers::postgres(), "--broker", "kafka"];
    let text = output("orders", &arguments, &[("TOPIC", &topic)]);
    assert!(text.contains("-1}: 422 an order has a price"), "{text}");
    assert!(text.contains("2 orders, ada owes 1000, 1 duplicate"), "{text}");
    kafka::delete_topics(&topic).await;
}

#[tokio::test]
async fn the_examples_run_on_rabbitmq() {
    let prefix = amqp::fresh("example") + ".";
    let text = output("consume_rabbitmq", &["--broker", "amqp"], &[("TOPIC_PREFIX", &prefix)]);
    let queue = format!("{prefix}user.created.mailer");
    assert!(text.contains(&format!("(queue: {queue})")) && text.contains("2 handled"), "{text}");
    amqp::Raw::connect().await.clean(&[&queue], &[]).await;
    for (example, group, end) in EITHER {
        let text = on_rabbitmq(example, group).await;
        assert!(text.contains(end), "{example}: {text}");
    }
}

#[test]
fn kafka_producing_names_places_and_errors() {
    let text = output("kafka_producing", &[], &[]);
    assert!(text.contains("1000 more confirmed in order"), "{text}");
    assert!(text.contains("a bad topic name:") && text.contains("0 undelivered"), "{text}");
}

#[test]
fn rabbitmq_producing_names_unroutable_messages() {
    let text = output("rabbitmq_producing", &[], &[]);
    assert!(text.contains("nobody is bound to invoice.sent:"), "{text}");
    assert!(text.contains("unroutable") && text.contains("0 undelivered"), "{text}");
}
