//! Batches: many events in one go, by size or time. One that cannot be handled takes no other with it.
//!
//! ```text
//! cargo run --example batch
//! cargo run --example batch --features kafka,amqp -- --broker kafka    # or amqp
//! ```

mod common;

use std::time::Duration;

use common::{Fallible, Wire};
use cqrs::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Notification)]
#[cqrs(name = "PageViewed", topic = "page_views", key = "visitor")]
struct PageViewed {
    visitor: u32,
    page: String,
}

/// `Ok` acks them all. When it fails, it is tried again as a whole; when it still fails, each event is
/// handled alone: so the function must be fit to see an event again.
async fn insert_rows(
    events: Vec<(NotificationEvent<PageViewed>, Received)>,
) -> Result<(), HandlerError> {
    let rows: Vec<u32> = events.iter().map(|(event, _)| event.payload.visitor).collect();
    if rows.contains(&13) {
        println!("  insert {rows:?}: the database refuses 13");
        return Err(HandlerError::retryable("constraint violated"));
    }
    println!("  insert {rows:?}");
    Ok(())
}

#[tokio::main]
async fn main() -> Fallible<()> {
    let wire = Wire::open().await?;
    let views = wire.topic("page_views").await?;
    let retry = Retry::none(); // no second attempt, here
    let subscription = Subscription::to(views.as_str())
        .group("analytics")
        .json::<PageViewed>()
        .retry(retry.clone());
    // Up to 5 at once, at the latest 200 ms after the first of them came.
    let target = batch(5, Duration::from_millis(200), insert_rows);
    let service = Service::builder(wire.broker()).subscribe(subscription, target).build()?;

    println!("17 page views on {}:", wire.name);
    let running = common::start(service).await?;
    for visitor in 1..=17 {
        wire.publish(&views, PageViewed { visitor, page: "/home".to_owned() }).await?;
    }
    running.has_settled(17).await?;
    for (letter, body) in wire.dead_letters(&views, "analytics", 1).await? {
        println!("dead: {body}, because: {}", letter.error);
    }

    let counts = running.stop().await?;
    println!("stopped: {} handled, {} dead-lettered", counts.handled, counts.dead_lettered);
    wire.tidy_up("analytics", &retry).await
}
