//! Tests of a memory broker's source with several topics.

use std::collections::HashSet;
use std::future::poll_fn;
use std::time::Duration;

use tokio::time::timeout;

use crate::consume::{
    DeadLetter, DeadLetterReason, Fetch, RetryState, Source, SourceDelivery, StatusReporter,
    Subscribe, SubscribeRequest, TopicSet,
};
use crate::memory::{MemoryRetry, MemorySubscription};
use crate::{MemoryBroker, Message, MessageBrokerExt};

/// The source of the group "g" of two topics.
async fn source(broker: &MemoryBroker, max_unsettled: usize) -> Box<dyn Source> {
    Subscribe::subscribe(broker, request(max_unsettled)).await.unwrap()
}

fn request(max_unsettled: usize) -> SubscribeRequest {
    let (status, _) = StatusReporter::new();
    let topics = TopicSet::Named(vec!["t".into(), "u".into()]);
    let mut request = SubscribeRequest::new(topics, "g", status);
    request.max_unsettled = Some(max_unsettled);
    request
}

async fn publish(broker: &MemoryBroker, topic: &'static str) {
    broker.publish(Message::new(topic, "")).await.unwrap();
}

/// The next delivery, if one is ready.
async fn next(source: &mut Box<dyn Source>) -> Option<SourceDelivery> {
    let next = poll_fn(|cx| source.poll_next(cx));
    timeout(Duration::ZERO, next).await.ok().map(|next| next.unwrap().unwrap())
}

#[tokio::test(start_paused = true)]
async fn topics_are_served_in_turn() {
    let broker = MemoryBroker::new();
    let mut source = source(&broker, 100).await;
    for topic in ["t", "t", "t", "u", "u"] {
        publish(&broker, topic).await;
    }
    let mut topics = Vec::new();
    while let Some(mut delivery) = next(&mut source).await {
        topics.push(delivery.message.topic.to_string());
        delivery.settle.ack().await.unwrap();
    }
    assert_eq!(topics, ["t", "u", "t", "u", "t"]);
}

/// The topics of the deliveries that one poll adds to a fetch with room for `max`.
async fn fetched(source: &mut Box<dyn Source>, max: usize) -> Vec<SourceDelivery> {
    let mut fetch = Fetch::new(max);
    poll_fn(|cx| source.poll_fetch(cx, &mut fetch)).await.unwrap().unwrap();
    fetch.drain().collect()
}

#[tokio::test(start_paused = true)]
async fn fetch_takes_what_fits_of_all_topics() {
    let topics = |taken: &[SourceDelivery]| {
        taken.iter().map(|delivery| delivery.message.topic.to_string()).collect::<String>()
    };
    let broker = MemoryBroker::new();
    let mut source = source(&broker, 5).await;
    for topic in ["t", "t", "t", "u", "u", "u", "u"] {
        publish(&broker, topic).await;
    }
    let mut taken = fetched(&mut source, 2).await;
    assert_eq!(topics(&taken), "tt");
    taken.extend(fetched(&mut source, 100).await);
    assert_eq!(topics(&taken), "ttuuu", "at most 5 are in flight");
    taken.drain(..4).for_each(drop);
    taken[0].settle.ack().await.unwrap();
    let rest = fetched(&mut source, 100).await;
    assert_eq!(topics(&rest), "tttuu", "the others were given back");
    assert_eq!(rest.iter().filter(|delivery| delivery.message.redelivered).count(), 3);
}

#[tokio::test(start_paused = true)]
async fn message_of_any_topic_wakes_a_waiting_source() {
    let broker = MemoryBroker::new();
    let mut source = source(&broker, 100).await;
    for topic in ["u", "t", "u"] {
        let publish = async {
            tokio::task::yield_now().await;
            publish(&broker, topic).await;
        };
        let next = timeout(Duration::from_secs(1), poll_fn(|cx| source.poll_next(cx)));
        let (delivery, ()) = tokio::join!(next, publish);
        let mut delivery = delivery.expect("it was not woken").unwrap().unwrap();
        assert_eq!(&*delivery.message.topic, topic);
        delivery.settle.ack().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn full_or_stopped_source_takes_no_wakeup() {
    for stop in [false, true] {
        let broker = MemoryBroker::new();
        let mut source = source(&broker, 1).await;
        assert!(next(&mut source).await.is_none(), "it waits for both topics");
        let held = match stop {
            true => {
                source.stop().await;
                None
            }
            false => {
                publish(&broker, "u").await;
                let held = next(&mut source).await;
                assert!(held.is_some() && next(&mut source).await.is_none(), "it is full");
                held
            }
        };
        let member = broker.subscriber("t", "g");
        let waiting = tokio::spawn(async move { member.recv().await.unwrap().ack() });
        tokio::task::yield_now().await;
        publish(&broker, "t").await;
        timeout(Duration::from_secs(1), waiting).await.expect("the source took it").unwrap();
        drop((held, source));
    }
}

#[tokio::test(start_paused = true)]
async fn ended_delivery_wakes_full_source() {
    for ack in [true, false] {
        let broker = MemoryBroker::new();
        let mut source = source(&broker, 2).await;
        for _ in 0..3 {
            publish(&broker, "t").await;
        }
        let (first, _second) = (next(&mut source).await, next(&mut source).await);
        let mut first = first.unwrap();
        let waiting = tokio::spawn(async move { poll_fn(|cx| source.poll_next(cx)).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "it is full");
        if ack {
            first.settle.ack().await.unwrap();
        }
        drop(first);
        let woken = timeout(Duration::from_secs(1), waiting).await.expect("it was not woken");
        assert!(woken.unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn revoked_delivery_leaves_no_dead_letter_and_no_copy() {
    let broker = MemoryBroker::new();
    let mut request = request(10);
    request.options.insert(MemorySubscription::default().with_retry(MemoryRetry::Scheduled));
    let mut source = Subscribe::subscribe(&broker, request).await.unwrap();
    publish(&broker, "t").await;
    let mut revoked = next(&mut source).await.unwrap();
    assert_eq!(broker.faults().revoke("t", "g"), 1);
    let letter = DeadLetter::new(DeadLetterReason::Exhausted, "t", "g");
    let error = revoked.settle.dead_letter(&letter).await.unwrap_err();
    assert_eq!(error.to_string(), "the delivery was revoked; it is redelivered");
    let (delay, state) = (Duration::from_secs(1), RetryState::default());
    assert!(revoked.settle.retry_later(delay, &state).await.is_err());
    assert!(broker.messages("t.g.dead").is_empty());
    let mut again = next(&mut source).await.unwrap();
    again.settle.ack().await.unwrap();
    tokio::time::sleep(2 * delay).await;
    assert!(next(&mut source).await.is_none(), "one message, one delivery");
}

#[tokio::test(start_paused = true)]
async fn spare_settlement_settles_the_message_of_its_new_topic() {
    let broker = MemoryBroker::new();
    let mut source = source(&broker, 100).await;
    let (mut fetch, mut places) = (Fetch::new(1), HashSet::new());
    for topic in ["t", "u", "u", "t"] {
        publish(&broker, topic).await;
        poll_fn(|cx| source.poll_fetch(cx, &mut fetch)).await.unwrap().unwrap();
        let mut delivery = fetch.drain().next().unwrap();
        assert_eq!(&*delivery.message.topic, topic);
        assert_eq!(broker.unsettled(topic, "g"), 1);
        delivery.settle.ack().await.unwrap();
        assert_eq!(broker.unsettled(topic, "g"), 0);
        places.insert(std::ptr::from_ref(&*delivery.settle).addr());
        fetch.spare.keep(None, delivery.settle);
    }
    assert_eq!(places.len(), 1, "one allocation for all");
}
