//! Many handlers at once, and yet the events of one key one after the other, in order.
//!
//! ```text
//! cargo run --example parallel_with_order
//! cargo run --example parallel_with_order --features kafka,amqp -- --broker kafka    # or amqp
//! ```

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::{Fallible, Wire};
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
async fn main() -> Fallible<()> {
    let wire = Wire::open().await?;
    let accounts = wire.topic("accounts").await?;
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
    let subscription = Subscription::to(accounts.as_str())
        .group("ledger")
        .json::<AccountChanged>()
        .concurrency(10); // 1 by default: strict order over all keys
    let service = Service::builder(wire.broker()).subscribe(subscription, each(update)).build()?;

    let running = common::start(service).await?;
    for step in 1..=STEPS {
        for account in 1..=ACCOUNTS {
            let event = AccountChanged { account: format!("account-{account}"), step };
            wire.publish(&accounts, event).await?;
        }
    }
    println!("{} changes of {ACCOUNTS} accounts on {}", ACCOUNTS * STEPS, wire.name);
    running.has_settled(u64::from(ACCOUNTS * STEPS)).await?;
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
    let counts = running.stop().await?;
    println!("stopped: {} handled, {} given back", counts.handled, counts.given_back);
    wire.tidy_up("ledger", &Retry::default()).await
}
