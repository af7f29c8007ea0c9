//! Failures: at once again, later again, then a dead letter that says why. A permanent one is dead at once.
//!
//! ```text
//! cargo run --example retries_and_dead_letters
//! cargo run --example retries_and_dead_letters --features kafka,amqp -- --broker kafka    # or amqp
//! ```

mod common;

use std::time::Duration;

use common::{Fallible, Wire};
use cqrs::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Notification)]
#[cqrs(name = "UserCreated", topic = "user_events", key = "email")]
struct UserCreated {
    email: String,
}

struct SendWelcomeMail;

impl EventHandler<UserCreated> for SendWelcomeMail {
    async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
        // Travels with the message: a restart goes on counting.
        let attempt = scope.get::<Received>().map_or(0, Received::attempt);
        println!("  attempt {attempt} for {}", event.email);
        match event.email.as_str() {
            "no address" => Err("an address has an @").permanent(), // trying again is of no use
            "busy@example.org" if attempt < 4 => Err(HandlerError::retryable("the server is busy")),
            "gone@example.org" => Err(std::io::Error::other("no such host"))?, // `?` is retryable
            "bug@example.org" => panic!("index out of bounds"), // a failure like others
            _ => Ok(()),
        }
    }
}

#[tokio::main]
async fn main() -> Fallible<()> {
    let wire = Wire::open().await?;
    let users = wire.topic("user_events").await?;
    // The default is 50, 100, 250 ms, then 10 s, 60 s, 5 min. Between the later ones nothing is blocked:
    // RabbitMQ keeps the message in a queue of that delay; on Kafka its key waits, and the others go on.
    let millis = Duration::from_millis;
    let retry = Retry::none().immediate([millis(50)]).delayed([millis(500), millis(1_000)]);
    let events = EventMediator::builder().event::<UserCreated, _>(SendWelcomeMail).build()?;
    let subscription = Subscription::to(users.as_str())
        .group("mailer")
        .json::<UserCreated>()
        .concurrency(8)
        .retry(retry.clone());
    let service = Service::builder(wire.broker()).subscribe(subscription, events).build()?;

    println!("five users on {}, {} attempts at most:", wire.name, retry.max_attempts());
    std::panic::set_hook(Box::new(|_| {})); // the panic below is meant: its trace would only confuse
    let running = common::start(service).await?;
    for email in
        ["ada@example.org", "no address", "busy@example.org", "gone@example.org", "bug@example.org"]
    {
        wire.publish(&users, UserCreated { email: email.to_owned() }).await?;
    }
    running.has_settled(5).await?;

    println!("dead letters, with the message as it came:");
    for (letter, body) in wire.dead_letters(&users, "mailer", 3).await? {
        println!("  {} after {} attempts: {}", letter.reason, letter.attempts, letter.error);
        println!("    {} bytes of {} for group {}", body.len(), letter.topic, letter.group);
    }
    let counts = running.stop().await?;
    println!(
        "stopped: {} handled, {} dead-lettered, {} attempts failed, {} of them panicked",
        counts.handled, counts.dead_lettered, counts.failed_attempts, counts.panics
    );
    wire.tidy_up("mailer", &retry).await
}
