//! Consuming from Kafka: a group, where it begins, several topics, and what only Kafka knows.
//!
//! ```text
//! cargo run --example consume_kafka
//! cargo run --example consume_kafka --features kafka -- --broker kafka
//! ```

mod common;

use common::{Fallible, Wire};
use cqrs::StartAt;
use cqrs::prelude::*;
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
    use std::time::Duration;

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
async fn main() -> Fallible<()> {
    let wire = Wire::open().await?;
    let (users, orders) = (wire.topic("user_events").await?, wire.topic("order_events").await?);

    println!("two events are on {} before anybody listens", wire.name);
    let ada = "user-1".to_owned();
    let email = "ada@example.org".to_owned();
    wire.publish(&users, UserCreated { user_id: ada.clone(), email }).await?;
    wire.publish(&orders, OrderPlaced { user_id: ada.clone(), cents: 1_250 }).await?;

    let events = EventMediator::builder()
        .event::<UserCreated, _>(Statistics)
        .event::<OrderPlaced, _>(Statistics)
        .build()?;
    // Every group gets everything; the members of one share the partitions. Offsets are committed when
    // their messages are settled, never by time alone.
    let subscription = Subscription::to_all([users.as_str(), orders.as_str()])
        .group("statistics")
        .start_at(StartAt::Earliest) // the default; a group that is known goes on where it was
        .max_unsettled(1_000) // fetched and not settled; then the partition is paused
        .json::<UserCreated>() // the types are told apart by the events' names
        .json::<OrderPlaced>();
    let service =
        Service::builder(wire.broker()).subscribe(for_kafka(subscription), events).build()?;

    println!("the group begins with the oldest:");
    let running = common::start(service).await?;
    running.has_settled(2).await?;
    println!("and goes on with what comes:");
    wire.publish(&orders, OrderPlaced { user_id: ada, cents: 799 }).await?;
    running.has_settled(3).await?;

    let counts = running.stop().await?;
    println!("stopped: {} handled, {} given back", counts.handled, counts.given_back);
    wire.tidy_up("statistics", &Retry::default()).await
}
