//! Batches: many events in one go, by size or time. One that cannot be handled takes no other with it.
//!
//! ```text
//! cargo run --example batch
//! cargo run --example batch --features kafka,amqp -- --broker kafka    # or amqp
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
#[cqrs(name = "PageViewed", topic = "page_views", key = "visitor")]
struct PageViewed {
    visitor: u32,
    page: String,
}

/// `Ok` acks them all. When it fails, it is tried again as a whole; when it still fails, each event is
/// handled alone: so the function must be fit to see an event again.
async fn insert_rows(
    events: Vec<(NotificationEvent<PageViewed>, Received)>,
) -> Result<(), HandlerError> {
    let rows: Vec<u32> = events.iter().map(|(event, _)| event.payload.visitor).collect();
    if rows.contains(&13) {
        println!("  insert {rows:?}: the database refuses 13");
        return Err(HandlerError::retryable("constraint violated"));
    }
    println!("  insert {rows:?}");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let memory = MemoryBroker::new();
    let broker = broker(&memory).await?;
    let topic = env::var("TOPIC").unwrap_or_else(|_| "page_views".to_owned());
    let subscription = Subscription::to(topic.as_str())
        .group("analytics")
        .json::<PageViewed>()
        .retry(Retry::none()); // no second attempt, here
    // Up to 5 at once, at the latest 200 ms after the first of them came.
    let target = batch(5, Duration::from_millis(200), insert_rows);
    let service = Service::builder(Arc::clone(&broker)).subscribe(subscription, target).build()?;

    println!("17 page views:");
    let (health, stop) = (service.health(), service.stop_handle());
    let running = tokio::spawn(service.run());
    // RabbitMQ's queue must exist before the first event. Kafka creates a topic with it.
    until(10, || health.is_ready()).await;
    let publisher = Mediator::builder().broker(broker).topic::<PageViewed>(topic).build()?;
    for visitor in 1..=17 {
        publisher.emitter().emit(PageViewed { visitor, page: "/home".to_owned() }).await?;
    }
    let counts = || health.subscriptions()[0].counts;
    until(60, || counts().handled + counts().dead_lettered == 17).await;
    // Another broker has them in a topic or queue of this name.
    for message in memory.messages("page_views.analytics.dead") {
        let letter = DeadLetter::from_headers(&message.headers)?;
        println!("dead: {}, because: {}", String::from_utf8_lossy(&message.body), letter.error);
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
