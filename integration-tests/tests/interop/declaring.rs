//! Interop tests of declared topology and its conflicts.

use cqrs_amqp::{AmqpMessageBroker, AmqpSubscription, DeclareMode, ErrorKind};
use cqrs_core::consume::SubscribeErrorKind;
use cqrs_core::{Message, MessageBrokerExt, NotificationEvent, PublishErrorKind};
use cqrs_testkit::error_chain;
use integration_tests::amqp::{self, Raw};
use integration_tests::consuming::fixture::until;
use integration_tests::consuming::try_open;
use integration_tests::interop::{
    TestService, UserCreated, assert_same, described, events, publish_events, spec, users,
};
use integration_tests::peers::{Inbox, Peer, Python};
use serde_json::json;

use super::TestTopic;
use super::amqp::Topology;

const PYDANTIC: Option<&str> = Some("pydantic");

#[tokio::test]
async fn our_side_uses_topology_of_python_cqrs() {
    for python in [Python::Cqrs4, Python::Cqrs5] {
        let topology = Topology::python();
        let events = events(&topology.topic);
        topology.publish(python, "pydantic", vec![spec(&events[0])]).await;
        publish_events(topology.broker(), &events[1..2]).await;
        let mut service = topology.service().await;
        assert_eq!(service.take(2).await, events[..2]);
        topology.publish(python, "pydantic", vec![spec(&events[2])]).await;
        publish_events(topology.broker(), &events[3..]).await;
        assert_eq!(service.take(2).await, events[2..]);
        service.stop().await;
        topology.clean().await;
    }
}

#[tokio::test]
async fn python_cqrs_uses_topology_of_our_producer() {
    for python in [Python::Cqrs4, Python::Cqrs5] {
        let topology = Topology::python();
        let events = events(&topology.topic);
        publish_events(topology.broker(), &events[..1]).await;
        topology.publish(python, "pydantic", vec![spec(&events[1])]).await;
        let mut inbox = topology.inbox(python, PYDANTIC, None).await;
        for event in &events[..2] {
            assert_same(&inbox.next().await, event);
        }
        inbox.stop().await;
        topology.clean().await;
    }
}

#[tokio::test]
async fn python_cqrs_uses_topology_of_our_consumer() {
    for python in [Python::Cqrs4, Python::Cqrs5] {
        let topology = Topology::python();
        let mut service = topology.service().await;
        let mut inbox = topology.inbox(python, PYDANTIC, None).await;
        // The peer may not consume yet, and ours could take all.
        let raw = Raw::connect().await;
        until("both to consume", async || raw.consumers(&topology.topic).await == 2).await;
        raw.clean(&[], &[]).await;
        let specs: Vec<_> = (0..40).map(|_| json!({ "payload": users()[0] })).collect();
        let sent = topology.publish(python, "pydantic", specs).await;
        let sent: Vec<_> = sent.as_array().unwrap().iter().map(described).collect();
        once_in_total(&mut service, &mut inbox, &sent).await;
        inbox.stop().await;
        service.stop().await;
        topology.clean().await;
    }
}

/// Waits until all of `sent` are handled, by both sides, and fails when one is handled twice.
async fn once_in_total(
    service: &mut TestService<UserCreated>,
    inbox: &mut Inbox<'_>,
    sent: &[NotificationEvent<UserCreated>],
) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    until("all to be handled", async || {
        ours.extend(service.drain().iter().map(|event| event.event_id.to_string()));
        let heard = inbox.drain().into_iter();
        theirs.extend(heard.map(|heard| heard["event_id"].as_str().unwrap().to_owned()));
        ours.len() + theirs.len() >= sent.len()
    })
    .await;
    assert!(!ours.is_empty() && !theirs.is_empty(), "{} and {}", ours.len(), theirs.len());
    let mut handled = [ours, theirs].concat();
    handled.sort();
    let mut expected: Vec<_> = sent.iter().map(|event| event.event_id.to_string()).collect();
    expected.sort();
    assert_eq!(handled, expected);
}

#[tokio::test]
async fn a_queue_is_shared_with_a_consumer_of_faststream() {
    for we_declare in [true, false] {
        let topology = Topology::faststream();
        let (mut service, mut inbox);
        if we_declare {
            service = topology.service().await;
            inbox = topology.inbox(Python::FastStream, PYDANTIC, None).await;
        } else {
            inbox = topology.inbox(Python::FastStream, PYDANTIC, None).await;
            service = topology.service().await;
        }
        let sent: Vec<_> = (0..25).flat_map(|_| events(&topology.topic)).collect();
        publish_events(topology.broker(), &sent[..50]).await;
        topology.stream(&sent[50..], None).await;
        once_in_total(&mut service, &mut inbox, &sent).await;
        inbox.stop().await;
        service.stop().await;
        topology.clean().await;
    }
}

#[tokio::test]
async fn our_side_uses_topology_of_faststream_passively() {
    let topology = Topology::faststream();
    topology.inbox(Python::FastStream, PYDANTIC, None).await.stop().await;
    let mut config = topology.config();
    config.declare = DeclareMode::Passive;
    let broker = AmqpMessageBroker::connect(config).await.unwrap();
    let passive =
        topology.subscription().json::<UserCreated>().option(topology.options().with_passive(true));
    let mut service = TestService::open(topology.broker(), passive).await;
    let events = events(&topology.topic);
    publish_events(broker, &events).await;
    assert_eq!(service.take(events.len()).await, events);
    service.stop().await;
    topology.clean().await;
}

#[tokio::test]
async fn faststream_uses_our_topology_passively() {
    let topology = Topology::faststream();
    // Ours, which is not what FastStream would declare.
    let own = topology
        .subscription()
        .json::<UserCreated>()
        .option(AmqpSubscription::new().with_queue(&*topology.topic));
    TestService::<UserCreated>::open(topology.broker(), own).await.stop().await;
    let mut request = topology.source(Python::FastStream);
    request["model"] = PYDANTIC.into();
    request["declare"] = false.into();
    let mut inbox = Peer::shared(Python::FastStream).subscribe("faststream_amqp", request).await;
    let events = events(&topology.topic);
    publish_events(topology.broker(), &events).await;
    for event in &events {
        assert_same(&inbox.next().await, event);
    }
    inbox.stop().await;
    topology.clean().await;
}

#[tokio::test]
async fn undeclared_queue_is_not_found() {
    let topology = Topology::faststream();
    let exchange = AmqpMessageBroker::connect(topology.config()).await.unwrap();
    let error = try_open(&exchange, &[&*topology.topic], "ours", |request| {
        request.options.insert(topology.options().with_passive(true));
    })
    .await
    .unwrap_err();
    assert_eq!(error.kind(), SubscribeErrorKind::NotFound);
    assert!(error_chain(&error).contains(&topology.topic), "{}", error_chain(&error));
    topology.clean().await;
}

/// Says what `what` is called, that it stands differently, and what to do about it.
fn advises(words: &str, what: &str, name: &str) {
    for expected in [&*format!("{what} {name:?}"), "other properties", "declare mode", "406"] {
        assert!(words.contains(expected), "no {expected:?} in: {words}");
    }
}

#[tokio::test]
async fn conflict_with_queue_of_python_cqrs_is_named() {
    let topology = Topology::python();
    topology.publish(Python::Cqrs5, "pydantic", vec![json!({ "payload": users()[0] })]).await;
    // A consumer that wants it as FastStream has it, with the exchange as python-cqrs has it.
    let broker = topology.broker();
    let error = try_open(&broker, &[&*topology.topic], "ours", |request| {
        request.options.insert(AmqpSubscription::python_compatible().with_durable(true));
    })
    .await
    .unwrap_err();
    assert_eq!(error.kind(), SubscribeErrorKind::Conflict);
    advises(&error_chain(&error), "queue", &topology.topic);
    // The producer that declares it as ours.
    let mut config = topology.config();
    config.queues.push(cqrs_amqp::QueueConfig::new(&*topology.topic));
    let error = AmqpMessageBroker::connect(config).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Topology, Some(406)));
    advises(&error_chain(&error), "queue", &topology.topic);
    topology.clean().await;
}

#[tokio::test]
async fn conflict_with_exchange_of_python_cqrs_is_named() {
    let topology = Topology::python();
    topology.publish(Python::Cqrs5, "pydantic", vec![json!({ "payload": users()[0] })]).await;
    let mut config = topology.config();
    config.declare = DeclareMode::Declare;
    let error = AmqpMessageBroker::connect(config.clone()).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Topology, Some(406)));
    advises(&error_chain(&error), "exchange", &topology.topic);
    let broker = AmqpMessageBroker::new(config).unwrap();
    let error = try_open(&broker, &[&*topology.topic], "ours", |_defaults| {}).await.unwrap_err();
    assert_eq!(error.kind(), SubscribeErrorKind::Conflict);
    advises(&error_chain(&error), "exchange", &topology.topic);
    topology.clean().await;
}

#[tokio::test]
async fn conflict_with_queue_of_faststream_is_named() {
    // The queue alone: the exchange is FastStream's default one.
    let topology = Topology::python();
    let arguments = json!({ "address": amqp::dsn(), "queue": topology.topic, "model": "pydantic" });
    let inbox = Peer::shared(Python::FastStream).subscribe("faststream_amqp", arguments).await;
    inbox.stop().await;
    let broker = topology.broker();
    let error = broker.publish(Message::new(&*topology.topic, "{}")).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Refused);
    advises(&error_chain(&error), "queue", &topology.topic);
    let error = try_open(&broker, &[&*topology.topic], "ours", |request| {
        request.options.insert(topology.options());
    })
    .await
    .unwrap_err();
    assert_eq!(error.kind(), SubscribeErrorKind::Conflict);
    advises(&error_chain(&error), "queue", &topology.topic);
    // A topology with other names still works.
    let other = Topology::python();
    broker.publish(Message::new(&*other.topic, "{}")).await.unwrap();
    other.clean().await;
    topology.clean().await;
}
