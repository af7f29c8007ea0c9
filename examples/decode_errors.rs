//! What is no event: dead letter, skip, or a value that a function of yours sees. Never a retry.
//!
//! ```text
//! cargo run --example decode_errors
//! cargo run --example decode_errors --features kafka,amqp -- --broker kafka    # or amqp
//! ```

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use cqrs::consume::{DeadLetter, Incoming};
use cqrs::prelude::*;
use cqrs::service::{DecodeError, Undecodable};
use cqrs::{MemoryBroker, Message};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Notification)]
#[cqrs(name = "UserCreated", topic = "user_events")]
struct UserCreated {
    email: String,
}

async fn welcome(event: NotificationEvent<UserCreated>, _: Received) -> Result<(), HandlerError> {
    println!("  welcome, {}!", event.payload.email);
    Ok(())
}

/// Gets what the policy `Handle` hands over, with the error as a value and the raw bytes.
async fn look(case: Undecodable, received: Received) -> Result<(), HandlerError> {
    let bytes = received.bytes().len();
    match case {
        Undecodable::UnknownEvent { name } => {
            println!("  not ours: {name} ({bytes} bytes)");
            Ok(()) // and it is acked
        }
        other => Err(HandlerError::permanent(other.to_string())), // and it is a dead letter
    }
}

/// Runs before decoding: to decrypt, to decompress, or to skip.
async fn unwrap_version(mut message: Incoming) -> Result<Option<Incoming>, DecodeError> {
    let body = message.bytes();
    match body.strip_prefix(b"v1:") {
        Some(body) => message.body = Some(body.to_vec().into()),
        None if body.starts_with(b"v0:") => {
            println!("  skipped by the decoder: too old");
            return Ok(None);
        }
        None => {} // without a version: as it is
    }
    Ok(Some(message))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let memory = MemoryBroker::new();
    let broker = broker(&memory).await?;
    let topic = env::var("TOPIC").unwrap_or_else(|_| "user_events".to_owned());
    let subscription = Subscription::to(topic.as_str())
        .group("mailer")
        .json::<UserCreated>()
        .decoder(unwrap_version)
        .max_body_size(1 << 20)
        .on_decode_error(OnDecodeError::DeadLetter) // the default
        .on_empty(OnDecodeError::Skip) // the default
        .on_unknown_event(OnDecodeError::Handle)
        .undecodable(look);
    let service =
        Service::builder(Arc::clone(&broker)).subscribe(subscription, each(welcome)).build()?;

    println!("six messages:");
    let (health, stop) = (service.health(), service.stop_handle());
    let running = tokio::spawn(service.run());
    // RabbitMQ's queue must exist before the first event. Kafka creates a topic with it.
    until(10, || health.is_ready()).await;
    for body in [
        r#"{"event_name":"UserCreated","payload":{"email":"ada@example.org"}}"#,
        "garbage",
        "",
        r#"{"event_name":"UserMoved","payload":{"city":"Paris"}}"#,
        r#"v1:{"event_name":"UserCreated","payload":{"email":"eve@example.org"}}"#,
        "v0:???",
    ] {
        broker.publish(Message::new(topic.as_str(), body)).await?;
    }
    let counts = || health.subscriptions()[0].counts;
    until(60, || counts().handled + counts().skipped + counts().dead_lettered == 6).await;

    // Another broker has them in a topic or queue of this name.
    for message in memory.messages("user_events.mailer.dead") {
        let (letter, body) = (DeadLetter::from_headers(&message.headers)?, &message.body);
        let body = String::from_utf8_lossy(body);
        println!("dead: {body:?}, because: {} ({})", letter.error, letter.reason);
    }
    stop.stop();
    let counts = running.await??.subscriptions[0].counts;
    println!(
        "stopped: {} handled, {} skipped, {} dead-lettered, {} attempts failed",
        counts.handled, counts.skipped, counts.dead_lettered, counts.failed_attempts
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
