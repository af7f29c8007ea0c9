//! Failures: at once again, later again, then a dead letter that says why. A permanent one is dead at once.
//!
//! ```text
//! cargo run --example retries_and_dead_letters
//! cargo run --example retries_and_dead_letters --features kafka,amqp -- --broker kafka    # or amqp
//! ```

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use cqrs::MemoryBroker;
use cqrs::consume::DeadLetter;
use cqrs::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Notification)]
#[cqrs(name = "UserCreated", topic = "user_events", key = "email")]
struct UserCreated {
    email: String,
}

struct SendWelcomeMail;

impl EventHandler<UserCreated> for SendWelcomeMail {
    async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
        // Travels with the message: a restart goes on counting.
        let attempt = scope.get::<Received>().map_or(0, Received::attempt);
        println!("  attempt {attempt} for {}", event.email);
        match event.email.as_str() {
            "no address" => Err("an address has an @").permanent(), // trying again is of no use
            "busy@example.org" if attempt < 4 => Err(HandlerError::retryable("the server is busy")),
            "gone@example.org" => Err(std::io::Error::other("no such host"))?, // `?` is retryable
            "bug@example.org" => panic!("index out of bounds"), // a failure like others
            _ => Ok(()),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let memory = MemoryBroker::new();
    let broker = broker(&memory).await?;
    let topic = env::var("TOPIC").unwrap_or_else(|_| "user_events".to_owned());
    // The default is 50, 100, 250 ms, then 10 s, 60 s, 5 min. Between the later ones nothing is blocked:
    // RabbitMQ keeps the message in a queue of that delay; on Kafka its key waits, and the others go on.
    let millis = Duration::from_millis;
    let retry = Retry::none().immediate([millis(50)]).delayed([millis(500), millis(1_000)]);
    let events = EventMediator::builder().event::<UserCreated, _>(SendWelcomeMail).build()?;
    let subscription = Subscription::to(topic.as_str())
        .group("mailer")
        .json::<UserCreated>()
        .concurrency(8)
        .retry(retry.clone());
    let service = Service::builder(Arc::clone(&broker)).subscribe(subscription, events).build()?;

    println!("five users, {} attempts at most:", retry.max_attempts());
    std::panic::set_hook(Box::new(|_| {})); // the panic below is meant: its trace would only confuse
    let (health, stop) = (service.health(), service.stop_handle());
    let running = tokio::spawn(service.run());
    // RabbitMQ's queue must exist before the first event. Kafka creates a topic with it.
    until(10, || health.is_ready()).await;
    let publisher = Mediator::builder().broker(broker).topic::<UserCreated>(topic).build()?;
    for email in
        ["ada@example.org", "no address", "busy@example.org", "gone@example.org", "bug@example.org"]
    {
        publisher.emitter().emit(UserCreated { email: email.to_owned() }).await?;
    }
    let counts = || health.subscriptions()[0].counts;
    until(60, || counts().handled + counts().dead_lettered == 5).await;

    println!("dead letters, with the message as it came:");
    // Another broker has them in a topic or queue of this name.
    for message in memory.messages("user_events.mailer.dead") {
        let letter = DeadLetter::from_headers(&message.headers)?;
        println!("  {} after {} attempts: {}", letter.reason, letter.attempts, letter.error);
        println!("    {} bytes of {} for group {}", message.body.len(), letter.topic, letter.group);
    }
    stop.stop();
    let counts = running.await??.subscriptions[0].counts;
    println!(
        "stopped: {} handled, {} dead-lettered, {} attempts failed, {} of them panicked",
        counts.handled, counts.dead_lettered, counts.failed_attempts, counts.panics
    );
    Ok(())
}

/// The broker that `--broker memory`, `kafka` or `amqp` names: the in-memory one without it.
async fn broker(memory: &MemoryBroker) -> Result<Arc<dyn Subscribe>, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let broker: Arc<dyn Subscribe> = match arguments.join(" ").as_str() {
        "" | "--broker memory" => Arc::new(memory.clone()),
        #[cfg(feature = "kafka")]
        "--broker kafka" => {
            use cqrs::kafka::{KafkaConfig, KafkaMessageBroker};
            let servers = env::var("KAFKA_BOOTSTRAP_SERVERS");
            let servers = servers.unwrap_or_else(|_| "localhost:9092".to_owned());
            Arc::new(KafkaMessageBroker::connect(KafkaConfig::new([servers])).await?)
        }
        #[cfg(feature = "amqp")]
        "--broker amqp" => {
            use cqrs::amqp::{AmqpConfig, AmqpMessageBroker};
            let dsn = env::var("AMQP_DSN");
            let dsn = dsn.unwrap_or_else(|_| "amqp://guest:guest@localhost:5672/%2f".to_owned());
            Arc::new(AmqpMessageBroker::connect(AmqpConfig::new(dsn)).await?)
        }
        _ => {
            return Err(
                "usage: [--broker memory | kafka | amqp], with the feature of its name".into()
            );
        }
    };
    Ok(broker)
}

/// Waits for a condition, at most for so many seconds.
async fn until(seconds: u64, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let _in_time = tokio::time::timeout(Duration::from_secs(seconds), waiting).await;
}
