//! Consuming from Kafka: a group, where it begins, several topics, and what only Kafka knows.
//!
//! ```text
//! cargo run --example consume_kafka
//! cargo run --example consume_kafka --features kafka -- --broker kafka
//! ```

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use cqrs::prelude::*;
use cqrs::{MemoryBroker, StartAt};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Notification)]
#[cqrs(name = "UserCreated", topic = "user_events", key = "user_id")]
struct UserCreated {
    user_id: String,
    email: String,
}

#[derive(Serialize, Deserialize, Notification)]
#[cqrs(name = "OrderPlaced", topic = "order_events", key = "user_id")]
struct OrderPlaced {
    user_id: String,
    cents: u64,
}

struct Statistics;

impl EventHandler<UserCreated> for Statistics {
    async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
        println!("  {} has signed up{}", event.email, place(scope));
        Ok(())
    }
}

impl EventHandler<OrderPlaced> for Statistics {
    async fn handle(&self, event: &OrderPlaced, scope: &mut Scope) -> Result<(), HandlerError> {
        println!("  {} has ordered for {} cents{}", event.user_id, event.cents, place(scope));
        Ok(())
    }
}

/// Where the message stood.
fn place(scope: &Scope) -> String {
    let Some(received) = scope.get::<Received>() else { return String::new() };
    let (partition, offset) = (received.partition.unwrap_or(0), received.offset.unwrap_or(-1));
    format!(" (partition {partition}, offset {offset})")
}

/// Options have types of their own: other brokers leave them alone.
#[cfg(feature = "kafka")]
fn for_kafka(subscription: Subscription) -> Subscription {
    use cqrs::kafka::{Assignor, KafkaSubscription, RetryMode};

    subscription.option(
        KafkaSubscription::new()
            .with_assignors([Assignor::CooperativeSticky]) // `KafkaSubscription::python_compatible()` beside aiokafka
            .with_retry_mode(RetryMode::Ordered) // the default; `Topics` gives up order
            .with_commit_interval(Duration::from_secs(1)),
    )
}

#[cfg(not(feature = "kafka"))]
fn for_kafka(subscription: Subscription) -> Subscription {
    subscription
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let broker = broker().await?;
    let users = env::var("USERS_TOPIC").unwrap_or_else(|_| "user_events".to_owned());
    let orders = env::var("ORDERS_TOPIC").unwrap_or_else(|_| "order_events".to_owned());

    println!("two events are there before anybody listens");
    let publisher = Mediator::builder()
        .broker(Arc::clone(&broker))
        .topic::<UserCreated>(users.as_str())
        .topic::<OrderPlaced>(orders.as_str())
        .build()?;
    let emitter = publisher.emitter();
    let ada = "user-1".to_owned();
    let email = "ada@example.org".to_owned();
    emitter.emit(UserCreated { user_id: ada.clone(), email }).await?;
    emitter.emit(OrderPlaced { user_id: ada.clone(), cents: 1_250 }).await?;

    let events = EventMediator::builder()
        .event::<UserCreated, _>(Statistics)
        .event::<OrderPlaced, _>(Statistics)
        .build()?;
    // Every group gets everything; the members of one share the partitions. Offsets are committed when
    // their messages are settled, never by time alone.
    let subscription = Subscription::to_all([users, orders])
        .group("statistics")
        .start_at(StartAt::Earliest) // the default; a group that is known goes on where it was
        .max_unsettled(1_000) // fetched and not settled; then the partition is paused
        .json::<UserCreated>() // the types are told apart by the events' names
        .json::<OrderPlaced>();
    let service = Service::builder(broker).subscribe(for_kafka(subscription), events).build()?;

    println!("the group begins with the oldest:");
    let (health, stop) = (service.health(), service.stop_handle());
    let running = tokio::spawn(service.run());
    let handled = || health.subscriptions()[0].counts.handled;
    until(60, || handled() == 2).await;
    println!("and goes on with what comes:");
    emitter.emit(OrderPlaced { user_id: ada, cents: 799 }).await?;
    until(60, || handled() == 3).await;

    stop.stop();
    let counts = running.await??.subscriptions[0].counts;
    println!("stopped: {} handled, {} given back", counts.handled, counts.given_back);
    Ok(())
}

/// The broker that `--broker memory` or `kafka` names: the in-memory one without it.
async fn broker() -> Result<Arc<dyn Subscribe>, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let broker: Arc<dyn Subscribe> = match arguments.join(" ").as_str() {
        "" | "--broker memory" => Arc::new(MemoryBroker::new()),
        #[cfg(feature = "kafka")]
        "--broker kafka" => {
            use cqrs::kafka::{KafkaConfig, KafkaMessageBroker};
            let servers = env::var("KAFKA_BOOTSTRAP_SERVERS");
            let servers = servers.unwrap_or_else(|_| "localhost:9092".to_owned());
            Arc::new(KafkaMessageBroker::connect(KafkaConfig::new([servers])).await?)
        }
        _ => return Err("usage: [--broker memory | kafka], with the feature of its name".into()),
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
