//! Tests of the schema registry's client, and of framed messages through a real Kafka.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::service::{StopHandle, Undecodable};
use cqrs_core::{
    HandlerError, Mediator, Notification, NotificationEvent, OnDecodeError, Received, Service,
    Subscription, each,
};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
use cqrs_macros::Notification;
use cqrs_protobuf::{ProtobufDeserializer, ProtobufSerializer};
use cqrs_schema_registry::{
    EventSchema, Frame, FrameForm, Framed, FramedBroker, Framing, MessagePath, Pem, Registration,
    RegistryConfig, RegistryDecoder, RegistryErrorKind, Schema, SchemaRegistry, SchemaVersion,
};
use integration_tests::kafka::{Raw, create_topic, fresh_topic, read_raw, write};
use integration_tests::servers;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use uuid::Uuid;

const TIMEOUT: Duration = Duration::from_secs(60);

const PROTO: &str = "syntax = \"proto3\";\npackage shop;\n\nmessage Other {\n  string x = 1;\n}\n\n\
                     message UserJoined {\n  string user_id = 1;\n  string meeting_id = 2;\n}\n";
const JSON: &str = r#"{"title":"UserCreated","type":"object","additionalProperties":false,
    "properties":{"payload":{"type":"object"},"event_id":{"type":"string"}}}"#;

fn registry() -> SchemaRegistry {
    let mut config = RegistryConfig::new([servers::registry()]);
    // A registry that was just started takes long for its first requests.
    config.timeout = Duration::from_secs(30);
    SchemaRegistry::new(config).unwrap()
}

/// Sets how a subject's versions must fit together, which the client does not do.
async fn set_compatibility(subject: &str, level: &str) {
    let url = servers::registry();
    let (host, path) = url.trim_start_matches("http://").split_once('/').unwrap();
    let body = format!(r#"{{"compatibility":"{level}"}}"#);
    let request = format!(
        "PUT /{path}/config/{subject} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(host).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn schemas_are_registered_and_looked_up() {
    let (registry, topic) = (registry(), fresh_topic("registry"));
    // A comment of its own: the registry has had no such schema.
    for schema in [
        Schema::protobuf(format!("{PROTO}// {topic}\n")),
        Schema::json(JSON.replace("UserCreated", &topic)),
    ] {
        let subject = format!("{topic}-{}", schema.schema_type);
        let missing = registry.lookup(&subject, &schema).await.unwrap_err();
        assert_eq!((missing.kind(), missing.code()), (RegistryErrorKind::NotFound, Some(40401)));
        let registered = registry.register(&subject, &schema).await.unwrap();
        let again = registry.register(&subject, &schema).await.unwrap();
        assert_eq!(again.id, registered.id);
        let found = registry.lookup(&subject, &schema).await.unwrap();
        assert_eq!((found.id, found.version), (registered.id, Some(1)));
        assert_eq!(*registry.schema(registered.id).await.unwrap(), schema);
        for version in [SchemaVersion::Latest, SchemaVersion::Number(1)] {
            let latest = registry.version(&subject, version).await.unwrap();
            assert_eq!((latest.id, &latest.schema), (registered.id, &schema));
        }
        assert!(registry.subjects().await.unwrap().contains(&subject));
        let error = registry.version(&subject, 2).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (RegistryErrorKind::NotFound, Some(40402)));
        let other = Schema::new(schema.schema_type, schema.text.replace("string", "bool"));
        let error = registry.lookup(&subject, &other).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (RegistryErrorKind::NotFound, Some(40403)));
    }
    let error = registry.schema(u32::MAX >> 1).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (RegistryErrorKind::NotFound, Some(40403)));
}

#[tokio::test]
async fn a_schema_may_refer_to_another_one() {
    let (registry, topic) = (registry(), fresh_topic("references"));
    let (shop, party) = (format!("{topic}-shop"), format!("{topic}-party"));
    registry.register(&shop, &Schema::protobuf(PROTO)).await.unwrap();
    let text = "syntax = \"proto3\";\nimport \"shop.proto\";\n\nmessage Party {\n  \
                shop.UserJoined joined = 1;\n}\n";
    let schema = Schema::protobuf(text).with_reference("shop.proto", &shop, 1);
    let id = registry.register(&party, &schema).await.unwrap().id;
    assert_eq!(*registry.schema(id).await.unwrap(), schema);
    assert_eq!(registry.lookup(&party, &schema).await.unwrap().id, id);
    assert_eq!(registry.version(&party, 1).await.unwrap().schema, schema);
}

#[tokio::test]
async fn incompatible_schema_is_refused() {
    let (registry, topic) = (registry(), fresh_topic("refused"));
    for (schema, breaking) in [
        (Schema::protobuf(PROTO), Schema::protobuf(PROTO.replace("string", "int64"))),
        (
            Schema::json(JSON),
            Schema::json(JSON.replace(r#""type":"string""#, r#""type":"integer""#)),
        ),
    ] {
        let subject = format!("{topic}-{}", schema.schema_type);
        let none = registry.check_compatibility(&subject, &schema).await.unwrap_err();
        assert_eq!(none.kind(), RegistryErrorKind::NotFound);
        registry.register(&subject, &schema).await.unwrap();
        set_compatibility(&subject, "BACKWARD").await;
        let fits = registry.check_compatibility(&subject, &schema).await.unwrap();
        assert!(fits.is_compatible);
        let breaks = registry.check_compatibility(&subject, &breaking).await.unwrap();
        assert!(!breaks.is_compatible);
        assert!(!breaks.reasons.is_empty());
        let error = registry.register(&subject, &breaking).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (RegistryErrorKind::Incompatible, Some(409)));
        println!("{error}");

        let garbage = Schema::new(schema.schema_type, "garbage");
        let error = registry.register(&format!("{subject}-new"), &garbage).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (RegistryErrorKind::InvalidSchema, Some(42201)));
        println!("{error}");
    }
}

#[tokio::test]
async fn unsupported_request_is_no_missing_schema() {
    let (registry, topic) = (registry(), fresh_topic("guid"));
    // Apicurio 2 has no GUIDs.
    let error = registry.schema(Uuid::from_u128(7)).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Unsupported, "{error}");
    let framing = Framing::builder(&registry)
        .form(FrameForm::Header)
        .registration(Registration::Auto)
        .event(EventSchema::new("UserCreated", topic, Schema::json(JSON)));
    let error = framing.build().await.unwrap_err();
    assert!(error.to_string().contains("no GUID"), "{error}");

    let elsewhere = servers::registry().replace("/apis/ccompat/v7", "");
    let elsewhere = SchemaRegistry::new(RegistryConfig::new([elsewhere])).unwrap();
    let error = elsewhere.schema(1).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Other);
    assert!(error.to_string().contains("check the base URL"), "{error}");
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "::cqrs_core", topic = "unused", key = "user_id")]
struct UserCreated {
    user_id: String,
}

#[derive(Clone, PartialEq, prost::Message, Notification)]
#[cqrs(crate = "::cqrs_core", topic = "unused", serializer = ProtobufSerializer)]
struct UserJoined {
    #[prost(string, tag = "1")]
    user_id: String,
    #[prost(string, tag = "2")]
    meeting_id: String,
}

async fn kafka() -> KafkaMessageBroker {
    KafkaMessageBroker::connect(KafkaConfig::new([servers::kafka()])).await.unwrap()
}

/// A service that sends the events and the errors of a topic to the test.
struct Reader<P> {
    events: UnboundedReceiver<P>,
    undecodable: UnboundedReceiver<String>,
    stop: StopHandle,
    running: JoinHandle<()>,
}

impl<P: Notification + Clone> Reader<P> {
    async fn start(topic: &str, subscription: Subscription) -> Self {
        let (seen, events) = unbounded_channel();
        let (refused, undecodable) = unbounded_channel();
        let subscription = subscription
            .group(format!("reader-{topic}"))
            .on_decode_error(OnDecodeError::Handle)
            .undecodable(move |case: Undecodable, _: Received| {
                let refused = refused.clone();
                async move { Ok(refused.send(case.to_string())?) }
            });
        let handler = each(move |event: NotificationEvent<P>, _: Received| {
            let seen = seen.clone();
            async move {
                seen.send(event.payload).map_err(|_| HandlerError::permanent("the test has ended"))
            }
        });
        let service = Service::builder(kafka().await).subscribe(subscription, handler);
        let service = service.build().unwrap();
        let stop = service.stop_handle();
        let running = tokio::spawn(async move { drop(service.run().await.unwrap()) });
        Self { events, undecodable, stop, running }
    }

    async fn event(&mut self) -> P {
        tokio::time::timeout(TIMEOUT, self.events.recv()).await.unwrap().unwrap()
    }

    async fn undecodable(&mut self) -> String {
        tokio::time::timeout(TIMEOUT, self.undecodable.recv()).await.unwrap().unwrap()
    }

    async fn end(self) {
        self.stop.stop();
        self.running.await.unwrap();
    }
}

/// Emits `payload` to `topic` as an application does.
async fn emit<P: Notification>(framing: &Framing, topic: &str, payload: P) {
    let broker = FramedBroker::new(kafka().await, framing.clone());
    let mediator = Mediator::builder().broker(broker).build().unwrap();
    let event = NotificationEvent::new(payload).with_topic(topic.to_owned());
    mediator.emitter().emit(event).await.unwrap();
    let _ = mediator.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn json_goes_through_kafka_framed_and_checked() {
    let (registry, topic) = (registry(), fresh_topic("framed-json"));
    create_topic(&topic, 1, &[]).await;
    let framing = Framing::builder(&registry)
        .registration(Registration::Auto)
        .event(EventSchema::new("UserCreated", &*topic, Schema::json(JSON)))
        .build()
        .await
        .unwrap();
    let subject = format!("{topic}-value");
    let id = registry.version(&subject, SchemaVersion::Latest).await.unwrap().id;
    assert_eq!(framing.frame("UserCreated", &topic), Some(&Frame::new(id)));

    let created = UserCreated { user_id: "7".into() };
    emit(&framing, &topic, created.clone()).await;
    let (_, record) = read_raw(&topic).await.remove(0);
    let body = record.body.unwrap();
    assert_eq!(&body[..5], [&[0][..], &id.to_be_bytes()].concat());
    assert_eq!(body[5], b'{');

    // An unknown id, a schema of another type, and no frame at all.
    let elsewhere = format!("{topic}-protobuf");
    let protobuf = registry.register(&elsewhere, &Schema::protobuf(PROTO)).await.unwrap().id;
    let own_json = Schema::json(JSON.replace("UserCreated", &topic));
    let other = registry.register(&format!("{topic}-json"), &own_json).await.unwrap().id;
    for id in [u32::MAX >> 1, protobuf, other] {
        let body = [Frame::new(id).to_bytes(), b"{}".to_vec()].concat();
        write(&topic, vec![Raw { body: Some(body), ..Raw::default() }]).await;
    }
    write(&topic, vec![Raw::new("k", "{}")]).await;

    let decoder = RegistryDecoder::json(&registry).subjects([subject]).hook();
    let subscription = Subscription::to(&*topic).decoder(decoder).json::<UserCreated>();
    let mut reader = Reader::<UserCreated>::start(&topic, subscription).await;
    assert_eq!(reader.event().await, created);
    for expected in ["40403", "of type PROTOBUF", "under none of the subjects", "no magic byte"] {
        let refused = reader.undecodable().await;
        assert!(refused.contains(expected), "{refused}");
    }
    reader.end().await;
}

async fn protobuf_reads_back(
    topic: &str,
    subscription: impl FnOnce(Subscription) -> Subscription,
) -> UserJoined {
    let mut reader = Reader::start(topic, subscription(Subscription::to(topic))).await;
    let joined = reader.event().await;
    reader.end().await;
    joined
}

#[tokio::test]
async fn protobuf_goes_through_kafka_with_message_path() {
    let (registry, topic) = (registry(), fresh_topic("framed-protobuf"));
    create_topic(&topic, 1, &[]).await;
    let second = MessagePath::new([1]).unwrap();
    let schema = EventSchema::new("UserJoined", &*topic, Schema::protobuf(PROTO));
    let framing = Framing::builder(&registry)
        .registration(Registration::Auto)
        .event(schema.path(second.clone()))
        .build()
        .await
        .unwrap();
    let joined = UserJoined { user_id: "7".into(), meeting_id: "m".into() };
    emit(&framing, &topic, joined.clone()).await;
    let body = read_raw(&topic).await.remove(0).1.body.unwrap();
    assert_eq!(&body[5..], b"\x02\x02\x0a\x017\x12\x01m");

    let framed = Framed::protobuf(ProtobufDeserializer::new()).path(second.clone());
    let read = protobuf_reads_back(&topic, |s| s.decode::<UserJoined>(framed)).await;
    assert_eq!(read, joined);
    let decoder = RegistryDecoder::protobuf(&registry).path(second).hook();
    let topic = copy(&topic, &body).await;
    let read = protobuf_reads_back(&topic, |s| {
        s.decoder(decoder).decode_all::<UserJoined>(ProtobufDeserializer::new())
    })
    .await;
    assert_eq!(read, joined);
}

/// The body on a topic of its own, as another producer would write it: without headers.
async fn copy(topic: &str, body: &[u8]) -> String {
    let topic = format!("{topic}-copy");
    create_topic(&topic, 1, &[]).await;
    write(&topic, vec![Raw { body: Some(body.to_vec()), ..Raw::default() }]).await;
    topic
}

#[tokio::test]
async fn the_header_form_leaves_the_body_bare_on_kafka() {
    let topic = fresh_topic("framed-header");
    create_topic(&topic, 1, &[]).await;
    let guid = Uuid::from_u128(u128::MAX - 7);
    let frame = Frame::new(guid).with_path(MessagePath::FIRST);
    let framing = Framing::new().event("UserJoined", frame.clone());
    let joined = UserJoined { user_id: "7".into(), meeting_id: "m".into() };
    emit(&framing, &topic, joined.clone()).await;
    let record = read_raw(&topic).await.remove(0).1;
    assert_eq!(record.body.unwrap(), b"\x0a\x017\x12\x01m");
    let header = record.headers.iter().find(|(name, _)| name == "__value_schema_id").unwrap();
    assert_eq!(header.1, Some([&[1], &guid.as_bytes()[..], &[0]].concat()));
    let framed = Framed::protobuf(ProtobufDeserializer::new()).path(MessagePath::FIRST);
    let read = protobuf_reads_back(&topic, |s| s.decode::<UserJoined>(framed)).await;
    assert_eq!(read, joined);
}

/// A server behind TLS that answers everything with an empty list.
async fn tls_server() -> String {
    let read = |file| std::fs::read(servers::certs(file)).unwrap();
    let chain = |file| CertificateDer::pem_slice_iter(&read(file)).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(&read("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain("server.pem"), key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n[]";
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
        }
    });
    format!("https://localhost:{port}")
}

#[tokio::test]
async fn tls_trusts_the_given_authority_and_no_other() {
    let mut config = RegistryConfig::new([tls_server().await]);
    config.attempts = 1;
    config.tls.ca = Some(Pem::Path(servers::certs("ca.pem")));
    let trusted = SchemaRegistry::new(config.clone()).unwrap();
    assert!(trusted.subjects().await.unwrap().is_empty());
    for ca in [Some(Pem::Path(servers::certs("other-ca.pem"))), None] {
        config.tls.ca = ca;
        let untrusting = SchemaRegistry::new(config.clone()).unwrap();
        let error = untrusting.subjects().await.unwrap_err();
        assert_eq!(error.kind(), RegistryErrorKind::Connection);
    }
}
