//! Consuming from RabbitMQ: queue, exchange, bindings, prefetch, and which queues stand beside one.
//!
//! ```text
//! cargo run --example consume_rabbitmq
//! cargo run --example consume_rabbitmq --features amqp -- --broker amqp
//! ```

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use cqrs::MemoryBroker;
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
async fn main() -> Result<(), Box<dyn Error>> {
    let broker = broker().await?;
    let prefix = env::var("TOPIC_PREFIX").unwrap_or_default();
    let [created, deleted] = ["user.created", "user.deleted"].map(|topic| prefix.clone() + topic);
    let queue = format!("{created}.mailer");

    let events = EventMediator::builder()
        .event::<UserCreated, _>(Mailer)
        .event::<UserDeleted, _>(Mailer)
        .build()?;
    let subscription = Subscription::to_all([created.as_str(), deleted.as_str()])
        .group("mailer")
        .json::<UserCreated>()
        .json::<UserDeleted>()
        .retry(Retry::default().delayed([Duration::from_secs(10), Duration::from_secs(60)]));
    let service = Service::builder(Arc::clone(&broker))
        .subscribe(for_rabbitmq(subscription, &queue), events)
        .build()?;

    // The queue must be there first: an event that no queue gets is an error of its publisher.
    let (health, stop) = (service.health(), service.stop_handle());
    let running = tokio::spawn(service.run());
    until(60, || health.is_ready()).await;
    println!("RabbitMQ has these beside the queue {queue}:");
    println!("  {queue}.retry.10s and .60s, where failed messages wait");
    println!("  {queue}.dead, where those end that nobody could handle");

    println!("two events, two routing keys, one queue:");
    let publisher = Mediator::builder()
        .broker(broker)
        .topic::<UserCreated>(created)
        .topic::<UserDeleted>(deleted)
        .build()?;
    let user_id = "user-1".to_owned();
    let email = "ada@example.org".to_owned();
    publisher.emitter().emit(UserCreated { user_id: user_id.clone(), email }).await?;
    publisher.emitter().emit(UserDeleted { user_id }).await?;
    until(60, || health.subscriptions()[0].counts.handled == 2).await;

    stop.stop();
    let counts = running.await??.subscriptions[0].counts;
    println!("stopped: {} handled, {} given back", counts.handled, counts.given_back);
    Ok(())
}

/// The broker that `--broker memory` or `amqp` names: the in-memory one without it.
async fn broker() -> Result<Arc<dyn Subscribe>, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let broker: Arc<dyn Subscribe> = match arguments.join(" ").as_str() {
        "" | "--broker memory" => Arc::new(MemoryBroker::new()),
        #[cfg(feature = "amqp")]
        "--broker amqp" => {
            use cqrs::amqp::{AmqpConfig, AmqpMessageBroker};
            let dsn = env::var("AMQP_DSN");
            let dsn = dsn.unwrap_or_else(|_| "amqp://guest:guest@localhost:5672/%2f".to_owned());
            Arc::new(AmqpMessageBroker::connect(AmqpConfig::new(dsn)).await?)
        }
        _ => return Err("usage: [--broker memory | amqp], with the feature of its name".into()),
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
