//! Tests of the memory broker's source.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

use std::future::poll_fn;
use std::time::Duration;

use cqrs_core::consume::{
    RetryState, Source, SourceDelivery, StatusReporter, SubscribeRequest, TopicSet,
};
use cqrs_core::event::Timestamp;
use cqrs_core::{MemoryBroker, Message, MessageBrokerExt, Subscribe};

async fn open(broker: &MemoryBroker) -> Box<dyn Source> {
    let topics = TopicSet::Named(vec!["t".into()]);
    let request = SubscribeRequest::new(topics, "g", StatusReporter::new().0);
    Subscribe::subscribe(broker, request).await.unwrap()
}

async fn next(source: &mut Box<dyn Source>) -> SourceDelivery {
    poll_fn(|cx| source.poll_next(cx)).await.unwrap().unwrap()
}

#[tokio::test]
async fn closed_source_gives_back_kept_deliveries() {
    for closes in [true, false] {
        let broker = MemoryBroker::new();
        broker.publish(Message::new("t", "1").with_key("k")).await.unwrap();
        let mut source = open(&broker).await;
        let mut held = next(&mut source).await;
        assert!(held.settle.begin());
        let failed = RetryState::default().failed(Timestamp::now());
        held.settle.retry_later(Duration::ZERO, &failed).await.unwrap();
        match closes {
            true => source.close(Duration::from_secs(1)).await.unwrap(),
            false => drop(source),
        }
        assert!(!held.settle.begin(), "it is no longer this one's");
        held.settle.ack().await.unwrap_err();

        let mut source = open(&broker).await;
        let mut again = next(&mut source).await;
        assert!(again.message.redelivered);
        assert_eq!(again.retry, failed, "the attempts are kept");
        drop(held);
        assert!(again.settle.begin(), "the old one settles nothing here");
        again.settle.ack().await.unwrap();
    }
}
