//! What is no event: dead letter, skip, or a value that a function of yours sees. Never a retry.
//!
//! ```text
//! cargo run --example decode_errors
//! cargo run --example decode_errors --features kafka,amqp -- --broker kafka    # or amqp
//! ```

mod common;

use common::{Fallible, Wire};
use cqrs::consume::Incoming;
use cqrs::prelude::*;
use cqrs::service::{DecodeError, Undecodable};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Notification)]
#[cqrs(name = "UserCreated", topic = "user_events")]
struct UserCreated {
    email: String,
}

async fn welcome(event: NotificationEvent<UserCreated>, _: Received) -> Result<(), HandlerError> {
    println!("  welcome, {}!", event.payload.email);
    Ok(())
}

/// Gets what the policy `Handle` hands over, with the error as a value and the raw bytes.
async fn look(case: Undecodable, received: Received) -> Result<(), HandlerError> {
    let bytes = received.bytes().len();
    match case {
        Undecodable::UnknownEvent { name } => {
            println!("  not ours: {name} ({bytes} bytes)");
            Ok(()) // and it is acked
        }
        other => Err(HandlerError::permanent(other.to_string())), // and it is a dead letter
    }
}

/// Runs before decoding: to decrypt, to decompress, or to skip.
async fn unwrap_version(mut message: Incoming) -> Result<Option<Incoming>, DecodeError> {
    let body = message.bytes();
    match body.strip_prefix(b"v1:") {
        Some(body) => message.body = Some(body.to_vec().into()),
        None if body.starts_with(b"v0:") => {
            println!("  skipped by the decoder: too old");
            return Ok(None);
        }
        None => {} // without a version: as it is
    }
    Ok(Some(message))
}

#[tokio::main]
async fn main() -> Fallible<()> {
    let wire = Wire::open().await?;
    let users = wire.topic("user_events").await?;
    let subscription = Subscription::to(users.as_str())
        .group("mailer")
        .json::<UserCreated>()
        .decoder(unwrap_version)
        .max_body_size(1 << 20)
        .on_decode_error(OnDecodeError::DeadLetter) // the default
        .on_empty(OnDecodeError::Skip) // the default
        .on_unknown_event(OnDecodeError::Handle)
        .undecodable(look);
    let service = Service::builder(wire.broker()).subscribe(subscription, each(welcome)).build()?;

    println!("six messages on {}:", wire.name);
    let running = common::start(service).await?;
    for body in [
        r#"{"event_name":"UserCreated","payload":{"email":"ada@example.org"}}"#,
        "garbage",
        "",
        r#"{"event_name":"UserMoved","payload":{"city":"Paris"}}"#,
        r#"v1:{"event_name":"UserCreated","payload":{"email":"eve@example.org"}}"#,
        "v0:???",
    ] {
        wire.publish_bytes(&users, body).await?;
    }
    running.has_settled(6).await?;

    for (letter, body) in wire.dead_letters(&users, "mailer", 1).await? {
        println!("dead: {body:?}, because: {} ({})", letter.error, letter.reason);
    }
    let counts = running.stop().await?;
    println!(
        "stopped: {} handled, {} skipped, {} dead-lettered, {} attempts failed",
        counts.handled, counts.skipped, counts.dead_lettered, counts.failed_attempts
    );
    wire.tidy_up("mailer", &Retry::default()).await
}
