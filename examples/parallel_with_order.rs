//! Many handlers at once, and yet the events of one key one after the other, in order.
//!
//! ```text
//! cargo run --example parallel_with_order
//! cargo run --example parallel_with_order --features kafka,amqp -- --broker kafka    # or amqp
//! ```

use std::collections::HashMap;
use std::env;
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cqrs::MemoryBroker;
use cqrs::prelude::*;
use serde::{Deserialize, Serialize};

/// The key says what belongs together.
#[derive(Serialize, Deserialize, Notification)]
#[cqrs(name = "AccountChanged", topic = "accounts", key = "account")]
struct AccountChanged {
    account: String,
    step: u32,
}

/// What the handlers did.
#[derive(Default)]
struct Ledger {
    /// The steps of each account, in the order they were handled.
    steps: Mutex<HashMap<String, Vec<u32>>>,
    running: AtomicUsize,
    most_at_once: AtomicUsize,
}

impl Ledger {
    async fn update(&self, AccountChanged { account, step }: AccountChanged) {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(running, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await; // a slow database
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.entry(account).or_default().push(step);
        self.running.fetch_sub(1, Ordering::SeqCst);
    }
}

const ACCOUNTS: u32 = 10;
const STEPS: u32 = 10;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let memory = MemoryBroker::new();
    let broker = broker(&memory).await?;
    let topic = env::var("TOPIC").unwrap_or_else(|_| "accounts".to_owned());
    let ledger = Arc::<Ledger>::default();
    let update = {
        let ledger = Arc::clone(&ledger);
        move |event: NotificationEvent<AccountChanged>, _: Received| {
            let ledger = Arc::clone(&ledger);
            async move {
                ledger.update(event.payload).await;
                Ok(())
            }
        }
    };
    let subscription =
        Subscription::to(topic.as_str()).group("ledger").json::<AccountChanged>().concurrency(10); // 1 by default: strict order over all keys
    let service =
        Service::builder(Arc::clone(&broker)).subscribe(subscription, each(update)).build()?;

    let (health, stop) = (service.health(), service.stop_handle());
    let running = tokio::spawn(service.run());
    // RabbitMQ's queue must exist before the first event. Kafka creates a topic with it.
    until(10, || health.is_ready()).await;
    let publisher = Mediator::builder().broker(broker).topic::<AccountChanged>(topic).build()?;
    for step in 1..=STEPS {
        for account in 1..=ACCOUNTS {
            let account = format!("account-{account}");
            publisher.emitter().emit(AccountChanged { account, step }).await?;
        }
    }
    println!("{} changes of {ACCOUNTS} accounts", ACCOUNTS * STEPS);
    let counts = || health.subscriptions()[0].counts;
    until(60, || counts().handled == u64::from(ACCOUNTS * STEPS)).await;
    match ledger.most_at_once.load(Ordering::SeqCst) {
        0 | 1 => return Err("they were handled one by one".into()),
        most => println!("all are handled, up to {most} at once"),
    }

    for (account, steps) in &*ledger.steps.lock().unwrap_or_else(PoisonError::into_inner) {
        if !steps.iter().copied().eq(1..=STEPS) {
            return Err(format!("{account} is out of order: {steps:?}").into());
        }
    }
    println!("the steps of every account came in their order");
    stop.stop();
    let counts = running.await??.subscriptions[0].counts;
    println!("stopped: {} handled, {} given back", counts.handled, counts.given_back);
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
