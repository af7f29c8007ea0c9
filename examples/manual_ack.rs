//! Settling by hand: ack, try again later, give back, dead-letter. A delivery that the handler drops is redelivered.
//!
//! ```text
//! cargo run --example manual_ack
//! cargo run --example manual_ack --features kafka,amqp -- --broker kafka    # or amqp
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
#[cqrs(name = "PaymentAsked", topic = "payments", key = "account")]
struct PaymentAsked {
    account: String,
    cents: u64,
}

const LATER: Duration = Duration::from_secs(1);

async fn pay(event: NotificationEvent<PaymentAsked>, delivery: Delivery) {
    let PaymentAsked { account, cents } = &event.payload;
    let attempt = delivery.attempt();
    println!("  {account}, {cents} cents, attempt {attempt}");
    // Settling consumes the delivery: a second `ack` does not compile.
    let settled = match (account.as_str(), attempt) {
        ("ada", _) => {
            println!("    -> ack");
            delivery.ack().await
        }
        ("bob", 1) => {
            println!("    -> again in {LATER:?}: the bank is closed");
            delivery.retry_later(LATER).await
        }
        ("eve", 1) => {
            println!("    -> dropped, which gives it back: it is never lost, never acked");
            return;
        }
        ("joe", _) => {
            println!("    -> dead letter");
            delivery.dead_letter(HandlerError::permanent("no such account")).await
        }
        _ => {
            println!("    -> ack, at last");
            delivery.ack().await
        }
    };
    // The delivery is in the error, to be tried again or dropped.
    if let Err(error) = settled {
        println!("    {error}: it comes again");
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let memory = MemoryBroker::new();
    let broker = broker(&memory).await?;
    let topic = env::var("TOPIC").unwrap_or_else(|_| "payments".to_owned());
    let subscription = Subscription::to(topic.as_str())
        .group("bank")
        .json::<PaymentAsked>()
        .concurrency(4)
        .retry(Retry::none().delayed([LATER])); // on RabbitMQ each delay has its queue
    let service =
        Service::builder(Arc::clone(&broker)).subscribe(subscription, manual(pay)).build()?;

    println!("four payments:");
    let (health, stop) = (service.health(), service.stop_handle());
    let running = tokio::spawn(service.run());
    // RabbitMQ's queue must exist before the first event. Kafka creates a topic with it.
    until(10, || health.is_ready()).await;
    let publisher = Mediator::builder().broker(broker).topic::<PaymentAsked>(topic).build()?;
    for (account, cents) in [("ada", 100), ("bob", 200), ("eve", 300), ("joe", 400)] {
        publisher.emitter().emit(PaymentAsked { account: account.to_owned(), cents }).await?;
    }
    let counts = || health.subscriptions()[0].counts;
    until(60, || counts().handled + counts().dead_lettered == 4).await;
    // Another broker has them in a topic or queue of this name.
    for message in memory.messages("payments.bank.dead") {
        let letter = DeadLetter::from_headers(&message.headers)?;
        println!("dead: {} ({})", letter.error, letter.reason);
    }

    stop.stop();
    let counts = running.await??.subscriptions[0].counts;
    println!("stopped: {} handled, {} dead-lettered", counts.handled, counts.dead_lettered);
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
