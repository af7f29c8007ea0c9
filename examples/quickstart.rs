//! A command goes through the mediator, its domain event runs a handler in this process, and its
//! notification goes to a broker and comes back to a handler of another service.
//!
//! ```text
//! cargo run --example quickstart
//! cargo run --example quickstart --features kafka -- --broker kafka
//! cargo run --example quickstart --features amqp -- --broker amqp
//! ```
//!
//! `./scripts/brokers up` starts the real brokers. `KAFKA_BOOTSTRAP_SERVERS` and `AMQP_DSN` say where
//! they are, if not on this machine.

use std::env;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cqrs::MemoryBroker;
use cqrs::prelude::*;
use serde::{Deserialize, Serialize};

// ---- what can be asked, and what can happen

#[derive(Command)]
#[cqrs(response = UserId, error = SignUpError)]
struct CreateUser {
    email: String,
    name: String,
}

/// Stays in this process.
#[derive(DomainEvent)]
struct UserCounted {
    by: usize,
}

/// Goes to other services. Events of one user keep their order.
#[derive(Clone, Serialize, Deserialize, Notification)]
#[cqrs(name = "UserCreated", topic = "user_events", key = "user_id")]
struct UserCreated {
    user_id: UserId,
    email: String,
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct UserId(usize);

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user-{}", self.0)
    }
}

#[derive(Debug)]
enum SignUpError {
    NoAddress,
}

impl fmt::Display for SignUpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress => f.write_str("an e-mail address has an @"),
        }
    }
}

// ---- the service that signs people up

#[derive(Default)]
struct CreateUserHandler {
    last: AtomicUsize,
}

impl RequestHandler<CreateUser> for CreateUserHandler {
    async fn handle(&self, command: CreateUser, scope: &mut Scope) -> Result<UserId, SignUpError> {
        println!("   handler    creates {}", command.name);
        scope.emit(UserCounted { by: 1 });
        if !command.email.contains('@') {
            return Err(SignUpError::NoAddress); // and nothing is emitted
        }
        let user_id = UserId(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        scope.emit(UserCreated { user_id, email: command.email, name: command.name });
        Ok(user_id)
    }
}

struct CountUsers(Arc<AtomicUsize>);

impl EventHandler<UserCounted> for CountUsers {
    async fn handle(&self, event: &UserCounted, _scope: &mut Scope) -> Result<(), HandlerError> {
        let users = self.0.fetch_add(event.by, Ordering::Relaxed) + event.by;
        println!("   in process a domain event counts: {users} user(s)");
        Ok(())
    }
}

// ---- the service that welcomes them

struct SendWelcomeMail(Arc<AtomicUsize>);

impl EventHandler<UserCreated> for SendWelcomeMail {
    async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
        tokio::time::sleep(Duration::from_millis(100)).await; // a mail takes its time
        if let Some(received) = scope.get::<Received>() {
            println!("   received   {}", String::from_utf8_lossy(&received.bytes()));
        }
        println!("   mailer     writes to {}: welcome, {}!", event.email, event.name);
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(()) // and the message is acked; an error would be tried again, and again later
    }
}

fn mailer(
    broker: Arc<dyn Subscribe>,
    topic: &str,
    mails: &Arc<AtomicUsize>,
) -> Result<Service, Box<dyn Error>> {
    let events = EventMediator::builder()
        .event::<UserCreated, _>(SendWelcomeMail(Arc::clone(mails)))
        .build()?;
    let users = Subscription::to(topic).group("mailer").json::<UserCreated>();
    Ok(Service::builder(broker).subscribe(users, events).build()?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let broker = broker().await?;
    let topic = env::var("TOPIC").unwrap_or_else(|_| "user_events".to_owned());
    println!("Publishing to {topic}.\n");

    let (users, mails) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let mailer = mailer(Arc::clone(&broker), &topic, &mails)?;
    let (health, stop) = (mailer.health(), mailer.stop_handle());
    let mailer = tokio::spawn(mailer.run()); // until SIGTERM, Ctrl-C or `stop`
    // RabbitMQ's queue must exist before the first event. Kafka creates a topic with it.
    until(10, || health.is_ready()).await;

    let mediator = Mediator::builder()
        .handle::<CreateUser, _>(CreateUserHandler::default())
        .event::<UserCounted, _>(CountUsers(Arc::clone(&users)))
        .broker(Arc::clone(&broker))
        .topic::<UserCreated>(topic)
        .build()?;
    for (name, email) in
        [("Ada", "ada@example.org"), ("Bob", "nowhere"), ("Eve", "eve@example.org")]
    {
        println!("-> send       CreateUser {{ name: {name:?}, email: {email:?} }}");
        let command = CreateUser { name: name.to_owned(), email: email.to_owned() };
        match mediator.send(command).await {
            Ok(id) => println!("<- answer     {id}, and the broker confirmed the notification\n"),
            Err(error) => println!("<- error      {error}; nothing was emitted\n"),
        }
    }

    until(60, || mails.load(Ordering::Relaxed) == 2).await;
    stop.stop();
    let mailer = mailer.await??; // has finished what ran, and given the rest back
    let left = broker.shutdown(Duration::from_secs(10)).await;
    println!(
        "\nDone: {} users, {} mails, {} messages undelivered.",
        users.load(Ordering::Relaxed),
        mailer.subscriptions[0].counts.handled,
        left.undelivered
    );
    Ok(())
}

/// The broker that `--broker memory`, `kafka` or `amqp` names: the in-memory one without it.
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
