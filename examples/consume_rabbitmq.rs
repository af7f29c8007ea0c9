//! Consuming from RabbitMQ: queue, exchange, bindings, prefetch, and which queues stand beside one.
//!
//! ```text
//! cargo run --example consume_rabbitmq
//! cargo run --example consume_rabbitmq --features amqp -- --broker amqp
//! ```

mod common;

use std::time::Duration;

use common::{Fallible, Wire};
use cqrs::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Notification)]
#[cqrs(name = "UserCreated", topic = "user.created", key = "user_id")]
struct UserCreated {
    user_id: String,
    email: String,
}

#[derive(Serialize, Deserialize, Notification)]
#[cqrs(name = "UserDeleted", topic = "user.deleted", key = "user_id")]
struct UserDeleted {
    user_id: String,
}

struct Mailer;

impl EventHandler<UserCreated> for Mailer {
    async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
        let queue = scope.get::<Received>().and_then(|received| received.queue.clone());
        println!("  welcome, {}! (queue: {})", event.email, queue.as_deref().unwrap_or("none"));
        Ok(())
    }
}

impl EventHandler<UserDeleted> for Mailer {
    async fn handle(&self, event: &UserDeleted, _scope: &mut Scope) -> Result<(), HandlerError> {
        println!("  farewell, {}!", event.user_id);
        Ok(())
    }
}

/// Options have types of their own: other brokers leave them alone.
#[cfg(feature = "amqp")]
fn for_rabbitmq(subscription: Subscription, queue: &str) -> Subscription {
    use cqrs::amqp::{AmqpSubscription, ExchangeConfig, QueueKind};

    subscription.option(
        AmqpSubscription::new()
            .with_queue(queue) // one for both topics; `{topic}.{group}` without it
            .with_exchange(ExchangeConfig::default()) // `events`, direct, durable
            .with_kind(QueueKind::Quorum) // replicated; the default
            .with_prefetch(50)
            .with_argument("x-max-length", 100_000),
    )
    // The routing keys are the topics; `with_routing_key("user.*")` binds by a pattern. A service
    // beside FastStream takes `AmqpSubscription::faststream_compatible()`.
}

#[cfg(not(feature = "amqp"))]
fn for_rabbitmq(subscription: Subscription, _queue: &str) -> Subscription {
    subscription
}

#[tokio::main]
async fn main() -> Fallible<()> {
    let wire = Wire::open().await?;
    let (created, deleted) = (wire.topic("user.created").await?, wire.topic("user.deleted").await?);
    let queue = format!("{created}.mailer");
    let retry = Retry::default().delayed([Duration::from_secs(10), Duration::from_secs(60)]);

    let events = EventMediator::builder()
        .event::<UserCreated, _>(Mailer)
        .event::<UserDeleted, _>(Mailer)
        .build()?;
    let subscription = Subscription::to_all([created.as_str(), deleted.as_str()])
        .group("mailer")
        .json::<UserCreated>()
        .json::<UserDeleted>()
        .retry(retry.clone());
    let service = Service::builder(wire.broker())
        .subscribe(for_rabbitmq(subscription, &queue), events)
        .build()?;

    // The queue must be there first: an event that no queue gets is an error of its publisher.
    let running = common::start(service).await?;
    println!("consuming from {}; RabbitMQ has these beside the queue {queue}:", wire.name);
    println!("  {queue}.retry.10s and .60s, where failed messages wait");
    println!("  {queue}.dead, where those end that nobody could handle");

    println!("two events, two routing keys, one queue:");
    let user_id = "user-1".to_owned();
    let email = "ada@example.org".to_owned();
    wire.publish(&created, UserCreated { user_id: user_id.clone(), email }).await?;
    wire.publish(&deleted, UserDeleted { user_id }).await?;
    running.has_settled(2).await?;

    let counts = running.stop().await?;
    println!("stopped: {} handled, {} given back", counts.handled, counts.given_back);
    wire.tidy_up("mailer", &retry).await
}
