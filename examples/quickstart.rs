//! A command goes through the mediator, its domain event runs a handler in this process, and its
//! notification goes to a broker and comes back to a handler of another service.
//!
//! ```text
//! cargo run --example quickstart
//! cargo run --example quickstart --features kafka -- --broker kafka
//! cargo run --example quickstart --features amqp -- --broker amqp
//! ```
//!
//! `./scripts/brokers up` starts the real brokers. `CQRS_TEST_KAFKA` and `CQRS_TEST_AMQP` say where
//! they are, if not on this machine.

mod common;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::Wire;
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
    let wire = Wire::open().await?;
    let topic = wire.topic("user_events").await?;
    println!("Publishing to {}.\n", wire.name);

    let (users, mails) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let mailer = common::start(mailer(wire.broker(), &topic, &mails)?).await?;
    let mediator = Mediator::builder()
        .handle::<CreateUser, _>(CreateUserHandler::default())
        .event::<UserCounted, _>(CountUsers(Arc::clone(&users)))
        .broker(wire.broker())
        .topic::<UserCreated>(topic.as_str())
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

    common::until("both mails are out", || mails.load(Ordering::Relaxed) == 2).await?;
    let mailer = mailer.stop().await?; // finishes what runs, gives the rest back
    let left = mediator.shutdown(Duration::from_secs(10)).await;
    println!(
        "\nDone: {} users, {} mails, {} messages undelivered.",
        users.load(Ordering::Relaxed),
        mailer.handled,
        left.undelivered
    );
    wire.tidy_up("mailer", &Retry::default()).await
}
