//! The scenarios on real servers: the thread that runs ours, beside the same loop on the raw client.

#![allow(clippy::async_yields_async)] // the outer future enqueues, the inner one is the confirm

pub(crate) mod amqp;
pub(crate) mod kafka;

use std::collections::VecDeque;
use std::future::Future;

use cqrs_core::MessageBroker;

use crate::consume::{Body, message};

/// Messages in flight.
const WINDOW: usize = 100;

/// A name that no other run has.
fn unique() -> String {
    format!("costs-{}", std::process::id())
}

/// The address in the environment, which `scripts/brokers env` prints.
fn address(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: scripts/brokers up, then eval \"$(scripts/brokers env)\"")
    })
}

/// Sends `count` messages and awaits their confirms, with [`WINDOW`] in flight. `send` is the future of a send,
/// which ends with the future of its confirm.
async fn pipelined<C: Future<Output = ()>>(count: usize, send: impl AsyncFn(usize) -> C) {
    let mut in_flight = VecDeque::with_capacity(WINDOW);
    for index in 0..count {
        if in_flight.len() == WINDOW
            && let Some(oldest) = in_flight.pop_front()
        {
            let oldest: C = oldest;
            oldest.await;
        }
        in_flight.push_back(send(index).await);
    }
    for confirm in in_flight {
        confirm.await;
    }
}

/// Publishes `count` messages through a broker of ours.
async fn publish_ours<B: Body>(broker: &impl MessageBroker, topic: &str, count: usize) {
    let body = B::bytes();
    pipelined(count, async |index| {
        let message = message::<B>(topic, &body, index);
        let receipt = broker.enqueue(message).await.expect("a place in the window");
        async move {
            let _confirmation = receipt.await.expect("confirmed");
        }
    })
    .await;
}
