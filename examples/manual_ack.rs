//! Settling by hand: ack, try again later, give back, dead-letter. A delivery that the handler drops is redelivered.
//!
//! ```text
//! cargo run --example manual_ack
//! cargo run --example manual_ack --features kafka,amqp -- --broker kafka    # or amqp
//! ```

mod common;

use std::time::Duration;

use common::{Fallible, Wire};
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
async fn main() -> Fallible<()> {
    let wire = Wire::open().await?;
    let payments = wire.topic("payments").await?;
    let retry = Retry::none().delayed([LATER]); // on RabbitMQ each delay has its queue
    let subscription = Subscription::to(payments.as_str())
        .group("bank")
        .json::<PaymentAsked>()
        .concurrency(4)
        .retry(retry.clone());
    let service = Service::builder(wire.broker()).subscribe(subscription, manual(pay)).build()?;

    println!("four payments on {}:", wire.name);
    let running = common::start(service).await?;
    for (account, cents) in [("ada", 100), ("bob", 200), ("eve", 300), ("joe", 400)] {
        wire.publish(&payments, PaymentAsked { account: account.to_owned(), cents }).await?;
    }
    running.has_settled(4).await?;
    for (letter, _) in wire.dead_letters(&payments, "bank", 1).await? {
        println!("dead: {} ({})", letter.error, letter.reason);
    }

    let counts = running.stop().await?;
    println!("stopped: {} handled, {} dead-lettered", counts.handled, counts.dead_lettered);
    wire.tidy_up("bank", &retry).await
}
