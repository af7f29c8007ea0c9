//! Tests of dead letters and retry copies on librdkafka's mock cluster.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

use std::future::poll_fn;
use std::time::Duration;

use cqrs_core::consume::{
    DeadLetter, DeadLetterReason, DeadLetterTarget, Source, SourceDelivery, StatusReporter,
    SubscribeRequest, TopicSet,
};
use cqrs_core::{Message, MessageBrokerExt, Subscribe};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker, KafkaSubscription};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

async fn next(source: &mut Box<dyn Source>) -> SourceDelivery {
    let next = poll_fn(|cx| source.poll_next(cx));
    tokio::time::timeout(Duration::from_secs(60), next).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn missing_write_right_is_remembered_per_topic() {
    let cluster = MockCluster::new(1).unwrap();
    for topic in ["orders", "dead"] {
        cluster.create_topic(topic, 1, 1).unwrap();
    }
    let config = KafkaConfig::new([cluster.bootstrap_servers()]);
    let broker = KafkaMessageBroker::connect(config).await.unwrap();
    for body in ["1", "2"] {
        broker.publish(Message::new("orders", body)).await.unwrap();
    }
    let topics = TopicSet::Named(vec!["orders".into()]);
    let mut request = SubscribeRequest::new(topics, "g", StatusReporter::new().0);
    request.dead_letter = DeadLetterTarget::Named("dead".into());
    request.options.insert(KafkaSubscription::new().with_create_topics(None));
    let mut source = broker.subscribe(request).await.unwrap();
    let letter = DeadLetter::new(DeadLetterReason::Decode, "orders", "g");
    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::Produce, &[refusal]);
    let mut first = next(&mut source).await;
    let error = first.settle.dead_letter(&letter).await.unwrap_err();
    assert!(error.is_permanent(), "{error:?}");
    // The cluster accepts it from now on, but the refusal is remembered.
    let mut second = next(&mut source).await;
    let error = second.settle.dead_letter(&letter).await.unwrap_err();
    assert!(error.is_permanent(), "{error:?}");
    assert!(format!("{error:?}").contains("uthorization"), "{error:?}");
}

#[tokio::test]
async fn retry_headers_do_not_count_against_the_limit() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("orders", 1, 1).unwrap();
    let config = KafkaConfig::new([cluster.bootstrap_servers()]);
    let broker = KafkaMessageBroker::connect(config).await.unwrap();
    for own in [1_024, 1_025] {
        let mut message = Message::new("orders", "body");
        for number in 0..own {
            message.headers.insert(format!("x-{number}"), "1").unwrap();
        }
        for name in ["topic", "partition", "offset", "due"] {
            message.headers.insert(format!("cqrs-retry-{name}"), "7").unwrap();
        }
        broker.publish(message).await.unwrap();
    }
    let topics = TopicSet::Named(vec!["orders".into()]);
    let mut request = SubscribeRequest::new(topics, "g", StatusReporter::new().0);
    request.options.insert(KafkaSubscription::new().with_create_topics(None));
    let mut source = broker.subscribe(request).await.unwrap();
    let read = next(&mut source).await.message;
    assert_eq!((&read.unreadable, read.headers.iter().count()), (&None, 1_024));
    let too_many = next(&mut source).await.message;
    assert!(too_many.unreadable.as_deref().unwrap().contains("1025 headers"));
}
