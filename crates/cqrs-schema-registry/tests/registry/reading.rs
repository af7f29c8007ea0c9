//! Reading framed messages with a registry in memory: checks, outages, caching.

use std::time::Duration;

use cqrs_core::consume::Incoming;
use cqrs_core::service::{DecodeError, ServiceReport, StopHandle};
use cqrs_core::{
    HandlerError, MemoryBroker, Message, MessageBrokerExt, NotificationEvent, Received, Retry,
    Service, Subscription, each,
};
use cqrs_macros::Notification;
use cqrs_schema_registry::{
    EventSchema, Frame, FrameForm, FramedBroker, Framing, MessagePath, OnUnframed, OnUnknownSchema,
    Registration, RegistryDecoder, Schema, SchemaRegistry,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::server::{Fault, Server, guid_of};

fn message(frame: &Frame) -> Incoming {
    Incoming::new("t", [frame.to_bytes(), b"4111".to_vec()].concat())
}

async fn server() -> Server {
    let server = Server::start().await;
    let registry = server.client();
    registry.register("json-value", &Schema::json("{}")).await.unwrap();
    registry.register("proto-value", &Schema::protobuf("message A {}")).await.unwrap();
    server.state().asked.clear();
    server
}

/// The message after its frame is removed.
async fn body(decoder: &RegistryDecoder, message: Incoming) -> Result<String, DecodeError> {
    let decoded = decoder.decode(message).await?.unwrap();
    Ok(String::from_utf8(decoded.bytes().to_vec()).unwrap())
}

async fn malformed(decoder: &RegistryDecoder, message: Incoming) -> String {
    match body(decoder, message).await {
        Err(DecodeError::Malformed(text)) => {
            assert!(!text.contains("4111"), "{text}");
            text.into_owned()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn known_schema_passes_and_is_looked_up_once() {
    let server = server().await;
    let registry = server.client();
    let json = RegistryDecoder::json(&registry);
    let protobuf = RegistryDecoder::protobuf(&registry).path(MessagePath::FIRST);
    for _ in 0..3 {
        assert_eq!(body(&json, message(&Frame::new(1))).await.unwrap(), "4111");
        let frame = Frame::new(2).with_path(MessagePath::FIRST);
        assert_eq!(body(&protobuf, message(&frame)).await.unwrap(), "4111");
    }
    assert_eq!(server.state().asked, ["GET /base/schemas/ids/1", "GET /base/schemas/ids/2"]);
}

#[tokio::test]
async fn faulty_message_is_malformed() {
    let server = server().await;
    let registry = server.client();
    let json = RegistryDecoder::json(&registry);
    let text = malformed(&json, Incoming::new("t", "4111")).await;
    assert!(text.contains("no magic byte"), "{text}");
    let text = malformed(&json, message(&Frame::new(2))).await;
    assert_eq!(text, "the schema 2 is of type PROTOBUF, expected JSON");
    let text = malformed(&json, message(&Frame::new(77))).await;
    assert!(text.contains("looking up the schema 77"), "{text}");

    let text = malformed(&json.clone().ids([2_u32, 3]), message(&Frame::new(1))).await;
    assert_eq!(text, "the schema 1 is not one of those taken");
    let second = MessagePath::new([1]).unwrap();
    let protobuf = RegistryDecoder::protobuf(&registry).path(MessagePath::FIRST);
    let text = malformed(&protobuf, message(&Frame::new(2).with_path(second))).await;
    assert_eq!(text, "the schema's message [1], expected [0]");

    let bare = json.on_unframed(OnUnframed::Pass);
    assert_eq!(body(&bare, Incoming::new("t", "{}")).await.unwrap(), "{}");
}

#[tokio::test]
async fn the_subject_is_checked_when_it_is_asked_for() {
    let server = server().await;
    let registry = server.client();
    let of = |subjects: &[&'static str]| {
        RegistryDecoder::json(&registry).subjects(subjects.iter().copied())
    };
    let both = of(&["proto-value", "json-value"]);
    for _ in 0..3 {
        assert_eq!(body(&both, message(&Frame::new(1))).await.unwrap(), "4111");
    }
    let by_guid = message(&Frame::new(guid_of(1)));
    assert_eq!(body(&of(&["json-value"]), by_guid).await.unwrap(), "4111");
    let text = malformed(&of(&["proto-value", "none"]), message(&Frame::new(1))).await;
    assert!(text.contains(r#"under none of the subjects ["proto-value", "none"]"#), "{text}");
}

#[tokio::test]
async fn impossible_id_is_not_looked_up() {
    let server = server().await;
    // The registry's answer to a number that it cannot parse is that of a wrong base URL.
    server.fail(vec![Fault::Answer(404, ""); 10]);
    let json = RegistryDecoder::json(&server.client());
    for id in [0x8000_0000, u32::MAX] {
        let text = malformed(&json, message(&Frame::new(id))).await;
        assert!(text.contains("no registry gives out"), "{text}");
    }
    assert!(server.state().asked.is_empty());
}

#[tokio::test]
async fn invalid_subject_is_not_retried() {
    let server = server().await;
    for subject in ["", ".", ".."] {
        let json = RegistryDecoder::json(&server.client()).subjects([subject]);
        let text = malformed(&json, message(&Frame::new(1))).await;
        assert!(text.contains("cannot be the name of a subject"), "{text}");
    }
}

#[tokio::test]
async fn registry_failure_is_retryable() {
    let server = server().await;
    let registry = server.client();
    let json = RegistryDecoder::json(&registry);
    let hurried = RegistryDecoder::json(&server.hurried_client());
    for (json, fault) in [
        (&json, Fault::Answer(500, "")),
        (&hurried, Fault::Hang),
        (&json, Fault::Answer(403, "")),
        (&json, Fault::Answer(404, "")),
    ] {
        server.fail(vec![fault.clone(); 3]);
        match body(json, message(&Frame::new(1))).await {
            Err(DecodeError::NotNow(_)) => {}
            other => panic!("{fault:?}: {other:?}"),
        }
        server.state().faults.clear();
    }
    let behind = json.clone().on_unknown_schema(OnUnknownSchema::Retry);
    let unknown = body(&behind, message(&Frame::new(77))).await;
    assert!(matches!(unknown, Err(DecodeError::Failed(_))), "{unknown:?}");
    assert_eq!(body(&json, message(&Frame::new(1))).await.unwrap(), "4111");
}

#[tokio::test]
async fn many_messages_of_one_unknown_id_are_one_request() {
    let server = server().await;
    let registry = server.client();
    let json = RegistryDecoder::json(&registry).subjects(["none"]);
    for _ in 0..390 {
        malformed(&json, message(&Frame::new(77))).await;
    }
    assert_eq!(server.state().asked, ["GET /base/schemas/ids/77"]);
    for _ in 0..390 {
        malformed(&json, message(&Frame::new(1))).await;
    }
    assert_eq!(server.state().asked.len(), 3, "the schema, and its place under the subject");

    // Once it is registered it is known.
    malformed(&json, message(&Frame::new(3))).await;
    let registered = registry.register("none", &Schema::json("[]")).await.unwrap();
    assert_eq!(registered.id, 3);
    assert_eq!(body(&json, message(&Frame::new(3))).await.unwrap(), "4111");

    let mut config = server.config();
    config.unknown_schema_ttl = Duration::ZERO;
    let json = RegistryDecoder::json(&SchemaRegistry::new(config).unwrap());
    server.state().asked.clear();
    for _ in 0..2 {
        malformed(&json, message(&Frame::new(77))).await;
    }
    assert_eq!(server.state().asked.len(), 2, "nothing unknown is kept");
}

#[tokio::test]
async fn guid_is_malformed_where_the_registry_has_none() {
    let server = server().await;
    server.state().plain = true;
    let json = RegistryDecoder::json(&server.client());
    let behind = json.clone().on_unknown_schema(OnUnknownSchema::Retry);
    for decoder in [&json, &json, &behind] {
        let text = malformed(decoder, message(&Frame::new(guid_of(1)))).await;
        assert!(text.contains("this registry has no GUIDs"), "{text}");
    }
    assert_eq!(server.state().asked.len(), 2, "the GUID, and whether it is a registry: once");
    for status in [400, 405, 501] {
        server.fail([Fault::Answer(status, "")]);
        let json = RegistryDecoder::json(&server.client());
        malformed(&json, message(&Frame::new(guid_of(1)))).await;
    }

    // A wrong base URL answers alike: no message is lost by it.
    let mut config = server.config();
    config.urls = vec![server.url.replace("/base", "/elsewhere/base")];
    let json = RegistryDecoder::json(&SchemaRegistry::new(config).unwrap());
    let wrong = body(&json, message(&Frame::new(guid_of(1)))).await;
    assert!(matches!(wrong, Err(DecodeError::NotNow(_))), "{wrong:?}");
}

#[tokio::test]
async fn message_without_body_passes_to_the_policies() {
    let server = server().await;
    let json = RegistryDecoder::json(&server.client());
    let mut tombstone = Incoming::new("t", "");
    assert_eq!(json.decode(tombstone.clone()).await.unwrap(), Some(tombstone.clone()));
    let protobuf = RegistryDecoder::protobuf(&server.client());
    let text = malformed(&protobuf, tombstone.clone()).await;
    assert!(text.contains("there are no bytes"), "no message of defaults: {text}");
    tombstone.body = None;
    for decoder in [json, protobuf] {
        let decoded = decoder.decode(tombstone.clone()).await.unwrap();
        assert_eq!(decoded.as_ref(), Some(&tombstone));
    }
    assert!(server.state().asked.is_empty());
    let decoder = RegistryDecoder::protobuf(&server.client());
    let defaults = Incoming::new("t", Frame::new(2).with_path(MessagePath::FIRST).to_bytes());
    assert_eq!(body(&decoder, defaults).await.unwrap(), "", "framed, they are one");
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "users")]
struct UserCreated {
    id: u32,
}

#[tokio::test]
async fn service_reads_both_forms_of_frames() {
    let server = server().await;
    let registry = server.client();
    let broker = MemoryBroker::new();
    let mut framed = Vec::new();
    for form in [FrameForm::Prefix, FrameForm::Header] {
        let framing = Framing::builder(&registry)
            .form(form)
            .registration(Registration::Auto)
            .event(EventSchema::of::<UserCreated>(Schema::json("{}")));
        framed.push(FramedBroker::new(broker.clone(), framing.build().await.unwrap()));
    }
    let (seen, mut sees) = mpsc::unbounded_channel();
    let decoder = RegistryDecoder::json(&registry).subjects(["users-value"]);
    let users = Subscription::to("users").group("g").decoder(decoder.hook()).json::<UserCreated>();
    let handler = each(move |event: NotificationEvent<UserCreated>, _| {
        let seen = seen.clone();
        async move { Ok::<(), HandlerError>(seen.send(event.payload.id)?) }
    });
    // A subscription through the framing broker is the inner one's.
    let service = Service::builder(framed[0].clone()).subscribe(users, handler).build().unwrap();
    let stop = service.stop_handle();
    let running = tokio::spawn(service.run());
    for (id, broker) in [(1, &framed[0]), (2, &framed[1])] {
        let body = serde_json::to_vec(&NotificationEvent::new(UserCreated { id })).unwrap();
        broker.publish(Message::new("users", body).with_name("UserCreated")).await.unwrap();
        assert_eq!(sees.recv().await, Some(id));
    }
    stop.stop();
    running.await.unwrap().unwrap();
}

/// A service with a short retry schedule, what it handles (with the attempt), and one message for it.
async fn reading(
    registry: &SchemaRegistry,
    broker: &MemoryBroker,
) -> (JoinHandle<ServiceReport>, StopHandle, mpsc::UnboundedReceiver<(u32, u32)>) {
    let (seen, sees) = mpsc::unbounded_channel();
    let decoder = RegistryDecoder::json(registry).subjects(["json-value"]);
    let users = Subscription::to("users")
        .group("g")
        .decoder(decoder.hook())
        .json::<UserCreated>()
        .retry(Retry::none().immediate([Duration::from_millis(1); 2]));
    let handler = each(move |event: NotificationEvent<UserCreated>, received: Received| {
        let seen = seen.clone();
        async move { Ok::<(), HandlerError>(seen.send((event.payload.id, received.attempt()))?) }
    });
    let body = serde_json::to_vec(&NotificationEvent::new(UserCreated { id: 7 })).unwrap();
    let framed = [Frame::new(1).to_bytes(), body].concat();
    broker.publish(Message::new("users", framed)).await.unwrap();
    let service = Service::builder(broker.clone()).subscribe(users, handler).build().unwrap();
    let stop = service.stop_handle();
    let run = service.run_until(std::future::pending::<()>());
    (tokio::spawn(async move { run.await.unwrap() }), stop, sees)
}

/// Waits until the server was asked as often as that.
async fn asked(server: &Server, times: usize) {
    let all = async {
        while server.state().asked.len() < times {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("it goes on asking");
}

#[tokio::test]
async fn outage_past_the_retry_schedule_loses_nothing() {
    // An outage, and the number of requests in one round of it.
    for (fault, requests) in [
        (Fault::Answer(503, ""), 3),
        (Fault::Close, 3),
        (Fault::Answer(401, ""), 1),
        (Fault::Answer(403, ""), 1),
        (Fault::Answer(200, "<html>"), 1),
    ] {
        let (server, broker) = (server().await, MemoryBroker::new());
        server.fail(vec![fault.clone(); 1_000]);
        let (running, stop, mut sees) = reading(&server.client(), &broker).await;
        asked(&server, 5 * requests).await; // the schedule ends with the third round
        server.state().faults.clear();
        assert_eq!(sees.recv().await, Some((7, 1)), "{fault:?}: the first attempt");
        stop.stop();
        let counts = running.await.unwrap().subscriptions[0].counts;
        assert_eq!((counts.handled, counts.failed_attempts, counts.dead_lettered), (1, 0, 0));
        assert!(broker.messages("users.g.dead").is_empty());
    }
}

#[tokio::test]
async fn stop_during_an_outage_ends_and_loses_nothing() {
    for fault in [Fault::Answer(401, ""), Fault::Hang] {
        let (server, broker) = (server().await, MemoryBroker::new());
        let first = Fault::Answer(200, r#"{"schema":"{}","schemaType":"JSON"}"#);
        let registry = match fault {
            Fault::Hang => server.hurried_client(),
            _ => server.client(),
        };
        server.fail([first].into_iter().chain(vec![fault; 1_000]));
        let (running, stop, mut sees) = reading(&registry, &broker).await;
        asked(&server, 4).await;
        stop.stop();
        let ended = tokio::time::timeout(Duration::from_secs(20), running).await;
        let counts = ended.expect("in time").unwrap().subscriptions[0].counts;
        assert_eq!((counts.given_back, counts.dead_lettered), (1, 0));
        assert!(sees.recv().await.is_none());
        assert!(broker.subscriber("users", "g").try_recv().is_some(), "it is there again");
    }
}
