//! Interop tests with the real python-cqrs and FastStream over RabbitMQ.

use std::collections::HashMap;

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, AmqpSubscription, DeclareMode, ErrorKind};
use cqrs_core::consume::SubscribeErrorKind;
use cqrs_core::message::content_type;
use cqrs_core::{
    DeadLetterReason, Message, MessageBrokerExt, NotificationEvent, OnDecodeError,
    PublishErrorKind, Retry, Subscription,
};
use cqrs_protobuf::prost::Message as _;
use cqrs_protobuf::{ProtobufDeserializer, ProtobufEvent};
use integration_tests::amqp::{self, Raw, fresh, header};
use integration_tests::consuming::fixture::until;
use integration_tests::consuming::try_open;
use integration_tests::interop::user_joined::{self, UserJoined, joined_events};
use integration_tests::interop::{
    CORRELATION, TestService, UserCreated, assert_same, described, events, hex, publish_events,
    spec, specs, users,
};
use integration_tests::peers::{Inbox, Peer, Python};
use serde_json::{Value, json};

use cqrs_testkit::error_chain;

/// The topology of a test: a topic, which is the name of its queue and of its exchange.
struct Topology {
    topic: String,
    mode: DeclareMode,
}

impl Topology {
    /// Declared as python-cqrs does.
    fn python(test: &str) -> Self {
        Self { topic: fresh(test), mode: DeclareMode::PythonCompatible }
    }

    /// Declared as FastStream does.
    fn faststream(test: &str) -> Self {
        Self { topic: fresh(test), mode: DeclareMode::Declare }
    }

    fn config(&self) -> AmqpConfig {
        let mut config = amqp::config(&self.topic);
        config.declare = self.mode;
        // In the order of publishing, whatever the key.
        config.channels_per_connection = 1;
        config
    }

    fn broker(&self) -> AmqpMessageBroker {
        AmqpMessageBroker::new(self.config()).unwrap()
    }

    fn options(&self) -> AmqpSubscription {
        match self.mode {
            DeclareMode::PythonCompatible => AmqpSubscription::python_compatible(),
            _ => AmqpSubscription::faststream_compatible(),
        }
    }

    fn subscription(&self) -> Subscription {
        let subscription = Subscription::to(&*self.topic).group("ours").json::<UserCreated>();
        subscription.retry(Retry::none()).option(self.options())
    }

    async fn service(&self) -> TestService<UserCreated> {
        TestService::open(self.broker(), self.subscription()).await
    }

    /// Lets a peer consume.
    async fn inbox<'p>(&self, peer: &'p Peer, what: &str, mut arguments: Value) -> Inbox<'p> {
        arguments["address"] = amqp::dsn().into();
        arguments["queue"] = self.topic.as_str().into();
        if what == "faststream_amqp" {
            arguments["exchange"] = self.topic.as_str().into();
        }
        peer.subscribe(what, arguments).await
    }

    /// Lets python-cqrs publish, and returns its description of the events.
    async fn publish(&self, python: Python, style: &str, events: Vec<Value>) -> Value {
        let arguments = json!({
            "broker": "amqp", "address": amqp::dsn(), "exchange": self.topic, "topic": self.topic,
            "style": style, "events": events,
        });
        Peer::shared(python).call("publish", arguments).await
    }

    /// Lets FastStream publish.
    async fn stream(&self, events: &[NotificationEvent<UserCreated>], as_model: bool) {
        let arguments = json!({
            "broker": "amqp", "address": amqp::dsn(), "exchange": self.topic, "topic": self.topic,
            "bodies": events, "as_model": as_model, "correlation_id": CORRELATION,
        });
        Peer::shared(Python::FastStream).call("faststream_publish", arguments).await;
    }

    /// Lets aio-pika publish bodies as they are.
    async fn send(&self, bodies: &[&[u8]]) {
        let bodies: Vec<_> = bodies.iter().map(|body| hex(body)).collect();
        let arguments = json!({
            "address": amqp::dsn(), "exchange": self.topic, "routing_key": self.topic,
            "bodies": bodies,
        });
        Peer::shared(Python::Cqrs5).call("send_amqp", arguments).await;
    }

    async fn clean(self) {
        let dead = format!("{}.dead", self.topic);
        Raw::connect().await.clean(&[&self.topic, &dead], &[&self.topic]).await;
    }
}

// ---- from us to Python

/// Publishes events to a peer: the events, and what the peer was given.
async fn told(
    topology: Topology,
    python: Python,
    what: &str,
    arguments: Value,
) -> Vec<(NotificationEvent<UserCreated>, Value)> {
    let mut inbox = topology.inbox(Peer::shared(python), what, arguments).await;
    let events = events(&topology.topic);
    publish_events(topology.broker(), &events).await;
    let received = inbox.take(events.len()).await;
    inbox.stop().await;
    topology.clean().await;
    for (event, received) in events.iter().zip(&received) {
        assert_eq!(received["correlation_id"], CORRELATION);
        assert_eq!(received["content_type"], "application/json");
        let key = ["message_key", event.payload.user_id.as_str()];
        assert_eq!(received["headers"], json!([["correlation_id", CORRELATION], key]));
    }
    events.into_iter().zip(received).collect()
}

/// For each model: the types of the event and of its payload that Python ends up with.
async fn python_cqrs_reads(python: Python, models: &[(&str, &str, &str)]) {
    for (model, event_type, payload_type) in models {
        let arguments = json!({ "model": model });
        for (event, received) in
            told(Topology::python("reads"), python, "consume_amqp", arguments).await
        {
            assert_same(&received, &event);
            let types = (&received["is"], &received["payload_is"]);
            assert_eq!(types, (&json!(event_type), &json!(payload_type)));
            assert_eq!(received["naive"], false);
            assert_eq!(received["message_id"], json!(event.event_id));
        }
    }
}

#[tokio::test]
async fn python_cqrs_4_reads_our_events() {
    python_cqrs_reads(
        Python::Cqrs4,
        &[
            ("pydantic", "PydanticNotificationEvent[UserCreated]", "UserCreated"),
            ("dataclass", "UserCreatedEvent", "UserCreatedData"),
        ],
    )
    .await;
}

#[tokio::test]
async fn python_cqrs_5_reads_our_events() {
    python_cqrs_reads(
        Python::Cqrs5,
        &[
            ("pydantic", "PydanticNotificationEvent[UserCreated]", "UserCreated"),
            ("dataclass", "UserCreatedEvent", "UserCreatedData"),
        ],
    )
    .await;
}

async fn faststream_reads(
    model: Option<&str>,
    read: Option<&str>,
) -> Vec<(NotificationEvent<UserCreated>, Value)> {
    let arguments = json!({ "model": model, "read": read });
    told(Topology::faststream("stream"), Python::FastStream, "faststream_amqp", arguments).await
}

#[tokio::test]
async fn faststream_reads_our_events_as_pydantic_models() {
    for (event, received) in faststream_reads(Some("pydantic"), None).await {
        assert_eq!(received["is"], "PydanticNotificationEvent[UserCreated]");
        assert_same(&received, &event);
    }
}

#[tokio::test]
async fn faststream_reads_our_events_without_a_model() {
    for (event, received) in faststream_reads(None, None).await {
        assert_eq!(received["value"], serde_json::to_value(&event).unwrap());
    }
}

/// The topology for a deserializer with RabbitMQ. With the one that the manual of python-cqrs names,
/// `parser`, FastStream 0.7 cannot work.
#[tokio::test]
async fn faststream_reads_our_events_through_a_decoder() {
    for (model, is) in
        [("pydantic", "PydanticNotificationEvent[UserCreated]"), ("dataclass", "UserCreatedEvent")]
    {
        for (event, received) in faststream_reads(Some(model), Some("decoder")).await {
            assert_eq!(received["is"], is);
            assert_same(&received, &event);
        }
    }
}

#[tokio::test]
async fn our_bytes_are_those_of_python_cqrs() {
    let topology = Topology::python("bytes");
    let raw = Raw::connect().await;
    let events = events(&topology.topic);
    publish_events(topology.broker(), &events).await;
    let ours = raw.drain(&topology.topic).await;
    for python in [Python::Cqrs4, Python::Cqrs5] {
        topology.publish(python, "pydantic", events.iter().map(spec).collect()).await;
        let theirs = raw.drain(&topology.topic).await;
        for (ours, theirs) in ours.iter().zip(theirs) {
            let text = |body: &[u8]| String::from_utf8(body.to_vec()).unwrap();
            assert_eq!(text(&ours.data), text(&theirs.data), "{python:?}");
        }
    }
    raw.clean(&[&topology.topic], &[]).await;
}

// ---- from Python to us

/// Lets python-cqrs publish events of ours and some of its own, and reads them.
async fn we_read(python: Python, style: &str) {
    let topology = Topology::python("read");
    let mut service = topology.service().await;
    let given = events(&topology.topic);
    let sent = topology.publish(python, style, specs(&given)).await;
    let sent: Vec<_> = sent.as_array().unwrap().iter().map(described).collect();
    assert_eq!(sent[..given.len()], given, "the peer published what it was asked to");
    let is_camel = style.starts_with("dataclass");
    for expected in sent {
        let (event, received) = service.next().await;
        assert_eq!(event, expected);
        let body = String::from_utf8(received.bytes().to_vec()).unwrap();
        let id = if is_camel { r#""eventId":"# } else { r#""event_id":"# };
        let shown = match is_camel {
            true => event.event_id.simple().to_string(),
            false => event.event_id.hyphenated().to_string(),
        };
        assert!(body.contains(&format!("{id}\"{shown}\"")), "{body}");
        // python-cqrs names neither type nor content type, and its message id is not the event's.
        assert_eq!((received.name.as_deref(), received.content_type.as_deref()), (None, None));
        assert_ne!(received.id.as_deref(), Some(&*shown));
    }
    service.stop().await;
    topology.clean().await;
}

#[tokio::test]
async fn we_read_python_cqrs_4_in_snake_form() {
    we_read(Python::Cqrs4, "pydantic").await;
}

#[tokio::test]
async fn we_read_python_cqrs_4_dataclasses_in_camel_form() {
    we_read(Python::Cqrs4, "dataclass").await;
}

#[tokio::test]
async fn we_read_python_cqrs_5_dataclasses_in_camel_form() {
    we_read(Python::Cqrs5, "dataclass").await;
}

#[tokio::test]
async fn we_read_python_cqrs_5_dicts_in_camel_form() {
    we_read(Python::Cqrs5, "dataclass-dict").await;
}

#[tokio::test]
async fn we_read_python_cqrs_5_models_in_snake_form() {
    we_read(Python::Cqrs5, "pydantic").await;
}

#[tokio::test]
async fn we_read_what_faststream_publishes() {
    let topology = Topology::faststream("faststream");
    let mut service = topology.service().await;
    let events = events(&topology.topic);
    for as_model in [false, true] {
        topology.stream(&events, as_model).await;
        for expected in &events {
            let (event, received) = service.next().await;
            assert_eq!(event, *expected);
            assert_eq!(received.headers.correlation_id(), Some(CORRELATION));
            assert_eq!(received.content_type.as_deref(), Some("application/json"));
        }
    }
    service.stop().await;
    topology.clean().await;
}

// ---- what is no event

/// Bodies that are no event; the last is the beginning of one.
const BAD: [&[u8]; 4] = [b"", b"null", b"[]", br#"{"payload":{"user_id":"1","email":"a"#];

#[tokio::test]
async fn undecodable_python_message_follows_the_policy() {
    for (strict, expected) in [(false, &BAD[1..]), (true, &BAD[..])] {
        let topology = Topology::python("bad");
        let subscription = match strict {
            true => topology.subscription().on_empty(OnDecodeError::DeadLetter),
            false => topology.subscription(),
        };
        let mut service = TestService::<UserCreated>::open(topology.broker(), subscription).await;
        let good = events(&topology.topic);
        topology.publish(Python::Cqrs5, "pydantic", vec![spec(&good[0])]).await;
        topology.send(&BAD).await;
        topology.publish(Python::Cqrs5, "pydantic", vec![spec(&good[1])]).await;
        assert_eq!(service.take(2).await, good[..2], "it goes on");
        service.stop().await;
        let raw = Raw::connect().await;
        let dead = raw.drain(&format!("{}.dead", topology.topic)).await;
        let bodies: Vec<_> = dead.iter().map(|letter| &letter.data[..]).collect();
        assert_eq!(bodies, expected, "as they came");
        for letter in &dead {
            let reason = header(letter, "cqrs-dead-letter-reason");
            assert_eq!(reason.as_deref(), Some(DeadLetterReason::Decode.as_str()));
        }
        assert_eq!(raw.count(&topology.topic).await, 0);
        raw.clean(&[], &[]).await;
        topology.clean().await;
    }
}

/// Publishes bad bodies between two events to a peer: what it was given for them.
async fn bad_for(topology: Topology, python: Python, what: &str, arguments: Value) -> Vec<Value> {
    let mut inbox = topology.inbox(Peer::shared(python), what, arguments).await;
    let good = events(&topology.topic);
    let broker = topology.broker();
    publish_events(topology.broker(), &good[..1]).await;
    for body in BAD {
        broker.publish(Message::new(&*topology.topic, body)).await.unwrap();
    }
    publish_events(topology.broker(), &good[1..2]).await;
    let mut received = Vec::new();
    while received.last().is_none_or(|last: &Value| last["event_id"] != json!(good[1].event_id)) {
        received.push(inbox.next().await);
    }
    inbox.stop().await;
    topology.clean().await;
    assert_same(&received[0], &good[0]);
    assert_same(&received.pop().unwrap(), &good[1]);
    received.remove(0);
    received
}

fn deserialize_errors(received: &[Value]) {
    assert_eq!(received.len(), BAD.len(), "{received:?}");
    for (received, body) in received.iter().zip(BAD) {
        assert_eq!(received["is"], "DeserializeJsonError", "{received}");
        assert_eq!(received["data"], hex(body), "{received}");
    }
}

#[tokio::test]
async fn python_cqrs_gets_undecodable_body_as_a_value() {
    for python in [Python::Cqrs4, Python::Cqrs5] {
        for model in ["pydantic", "dataclass"] {
            let topology = Topology::python("bad-for");
            let arguments = json!({ "model": model });
            deserialize_errors(&bad_for(topology, python, "consume_amqp", arguments).await);
        }
    }
}

#[tokio::test]
async fn faststream_gets_undecodable_body_and_goes_on() {
    let reads = async |read| {
        let arguments = json!({ "model": "pydantic", "read": read });
        let topology = Topology::faststream("bad-for");
        bad_for(topology, Python::FastStream, "faststream_amqp", arguments).await
    };
    deserialize_errors(&reads(Some("decoder")).await);
    let received = reads(None).await;
    assert!(received.is_empty(), "no handler is called: {received:?}");
}

// ---- Protobuf

/// A message that is cut.
const CUT: [u8; 3] = [0x0a, 0x24, b'3'];

fn protobuf_headers(event: &NotificationEvent<UserJoined>) -> HashMap<String, String> {
    let id = event.event_id.hyphenated().to_string();
    [("event_name", "UserJoined"), ("message_id", &id)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

#[tokio::test]
async fn python_reads_our_protobuf() {
    for (python, topology, what, read) in [
        (Python::Cqrs5, Topology::python("protobuf"), "consume_amqp", None),
        (Python::FastStream, Topology::faststream("protobuf"), "faststream_amqp", Some("decoder")),
    ] {
        let mut arguments = json!({ "model": "protobuf" });
        if let Some(read) = read {
            arguments["read"] = read.into();
        }
        let mut inbox = topology.inbox(Peer::shared(python), what, arguments).await;
        let events = joined_events(&topology.topic);
        user_joined::publish_events(topology.broker(), &events).await;
        let cut =
            Message::new(&*topology.topic, &CUT[..]).with_content_type(content_type::PROTOBUF);
        topology.broker().publish(cut).await.unwrap();
        user_joined::publish_events(topology.broker(), &events[..1]).await;
        for event in &events {
            let received = inbox.next().await;
            user_joined::assert_same(&received, event);
            assert_eq!(received["content_type"], "application/x-protobuf");
            let headers: Vec<(String, String)> =
                serde_json::from_value(received["headers"].clone()).unwrap();
            let mut expected = protobuf_headers(event);
            expected.insert("correlation_id".into(), CORRELATION.into());
            assert_eq!(headers.into_iter().collect::<HashMap<_, _>>(), expected);
        }
        let error = inbox.next().await;
        assert_eq!(
            (&error["is"], &error["data"]),
            (&json!("DeserializeProtobufError"), &json!(hex(&CUT)))
        );
        user_joined::assert_same(&inbox.next().await, &events[0]);
        inbox.stop().await;
        topology.clean().await;
    }
}

#[tokio::test]
async fn we_read_python_cqrs_5_protobuf() {
    let topology = Topology::python("protobuf");
    let subscription = Subscription::to(&*topology.topic).group("ours").retry(Retry::none());
    let subscription =
        subscription.decode::<UserJoined>(ProtobufDeserializer::new()).option(topology.options());
    let mut service = TestService::open(topology.broker(), subscription).await;
    let events = joined_events(&topology.topic);
    let specs: Vec<_> = events.iter().map(user_joined::spec).collect();
    topology.publish(Python::Cqrs5, "protobuf", specs.clone()).await;
    for event in &events {
        let (received, message) = service.next().await;
        assert_eq!(received, *event);
        let headers =
            message.headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(headers.collect::<HashMap<_, _>>(), protobuf_headers(event));
        assert_eq!(message.content_type.as_deref(), Some("application/x-protobuf"));
        let ours = UserJoined::to_message(event).unwrap().encode_to_vec();
        assert_eq!(message.bytes(), ours, "byte for byte");
    }
    topology.send(&[&CUT]).await;
    topology.publish(Python::Cqrs5, "protobuf", specs[..1].to_vec()).await;
    assert_eq!(service.next().await.0, events[0]);
    service.stop().await;
    let raw = Raw::connect().await;
    let dead = raw.drain(&format!("{}.dead", topology.topic)).await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].data, CUT);
    raw.clean(&[], &[]).await;
    topology.clean().await;
}

// ---- declarations

#[tokio::test]
async fn our_side_uses_topology_of_python_cqrs() {
    for python in [Python::Cqrs4, Python::Cqrs5] {
        let topology = Topology::python("python-first");
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
        let topology = Topology::python("producer-first");
        let events = events(&topology.topic);
        publish_events(topology.broker(), &events[..1]).await;
        topology.publish(python, "pydantic", vec![spec(&events[1])]).await;
        let arguments = json!({ "model": "pydantic" });
        let mut inbox = topology.inbox(Peer::shared(python), "consume_amqp", arguments).await;
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
        let topology = Topology::python("consumer-first");
        let mut service = topology.service().await;
        let arguments = json!({ "model": "pydantic" });
        let mut inbox = topology.inbox(Peer::shared(python), "consume_amqp", arguments).await;
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
    let peer = Peer::shared(Python::FastStream);
    for we_declare in [true, false] {
        let topology = Topology::faststream("shared");
        let arguments = json!({ "model": "pydantic" });
        let (mut service, mut inbox);
        if we_declare {
            service = topology.service().await;
            inbox = topology.inbox(peer, "faststream_amqp", arguments).await;
        } else {
            inbox = topology.inbox(peer, "faststream_amqp", arguments).await;
            service = topology.service().await;
        }
        let sent: Vec<_> = (0..25).flat_map(|_| events(&topology.topic)).collect();
        publish_events(topology.broker(), &sent[..50]).await;
        topology.stream(&sent[50..], false).await;
        once_in_total(&mut service, &mut inbox, &sent).await;
        inbox.stop().await;
        service.stop().await;
        topology.clean().await;
    }
}

#[tokio::test]
async fn our_side_uses_topology_of_faststream_passively() {
    let topology = Topology::faststream("passive");
    let peer = Peer::shared(Python::FastStream);
    let model = json!({ "model": "pydantic" });
    let inbox = topology.inbox(peer, "faststream_amqp", model).await;
    inbox.stop().await;
    let mut config = topology.config();
    config.declare = DeclareMode::Passive;
    let broker = AmqpMessageBroker::connect(config).await.unwrap();
    let passive = topology.subscription().option(topology.options().with_passive(true));
    let mut service = TestService::open(topology.broker(), passive).await;
    let events = events(&topology.topic);
    publish_events(broker, &events).await;
    assert_eq!(service.take(events.len()).await, events);
    service.stop().await;
    topology.clean().await;
}

#[tokio::test]
async fn faststream_uses_our_topology_passively() {
    let topology = Topology { topic: fresh("passive"), mode: DeclareMode::Declare };
    // Ours, which is not what FastStream would declare.
    let own = topology.subscription().option(AmqpSubscription::new().with_queue(&*topology.topic));
    TestService::<UserCreated>::open(topology.broker(), own).await.stop().await;
    let arguments = json!({ "model": "pydantic", "declare": false });
    let mut inbox =
        topology.inbox(Peer::shared(Python::FastStream), "faststream_amqp", arguments).await;
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
    let topology = Topology::faststream("nobody");
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
    let topology = Topology::python("conflict");
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
    assert_eq!((error.kind(), error.reply_code()), (ErrorKind::Topology, Some(406)));
    advises(&error_chain(&error), "queue", &topology.topic);
    topology.clean().await;
}

#[tokio::test]
async fn conflict_with_exchange_of_python_cqrs_is_named() {
    let topology = Topology::python("conflict");
    topology.publish(Python::Cqrs5, "pydantic", vec![json!({ "payload": users()[0] })]).await;
    let mut config = topology.config();
    config.declare = DeclareMode::Declare;
    let error = AmqpMessageBroker::connect(config.clone()).await.unwrap_err();
    assert_eq!((error.kind(), error.reply_code()), (ErrorKind::Topology, Some(406)));
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
    let topology = Topology::python("conflict");
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
    let other = Topology { topic: fresh("conflict"), mode: DeclareMode::PythonCompatible };
    broker.publish(Message::new(&*other.topic, "{}")).await.unwrap();
    other.clean().await;
    topology.clean().await;
}
