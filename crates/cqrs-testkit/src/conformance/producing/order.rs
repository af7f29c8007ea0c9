//! Cases of order: the order of a key is that in which `enqueue` resolved.

use std::collections::BTreeMap;
use std::sync::Arc;

use cqrs_core::Message;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::fixture::{ProducingFixture, assert_order};
use crate::conformance::harness::{Harness, Setup};
use crate::error_chain;

fn key(number: usize, keys: usize) -> Vec<u8> {
    format!("key-{}", number % keys).into_bytes()
}

async fn one_task<H: Harness>(harness: &H, setup: Setup, count: usize, keys: usize) {
    let mut fixture = ProducingFixture::with(harness, setup).await;
    let mut sent: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut receipts = Vec::new();
    for number in 0..count {
        let key = key(number, keys);
        receipts.push(fixture.enqueue(fixture.numbered(number).with_key(key.clone())).await);
        sent.entry(key).or_default().push(number);
    }
    assert_order(&fixture.receive_all(count).await, &sent);
    fixture.all_confirmed(receipts).await;
}

pub(crate) async fn order_holds_without_awaiting_receipts<H: Harness>(harness: &H) {
    one_task(harness, Setup::default(), 900, 10).await;
}

pub(crate) async fn order_holds_when_enqueue_waits<H: Harness>(harness: &H) {
    one_task(harness, Setup { window_messages: 3, ..Setup::default() }, 300, 2).await;
}

/// A lock per key is held around `enqueue`, so that the order in which they resolved is known. Tasks of
/// different keys, and the awaits of the receipts, run as they like.
pub(crate) async fn order_holds_across_64_tasks<H: Harness>(harness: &H) {
    const TASKS: usize = 64;
    const EACH: usize = 15;
    const KEYS: usize = 7;
    let setup = Setup { window_messages: 32, ..Setup::default() };
    let mut fixture = ProducingFixture::with(harness, setup).await;
    let sent: Arc<Vec<Mutex<Vec<usize>>>> = Arc::new((0..KEYS).map(|_| Mutex::default()).collect());
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (broker, topic) = (Arc::clone(&fixture.broker), fixture.topic.clone());
        let sent = Arc::clone(&sent);
        tasks.spawn(async move {
            for number in task * EACH..(task + 1) * EACH {
                let message = Message::new(topic.as_str(), number.to_string());
                let mut order = sent[number % KEYS].lock().await;
                let receipt = broker.enqueue(message.with_key(key(number, KEYS))).await;
                order.push(number);
                drop(order);
                let receipt = receipt.unwrap_or_else(|error| panic!("{}", error_chain(&error)));
                // Some wait for their confirm, some do not.
                if number % 3 == 0 {
                    receipt.await.unwrap_or_else(|error| panic!("{}", error_chain(&error)));
                }
            }
        });
    }
    let received = fixture.receive_all(TASKS * EACH).await;
    while let Some(task) = tasks.join_next().await {
        task.expect("every publish is confirmed");
    }
    let mut order = BTreeMap::new();
    for (number, sent) in sent.iter().enumerate() {
        order.insert(key(number, KEYS), sent.lock().await.clone());
    }
    assert_order(&received, &order);
}
