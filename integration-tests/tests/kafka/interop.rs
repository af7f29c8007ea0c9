//! Interop tests with the real python-cqrs and FastStream over Kafka.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use cqrs_core::message::content_type;
use cqrs_core::{
    DeadLetterReason, Message, MessageBroker, MessageBrokerExt, Notification, NotificationEvent,
    OnDecodeError, Subscription,
};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker, KafkaSubscription};
use cqrs_protobuf::prost::Message as _;
use cqrs_protobuf::{ProtobufDeserializer, ProtobufEvent, json_or_protobuf};
use integration_tests::consuming::TIMEOUT;
use integration_tests::consuming::fixture::{Fixture, until, until_within};
use integration_tests::consuming::journal::Mark;
use integration_tests::consuming::outcomes::Outcomes;
use integration_tests::consuming::process::Worker;
use integration_tests::consuming::work::{Act, Id, Kind, Work, WorkerOptions};
use integration_tests::interop::user_joined::{self, UserJoined, joined_events};
use integration_tests::interop::{
    CORRELATION, TestService, UserCreated, assert_same, described, events, hex, publish_events,
    spec, specs, users,
};
use integration_tests::kafka::{
    self, create_topic, fresh_topic, java_partition, read_all, read_raw,
};
use integration_tests::peers::{Inbox, Peer, Python};
use integration_tests::servers;
use serde_json::{Value, json};

/// A topic whose order is that of publishing.
async fn topic(test: &str) -> String {
    let topic = fresh_topic(test);
    // The records have the times of their events, some of which are long past.
    create_topic(&topic, 1, &[("retention.ms", "-1")]).await;
    topic
}

fn broker() -> KafkaMessageBroker {
    KafkaMessageBroker::new(KafkaConfig::new([servers::kafka()])).unwrap()
}

/// For a test's only member; a group of more waits for nothing either.
fn subscription(topic: &str, group: &str) -> Subscription {
    let options =
        KafkaSubscription::python_compatible().with_commit_interval(Duration::from_millis(100));
    Subscription::to(topic).group(group).json::<UserCreated>().option(options)
}

// ---- from us to Python

/// Publishes events and lets a peer consume them: the events, and what the peer was given.
async fn told(
    peer: &Peer,
    test: &str,
    what: &str,
    mut arguments: Value,
) -> Vec<(NotificationEvent<UserCreated>, Value)> {
    let topic = topic(test).await;
    let events = events(&topic);
    publish_events(broker(), &events).await;
    arguments["address"] = servers::kafka().into();
    arguments["topic"] = topic.as_str().into();
    let mut inbox = peer.subscribe(what, arguments).await;
    let received = inbox.take(events.len()).await;
    inbox.stop().await;
    kafka::delete_topics(&topic).await;
    events.into_iter().zip(received).collect()
}

/// For each model: the types of the event and of its payload that Python ends up with.
async fn python_cqrs_reads(python: Python, models: &[(&str, &str, &str)]) {
    for (model, event_type, payload_type) in models {
        let peer = Peer::shared(python);
        let told = told(peer, "reads", "consume_kafka", json!({ "model": model })).await;
        for (event, received) in told {
            assert_same(&received, &event);
            assert_eq!(
                (&received["is"], &received["payload_is"]),
                (&json!(event_type), &json!(payload_type))
            );
            assert_eq!(received["naive"], false);
            assert_eq!(received["headers"], json!([["correlation_id", CORRELATION]]));
        }
    }
}

#[tokio::test]
async fn python_cqrs_4_reads_our_events() {
    let pydantic = "PydanticNotificationEvent[UserCreated]";
    python_cqrs_reads(
        Python::Cqrs4,
        &[
            ("pydantic", pydantic, "UserCreated"),
            ("alias", pydantic, "UserCreated"),
            ("pydantic-dict", "PydanticNotificationEvent[dict]", "dict"),
            ("dataclass", "UserCreatedEvent", "UserCreatedData"),
            ("dataclass-dict", "DCNotificationEvent", "dict"),
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
            // The dataclass does not keep the payload's type.
            ("alias", "DCNotificationEvent", "dict"),
            ("pydantic-dict", "PydanticNotificationEvent[dict]", "dict"),
            ("dataclass", "UserCreatedEvent", "UserCreatedData"),
            ("dataclass-dict", "DCNotificationEvent", "dict"),
        ],
    )
    .await;
}

async fn faststream_reads(
    model: Option<&str>,
    read: Option<&str>,
) -> Vec<(NotificationEvent<UserCreated>, Value)> {
    let group = fresh_topic("g");
    let arguments = json!({ "model": model, "read": read, "group": group });
    let told =
        told(Peer::shared(Python::FastStream), "stream", "faststream_kafka", arguments).await;
    for (_, received) in &told {
        assert_eq!(received["correlation_id"], CORRELATION);
        // With one, FastStream would decode a second time what the deserializer made of the body.
        assert_eq!(received["content_type"], Value::Null);
    }
    told
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

#[tokio::test]
async fn faststream_reads_our_events_by_value_deserializer() {
    for (model, is) in [
        ("pydantic", "PydanticNotificationEvent[UserCreated]"),
        ("dataclass", "UserCreatedEvent"),
        ("alias", "DCNotificationEvent"),
    ] {
        for (event, received) in faststream_reads(Some(model), Some("value_deserializer")).await {
            assert_eq!(received["is"], is);
            assert_same(&received, &event);
        }
    }
}

#[tokio::test]
async fn faststream_reads_our_events_through_a_decoder() {
    for (event, received) in faststream_reads(Some("pydantic"), Some("decoder")).await {
        assert_eq!(received["is"], "PydanticNotificationEvent[UserCreated]");
        assert_same(&received, &event);
    }
}

#[tokio::test]
async fn our_bytes_are_those_of_python_cqrs() {
    let topic = topic("bytes").await;
    let events = events(&topic);
    publish_events(broker(), &events).await;
    let written = read_all(&topic).await;
    for python in [Python::Cqrs4, Python::Cqrs5] {
        publish(python, &topic, "pydantic", events.iter().map(spec).collect()).await;
        let all = read_all(&topic).await;
        let theirs = &all[all.len() - events.len()..];
        for (ours, theirs) in written.iter().zip(theirs) {
            let text = |body: &Option<Vec<u8>>| String::from_utf8(body.clone().unwrap()).unwrap();
            assert_eq!(text(&ours.body), text(&theirs.body), "{python:?}");
            assert!(theirs.headers.is_empty() && theirs.key.is_none(), "{theirs:?}");
        }
    }
    kafka::delete_topics(&topic).await;
}

// ---- from Python to us

/// Lets python-cqrs publish, and returns its description of the events.
async fn publish(python: Python, topic: &str, style: &str, events: Vec<Value>) -> Value {
    let arguments = json!({
        "broker": "kafka", "address": servers::kafka(), "topic": topic, "style": style,
        "events": events,
    });
    Peer::shared(python).call("publish", arguments).await
}

/// Lets python-cqrs publish events of ours and some of its own, and reads them. Returns what stands in
/// the topic.
async fn we_read(python: Python, style: &str) -> Vec<String> {
    let (topic, group) = (topic("read").await, fresh_topic("g"));
    let mut service = TestService::open(broker(), subscription(&topic, &group)).await;
    let given = events(&topic);
    let sent = publish(python, &topic, style, specs(&given)).await;
    let sent: Vec<_> = sent.as_array().unwrap().iter().map(described).collect();
    assert_eq!(sent[..given.len()], given, "the peer published what it was asked to");
    assert_eq!(service.take(sent.len()).await, sent);
    service.stop().await;
    let written = read_all(&topic).await;
    kafka::delete_topics(&topic).await;
    written.into_iter().map(|record| String::from_utf8(record.body.unwrap()).unwrap()).collect()
}

fn snake(bodies: &[String]) {
    assert!(
        bodies[0].contains(r#""event_timestamp":"2024-01-02T03:04:05.678901+00:00""#),
        "{bodies:?}"
    );
    assert!(bodies[4].contains(r#""event_timestamp":"2024-01-02T03:04:05.678901""#), "{bodies:?}");
    assert!(bodies[5].contains(r#""event_timestamp":"2024-01-02T03:04:05""#), "{bodies:?}");
}

fn camel(bodies: &[String]) {
    assert!(bodies[0].contains(r#""eventTimestamp":"2024-01-02T03:04:05.678901Z""#), "{bodies:?}");
    assert!(bodies[4].contains(r#""eventTimestamp":"2024-01-02T03:04:05.678901""#), "{bodies:?}");
    for body in bodies {
        let body: Value = serde_json::from_str(body).unwrap();
        let id = body["eventId"].as_str().unwrap();
        assert!(id.len() == 32 && !id.contains('-'), "{id}");
    }
}

#[tokio::test]
async fn we_read_python_cqrs_4_in_snake_form() {
    snake(&we_read(Python::Cqrs4, "pydantic").await);
}

#[tokio::test]
async fn we_read_python_cqrs_4_dataclasses_in_camel_form() {
    let bodies = we_read(Python::Cqrs4, "dataclass").await;
    camel(&bodies);
    assert!(bodies[0].contains(r#""userId":"1""#), "{bodies:?}");
}

#[tokio::test]
async fn we_read_python_cqrs_5_dataclasses_in_camel_form() {
    let bodies = we_read(Python::Cqrs5, "dataclass").await;
    camel(&bodies);
    assert!(bodies[0].contains(r#""userId":"1""#), "{bodies:?}");
}

#[tokio::test]
async fn we_read_python_cqrs_5_dicts_in_camel_form() {
    let bodies = we_read(Python::Cqrs5, "dataclass-dict").await;
    camel(&bodies);
    assert!(bodies[0].contains(r#""user_id":"1""#), "the keys of a dict stay: {bodies:?}");
}

#[tokio::test]
async fn we_read_python_cqrs_5_models_in_snake_form() {
    snake(&we_read(Python::Cqrs5, "pydantic").await);
}

#[tokio::test]
async fn we_read_what_faststream_publishes() {
    let (topic, group) = (topic("faststream").await, fresh_topic("g"));
    let mut service =
        TestService::<UserCreated>::open(broker(), subscription(&topic, &group)).await;
    let events = events(&topic);
    for as_model in [false, true] {
        let arguments = json!({
            "broker": "kafka", "address": servers::kafka(), "topic": topic, "bodies": events,
            "as_model": as_model, "correlation_id": CORRELATION, "key": "the key",
        });
        Peer::shared(Python::FastStream).call("faststream_publish", arguments).await;
        for expected in &events {
            let (event, received) = service.next().await;
            assert_eq!(event, *expected);
            assert_eq!(received.headers.correlation_id(), Some(CORRELATION));
            assert_eq!(received.content_type.as_deref(), Some("application/json"));
            assert_eq!(received.key.as_deref(), Some(&b"the key"[..]));
        }
    }
    service.stop().await;
    kafka::delete_topics(&topic).await;
}

// ---- what is no event

/// The beginning of an event.
const CUT: &[u8] = br#"{"payload":{"user_id":"1","email":"a"#;

/// A tombstone, and bodies that are no event.
fn bad() -> Vec<Option<&'static [u8]>> {
    vec![None, Some(b""), Some(b"null"), Some(b"[]"), Some(CUT)]
}

async fn aiokafka_sends(python: Python, topic: &str, bodies: &[Option<&[u8]>]) {
    let records: Vec<_> = bodies
        .iter()
        .map(|body| json!({ "key": hex(b"the key"), "body": body.map(hex) }))
        .collect();
    let arguments = json!({ "address": servers::kafka(), "topic": topic, "records": records });
    Peer::shared(python).call("send_kafka", arguments).await;
}

/// Waits for the dead letters of a group, and returns their bodies and reasons.
async fn dead_letters(topic: &str, group: &str, count: usize) -> Vec<(Option<Vec<u8>>, String)> {
    let dead = format!("{topic}.{group}.dead");
    until("the dead letters", async || read_raw(&dead).await.len() >= count).await;
    let letters = read_raw(&dead).await.into_iter().map(|(_, letter)| {
        assert_eq!(letter.key.as_deref(), Some(&b"the key"[..]));
        let reason = letter.headers.into_iter().find(|(name, _)| name == "cqrs-dead-letter-reason");
        (letter.body, String::from_utf8(reason.unwrap().1.unwrap()).unwrap())
    });
    letters.collect()
}

#[tokio::test]
async fn undecodable_python_message_follows_the_policy() {
    let (topic, group) = (topic("bad").await, fresh_topic("g"));
    let all = fresh_topic("g-all");
    let default = subscription(&topic, &group);
    let strict = subscription(&topic, &all)
        .on_empty(OnDecodeError::DeadLetter)
        .on_tombstone(OnDecodeError::DeadLetter);
    let mut ears =
        [TestService::open(broker(), default).await, TestService::open(broker(), strict).await];
    let good = events(&topic);
    publish(Python::Cqrs5, &topic, "pydantic", vec![spec(&good[0])]).await;
    aiokafka_sends(Python::Cqrs5, &topic, &bad()).await;
    publish(Python::Cqrs5, &topic, "pydantic", vec![spec(&good[1])]).await;
    for service in &mut ears {
        assert_eq!(service.take(2).await, good[..2], "it goes on");
    }
    let expected = |bodies: &[Option<&[u8]>]| -> Vec<_> {
        let decode = || DeadLetterReason::Decode.to_string();
        bodies.iter().map(|body| (body.map(Vec::from), decode())).collect()
    };
    assert_eq!(dead_letters(&topic, &group, 3).await, expected(&bad()[2..]), "as they came");
    assert_eq!(dead_letters(&topic, &all, 5).await, expected(&bad()));
    for service in ears {
        service.stop().await;
    }
    kafka::delete_topics(&topic).await;
}

/// Publishes bad bodies between two events and lets a peer consume: what it was given for each.
async fn bad_for(peer: &Peer, what: &str, mut arguments: Value) -> Vec<Value> {
    let topic = topic("bad-for").await;
    let good = events(&topic);
    publish_events(broker(), &good[..1]).await;
    let bodies = bad()
        .into_iter()
        .map(|body| kafka::Raw { body: body.map(Vec::from), ..Default::default() });
    kafka::write(&topic, bodies.collect()).await;
    publish_events(broker(), &good[1..2]).await;
    arguments["address"] = servers::kafka().into();
    arguments["topic"] = topic.as_str().into();
    let mut inbox = peer.subscribe(what, arguments).await;
    let mut received = Vec::new();
    // Some of them are never given to a handler.
    while received.last().is_none_or(|last: &Value| last["event_id"] != json!(good[1].event_id)) {
        received.push(inbox.next().await);
    }
    inbox.stop().await;
    kafka::delete_topics(&topic).await;
    assert_same(&received[0], &good[0]);
    assert_same(&received.pop().unwrap(), &good[1]);
    received.remove(0);
    received
}

fn deserialize_errors(received: &[Value], bodies: &[&[u8]]) {
    assert_eq!(received.len(), bodies.len(), "{received:?}");
    for (received, body) in received.iter().zip(bodies) {
        assert_eq!(received["is"], "DeserializeJsonError", "{received}");
        assert_eq!(received["data"], hex(body), "{received}");
    }
}

#[tokio::test]
async fn python_cqrs_gets_undecodable_body_as_a_value() {
    for python in [Python::Cqrs4, Python::Cqrs5] {
        for model in ["pydantic", "dataclass"] {
            let peer = Peer::shared(python);
            let received = bad_for(peer, "consume_kafka", json!({ "model": model })).await;
            assert_eq!(received[0]["is"], "None", "a tombstone");
            deserialize_errors(&received[1..], &[b"", b"null", b"[]", CUT]);
        }
    }
}

async fn bad_for_faststream(read: Option<&str>) -> Vec<Value> {
    let arguments = json!({ "model": "pydantic", "read": read, "group": fresh_topic("g") });
    bad_for(Peer::shared(Python::FastStream), "faststream_kafka", arguments).await
}

#[tokio::test]
async fn faststream_gets_undecodable_body_as_a_value() {
    let received = bad_for_faststream(Some("value_deserializer")).await;
    // Of a tombstone FastStream makes b"" behind the deserializer's back, which is no body of the
    // handler: an error in its log.
    deserialize_errors(&received, &[b"", b"null", b"[]", CUT]);
    // The manual's decoder makes it None again.
    let received = bad_for_faststream(Some("manual")).await;
    assert_eq!(received[0]["is"], "None", "a tombstone");
    deserialize_errors(&received[1..], &[b"", b"null", b"[]", CUT]);
}

#[tokio::test]
async fn faststream_skips_undecodable_body_and_goes_on() {
    let received = bad_for_faststream(None).await;
    assert!(received.is_empty(), "no handler is called: {received:?}");
}

// ---- Protobuf

/// The frame of a Protobuf event. Python passes a header's value to a test as text.
fn protobuf_headers(event: &NotificationEvent<UserJoined>) -> HashMap<String, String> {
    let id = event.event_id.hyphenated().to_string();
    [("event_name", "UserJoined"), ("message_id", &id)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn meetings_of(topic: &str) -> Subscription {
    Subscription::to(topic)
        .group(format!("g-{topic}"))
        .decode::<UserJoined>(ProtobufDeserializer::new())
}

#[tokio::test]
async fn python_reads_our_protobuf() {
    let topic = topic("protobuf").await;
    let events = joined_events(&topic);
    user_joined::publish_events(broker(), &events).await;
    let truncated = Message::new(&*topic, &[0x0a, 0x24, b'3'][..]).with_name("UserJoined");
    let truncated = truncated.with_content_type(content_type::PROTOBUF);
    broker().publish(truncated).await.unwrap();
    user_joined::publish_events(broker(), &events[..1]).await;
    let read = json!({ "model": "protobuf", "address": servers::kafka(), "topic": topic });
    let stream = json!({
        "model": "protobuf", "address": servers::kafka(), "topic": topic,
        "group": format!("stream-{topic}"), "read": "value_deserializer",
    });
    for (python, what, arguments) in
        [(Python::Cqrs5, "consume_kafka", read), (Python::FastStream, "faststream_kafka", stream)]
    {
        let mut inbox = Peer::shared(python).subscribe(what, arguments).await;
        for event in &events {
            let received = inbox.next().await;
            user_joined::assert_same(&received, event);
            let headers: Vec<(String, String)> =
                serde_json::from_value(received["headers"].clone()).unwrap();
            let mut expected = protobuf_headers(event);
            expected.insert("correlation_id".into(), CORRELATION.into());
            assert_eq!(headers.into_iter().collect::<HashMap<_, _>>(), expected, "no content type");
        }
        let error = inbox.next().await;
        assert_eq!(error["is"], "DeserializeProtobufError");
        assert_eq!(error["data"], "0a2433");
        user_joined::assert_same(&inbox.next().await, &events[0]);
        inbox.stop().await;
    }
    kafka::delete_topics(&topic).await;
}

#[tokio::test]
async fn we_read_python_cqrs_5_protobuf() {
    let topic = topic("protobuf").await;
    let mut service = TestService::open(broker(), meetings_of(&topic)).await;
    let events = joined_events(&topic);
    let specs: Vec<_> = events.iter().map(user_joined::spec).collect();
    publish(Python::Cqrs5, &topic, "protobuf", specs.clone()).await;
    for event in &events {
        let (received, message) = service.next().await;
        assert_eq!(received, *event);
        let headers =
            message.headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(headers.collect::<HashMap<_, _>>(), protobuf_headers(event));
        assert_eq!(message.content_type, None);
        let ours = UserJoined::to_message(event).unwrap().encode_to_vec();
        assert_eq!(message.bytes(), ours, "byte for byte");
    }
    aiokafka_sends(Python::Cqrs5, &topic, &[Some(&[0x0a, 0x24, b'3'])]).await;
    publish(Python::Cqrs5, &topic, "protobuf", specs[..1].to_vec()).await;
    assert_eq!(service.next().await.0, events[0]);
    let dead = dead_letters(&topic, &format!("g-{topic}"), 1).await;
    assert_eq!(dead, [(Some(vec![0x0a, 0x24, b'3']), "decode".to_owned())]);
    service.stop().await;
    kafka::delete_topics(&topic).await;
}

#[tokio::test]
async fn we_read_json_and_protobuf_from_one_topic() {
    let topic = topic("either").await;
    let either = Subscription::to(&*topic).group(format!("g-{topic}"));
    let mut service =
        TestService::open(broker(), either.decode(json_or_protobuf::<UserJoined>())).await;
    let events = joined_events(&topic);
    publish(Python::Cqrs5, &topic, "protobuf", vec![user_joined::spec(&events[0])]).await;
    aiokafka_sends(Python::Cqrs5, &topic, &[Some(&serde_json::to_vec(&events[1]).unwrap())]).await;
    publish(Python::Cqrs5, &topic, "protobuf", vec![user_joined::spec(&events[2])]).await;
    assert_eq!(service.take(3).await, events);
    service.stop().await;
    kafka::delete_topics(&topic).await;
}

// ---- keys and groups

#[tokio::test]
async fn a_key_goes_to_aiokafkas_partition() {
    let topic = fresh_topic("partitions");
    create_topic(&topic, 7, &[]).await;
    let mut keys: Vec<String> = (0..200)
        .map(|n| match n % 4 {
            0 => n.to_string(),
            1 => format!("user-{n}"),
            2 => format!("\u{43a}\u{43b}\u{44e}\u{447}-\u{1f980}-{n}"),
            _ => "long".repeat(n) + &n.to_string(),
        })
        .collect();
    keys.push(String::new());
    let mut expected = HashMap::new();
    let broker = broker();
    for key in &keys {
        let receipt = broker.enqueue(Message::new(&*topic, "{}").with_key(key.clone())).await;
        let partition = receipt.unwrap().await.unwrap().partition.unwrap();
        assert_eq!(partition, java_partition(key.as_bytes(), 7), "{key:?}");
        expected.insert(key.clone().into_bytes(), partition);
    }
    let records: Vec<_> =
        keys.iter().map(|key| json!({ "key": hex(key.as_bytes()), "body": hex(b"{}") })).collect();
    for python in [Python::Cqrs5, Python::FastStream] {
        let arguments = json!({ "address": servers::kafka(), "topic": topic, "records": records });
        let partitions = Peer::shared(python).call("send_kafka", arguments).await;
        for (key, partition) in keys.iter().zip(partitions.as_array().unwrap()) {
            assert_eq!(*partition, expected[key.as_bytes()], "{python:?}: {key:?}");
        }
    }
    let written = read_all(&topic).await;
    assert_eq!(written.len(), 3 * keys.len());
    for record in written {
        assert_eq!(record.partition, expected[&record.key.unwrap()]);
    }
    assert_eq!(expected.values().collect::<HashSet<_>>().len(), 7);
    kafka::delete_topics(&topic).await;
}

/// A worker of ours and a member of aiokafka in one group.
struct Shared {
    fixture: Fixture,
    ours: Outcomes,
    theirs: HashSet<Id>,
    /// Partitions of the Python member, once it has been given some.
    assigned: Option<usize>,
    published: usize,
}

impl Shared {
    async fn new(test: &str) -> Self {
        let fixture = Fixture::new(Kind::Kafka, env!("CARGO_BIN_EXE_worker"), test, 4).await;
        let ours = fixture.outcomes();
        Self { fixture, ours, theirs: HashSet::new(), assigned: None, published: 0 }
    }

    /// Ours, which is the first member.
    async fn worker(&mut self) -> Worker {
        let options = WorkerOptions {
            session_timeout_ms: SESSION.as_millis() as u64,
            handler_ms: (0, 20),
            ..self.fixture.options()
        };
        self.fixture.start(&options, &mut self.ours).await
    }

    /// Theirs, whose handler takes so long; returns when each has half of the partitions.
    async fn joined<'p>(&mut self, peer: &'p Peer, take_ms: u64) -> Inbox<'p> {
        let arguments = json!({
            "address": servers::kafka(), "topic": self.fixture.topic, "group": self.fixture.group,
            "session_ms": SESSION.as_millis() as u64, "take_ms": take_ms,
        });
        let mut inbox = peer.subscribe("join_group", arguments).await;
        until("the partitions to be shared", async || {
            self.hear(&mut inbox);
            self.assigned == Some(2)
        })
        .await;
        inbox
    }

    async fn publish(&mut self, works: impl IntoIterator<Item = Work>) {
        self.published += self.fixture.publish(works).await.confirmed.len();
    }

    fn hear(&mut self, inbox: &mut Inbox<'_>) {
        for heard in inbox.drain() {
            if let Some(body) = heard["body"].as_str() {
                let event: NotificationEvent<Work> = serde_json::from_str(body).unwrap();
                self.theirs.insert(event.payload.id());
            } else if let Some(partitions) = heard["assigned"].as_array() {
                self.assigned = Some(partitions.len());
            }
        }
    }

    /// The messages that our handlers finished.
    fn ended(&mut self) -> HashSet<Id> {
        let ended = self.ours.refresh().lines().iter().filter(|line| line.mark == Mark::End);
        ended.map(|line| line.id.clone()).collect()
    }

    /// Waits until everything that was published is handled, here or there.
    async fn all_handled(&mut self, inbox: &mut Inbox<'_>) {
        until_within(2 * TIMEOUT, "all to be handled", async || {
            self.hear(inbox);
            self.ended().union(&self.theirs).count() == self.published
        })
        .await;
    }

    /// Waits until the group has committed metadata with this in it.
    async fn metadata(&self, part: &str) {
        until(part, async || {
            for partition in 0..4 {
                let (_, metadata) =
                    kafka::committed(&self.fixture.group, &self.fixture.topic, partition).await;
                if metadata.contains(part) {
                    return true;
                }
            }
            false
        })
        .await;
    }
}

/// The least that the broker takes (`group.min.session.timeout.ms`).
const SESSION: Duration = Duration::from_secs(6);

#[tokio::test]
async fn python_member_takes_over_when_ours_is_killed() {
    let mut shared = Shared::new("shared-python").await;
    let worker = shared.worker().await;
    let peer = Peer::start(Python::Cqrs5);
    let mut inbox = shared.joined(&peer, 1).await;
    shared.publish(Work::over(40, 400)).await;
    shared.all_handled(&mut inbox).await;
    assert!(!shared.ended().is_empty() && !shared.theirs.is_empty(), "both have some");
    // Ours keeps running some and finishes later ones, which its metadata records.
    let slow = (0..20).map(|n| Work::new(format!("slow{n}"), 0).act(Act::Take(120_000)));
    shared.publish(slow).await;
    shared.publish((0..400).map(|n| Work::new(format!("quick{n}"), 0))).await;
    shared.metadata(";d=").await;
    worker.kill().await;
    shared.all_handled(&mut inbox).await;
    assert_eq!(shared.assigned, Some(4));
    shared.fixture.until_settled(shared.published).await;
    inbox.stop().await;
    shared.fixture.clean().await;
}

#[tokio::test]
async fn ours_takes_over_when_a_python_member_is_killed() {
    let mut shared = Shared::new("shared-ours").await;
    let worker = shared.worker().await;
    let peer = Peer::start(Python::FastStream);
    // So slowly that it still has some of the second ones when all of them are published.
    let mut inbox = shared.joined(&peer, 30).await;
    shared.publish(Work::over(40, 400)).await;
    shared.all_handled(&mut inbox).await;
    assert!(!shared.ended().is_empty() && !shared.theirs.is_empty(), "both have some");
    shared.metadata("handled by Python").await;
    shared.publish((0..2_000).map(|n| Work::new(format!("more{n}"), 0))).await;
    peer.kill();
    shared.hear(&mut inbox);
    // About 200 of the first ones, and of its 1,000 some.
    assert!(shared.theirs.len() < 900, "{} handled: it was killed too late", shared.theirs.len());
    shared.all_handled(&mut inbox).await;
    shared.fixture.until_settled(shared.published).await;
    let partitions = shared.ours.lines().iter().filter_map(|line| Some(line.place?.0));
    assert_eq!(partitions.collect::<HashSet<_>>().len(), 4);
    worker.stop().await;
    shared.fixture.clean().await;
}

#[tokio::test]
async fn group_is_shared_with_faststream_by_default() {
    let (topic, group) = (fresh_topic("shared-stream"), fresh_topic("g"));
    create_topic(&topic, 4, &[]).await;
    let mut service =
        TestService::<UserCreated>::open(broker(), subscription(&topic, &group)).await;
    let arguments = json!({
        "address": servers::kafka(), "topic": topic, "group": group, "model": "pydantic",
    });
    let mut inbox = Peer::shared(Python::FastStream).subscribe("faststream_kafka", arguments).await;
    let publisher = broker();
    let publish = async || {
        let mut sent = HashSet::new();
        for n in 0..40 {
            let user = UserCreated { user_id: n.to_string(), ..users()[0].clone() };
            let event = NotificationEvent::new(user).with_topic(topic.clone());
            sent.insert(event.event_id.to_string());
            let mut message = Message::new(&*topic, serde_json::to_vec(&event).unwrap());
            message.key = event.payload.key();
            publisher.publish(message).await.unwrap();
        }
        sent
    };
    let (mut sent, mut ours, mut theirs) = (HashSet::new(), HashSet::new(), HashSet::new());
    let hear = |theirs: &mut HashSet<String>, inbox: &mut Inbox<'_>| {
        let heard = inbox.drain().into_iter();
        theirs.extend(heard.map(|heard| heard["event_id"].as_str().unwrap().to_owned()));
    };
    until("both to handle some, and nothing to be lost", async || {
        if ours.is_empty() || theirs.is_empty() {
            sent.extend(publish().await);
        }
        ours.extend(service.drain().into_iter().map(|event| event.event_id.to_string()));
        hear(&mut theirs, &mut inbox);
        !ours.is_empty() && !theirs.is_empty() && ours.union(&theirs).count() == sent.len()
    })
    .await;
    // Ours leaves, and its metadata does not disturb the peer.
    service.stop().await;
    let more = publish().await;
    until("the rest to be theirs", async || {
        hear(&mut theirs, &mut inbox);
        more.is_subset(&theirs)
    })
    .await;
    inbox.stop().await;
    kafka::delete_topics(&topic).await;
}
