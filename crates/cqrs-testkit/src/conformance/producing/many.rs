//! Cases of many messages and many publishers.

use std::collections::BTreeMap;
use std::sync::Arc;

use cqrs_core::{Message, MessageBrokerExt};
use tokio::task::JoinSet;

use super::fixture::{ProducingFixture, numbers};
use crate::conformance::harness::Harness;
use crate::error_chain;

pub(crate) async fn dropped_receipts_still_arrive<H: Harness>(harness: &H) {
    let mut fixture = ProducingFixture::new(harness).await;
    for number in 0..200 {
        drop(fixture.enqueue(fixture.numbered(number)).await);
    }
    let mut arrived = numbers(&fixture.receive_all(200).await);
    arrived.sort_unstable();
    assert_eq!(arrived, (0..200).collect::<Vec<_>>());
}

pub(crate) async fn ten_thousand_messages_arrive_exactly_once<H: Harness>(harness: &H) {
    const TASKS: usize = 100;
    const EACH: usize = 100;
    let mut fixture = ProducingFixture::new(harness).await;
    let mut publishers = JoinSet::new();
    for task in 0..TASKS {
        let (broker, topic) = (Arc::clone(&fixture.broker), fixture.topic.clone());
        publishers.spawn(async move {
            for number in task * EACH..(task + 1) * EACH {
                let message = Message::new(topic.as_str(), number.to_string());
                let published = broker.publish(message.with_key(format!("k{}", number % 50))).await;
                published.unwrap_or_else(|error| panic!("{}", error_chain(&error)));
            }
        });
    }
    // Read while they publish: the broker need not hold all messages.
    let mut seen = BTreeMap::new();
    for _ in 0..TASKS * EACH {
        let Some(message) = fixture.probe.next(fixture.can.timeout).await else { break };
        *seen.entry(numbers(&[message])[0]).or_insert(0) += 1;
    }
    while let Some(publisher) = publishers.join_next().await {
        publisher.expect("every publish is confirmed");
    }
    fixture.receive_all(0).await;
    let twice = seen.values().filter(|&&times| times > 1).count();
    assert_eq!(twice, 0, "messages arrived more than once");
    assert_eq!(seen.len(), TASKS * EACH, "confirmed messages were lost");
}
