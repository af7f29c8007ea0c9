//! Tests that run the last program of the tutorial on real brokers: a consumer and a producer.

use std::io::{BufRead as _, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use integration_tests::{amqp, kafka, servers};

/// The program, which `scripts/test` built with the features `kafka` and `amqp`.
fn program() -> PathBuf {
    let test = std::env::current_exe().expect("this test");
    let target = test.ancestors().nth(2).expect("the target directory");
    target.join("examples/tutorial_6")
}

/// Runs both roles on a broker. The variable says where it is.
fn place_and_ship(broker: &str, topic: &str, (variable, address): (&str, String)) {
    let command = |role: &str| {
        let mut command = Command::new(program());
        command.arg(role).env("BROKER", broker).env("ORDERS_TOPIC", topic).env(variable, &address);
        command
    };
    let mut shipping = Shipping::start(command("ship"));
    shipping.wait_for("ready");
    let ordered = command("order").output().expect("it is built: run `scripts/test`");
    let printed = String::from_utf8_lossy(&ordered.stdout).into_owned();
    let logged = String::from_utf8_lossy(&ordered.stderr);
    assert!(ordered.status.success(), "{printed}{logged}");
    // Log lines are between them.
    for line in ["placed: order 1\n", "placed: order 3\n", "\n0 events undelivered"] {
        assert!(printed.contains(line), "no {line:?} in {printed}");
    }
    for order in 1..=3 {
        shipping.wait_for(&format!("shipped: order {order} to "));
    }
    let id = shipping.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill runs").success());
    shipping.wait_for("stopped: 3 shipped");
    assert!(shipping.child.wait().expect("it ends").success());
}

/// The running consumer; killed when the test fails.
struct Shipping {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    printed: Vec<String>,
}

impl Shipping {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it is built");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        Self { child, lines, printed: Vec::new() }
    }

    fn wait_for(&mut self, text: &str) {
        while !self.printed.iter().any(|line| line.contains(text)) {
            let line = self.lines.next();
            let line =
                line.unwrap_or_else(|| panic!("it ended without {text:?}: {:#?}", self.printed));
            self.printed.push(line.expect("text"));
        }
    }
}

impl Drop for Shipping {
    fn drop(&mut self) {
        let _ended = self.child.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn last_step_of_the_tutorial_runs_on_kafka() {
    let topic = kafka::fresh_topic("tutorial");
    kafka::create_topic(&topic, 4, &[]).await; // without it the consumer waits for the topic
    place_and_ship("kafka", &topic, ("KAFKA_BOOTSTRAP_SERVERS", servers::kafka()));
    kafka::delete_topics(&topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn last_step_of_the_tutorial_runs_on_rabbitmq() {
    let topic = amqp::fresh("tutorial");
    place_and_ship("amqp", &topic, ("AMQP_DSN", amqp::dsn()));
    let queue = format!("{topic}.shipping");
    let retries = ["10s", "60s", "300s"].map(|delay| format!("{queue}.retry.{delay}"));
    let dead = format!("{queue}.dead");
    let queues: Vec<_> = [&queue, &dead].into_iter().chain(&retries).map(String::as_str).collect();
    amqp::Raw::connect().await.clean(&queues, &[]).await;
}
