//! Framing events with ids of a registry in memory.

use cqrs_core::{MemoryBroker, Message, MessageBrokerExt, Notification};
use cqrs_macros::Notification;
use cqrs_schema_registry::{
    EventSchema, Frame, FrameForm, FramedBroker, Framing, MessagePath, Registration,
    RegistryErrorKind, Schema, SchemaSource, SchemaType, SubjectNaming,
};
use serde::{Deserialize, Serialize};

use crate::server::{Server, guid_of};

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "users")]
struct UserCreated {
    id: u32,
}

fn json() -> Schema {
    Schema::json(r#"{"title":"shop.UserCreated"}"#)
}

fn protobuf() -> Schema {
    Schema::protobuf("message A {} message B {}")
}

#[tokio::test]
async fn ids_are_looked_up_and_not_registered() {
    let server = Server::start().await;
    let registry = server.client();
    let builder = Framing::builder(&registry).event(EventSchema::of::<UserCreated>(json()));
    let error = builder.clone().build().await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::NotFound);
    assert!(error.to_string().contains("\"users-value\""), "{error}");
    assert!(registry.subjects().await.unwrap().is_empty());

    registry.register("users-value", &json()).await.unwrap();
    let framing = builder.build().await.unwrap();
    assert_eq!(framing.frame("UserCreated", "users"), Some(&Frame::new(1)));
    assert_eq!(framing.frame("UserCreated", "elsewhere"), None, "another subject, not asked for");

    let broker = FramedBroker::new(MemoryBroker::new(), framing);
    let asked = server.state().asked.len();
    let name = <UserCreated as cqrs_core::Event>::NAME;
    broker.publish(Message::new(&*UserCreated::topic(), "{}").with_name(name)).await.unwrap();
    assert_eq!(broker.inner().messages("users")[0].body, &b"\0\0\0\0\x01{}"[..]);
    assert_eq!(server.state().asked.len(), asked, "no publish asks the registry");
}

#[tokio::test]
async fn subjects_follow_the_naming() {
    let server = Server::start().await;
    let registry = server.client();
    let auto = || Framing::builder(&registry).registration(Registration::Auto);
    let event = || EventSchema::of::<UserCreated>(json());
    auto().event(event()).build().await.unwrap();
    auto().naming(SubjectNaming::RecordName).event(event()).build().await.unwrap();
    let topic_record = auto().naming(SubjectNaming::TopicRecordName);
    topic_record.event(event().record("Named")).build().await.unwrap();
    let own = auto().event(event().subject("own")).build().await.unwrap();
    let subjects = registry.subjects().await.unwrap();
    assert_eq!(subjects, ["own", "shop.UserCreated", "users-Named", "users-value"]);
    assert!(own.frame("UserCreated", "users").is_some());
    assert_eq!(own.frame("UserCreated", "elsewhere"), None, "a subject says nothing of topics");

    let nameless = EventSchema::of::<UserCreated>(protobuf());
    let nameless = auto().naming(SubjectNaming::RecordName).event(nameless);
    let error = nameless.build().await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Config);
    assert!(error.to_string().contains("EventSchema::record"), "{error}");
}

#[tokio::test]
async fn protobuf_has_a_path_and_json_none() {
    let server = Server::start().await;
    let registry = server.client();
    let second = MessagePath::new([1]).unwrap();
    let framing = Framing::builder(&registry)
        .registration(Registration::Auto)
        .event(EventSchema::new("A", "t", protobuf()))
        .event(EventSchema::new("B", "t", protobuf()).path(second.clone()))
        .build()
        .await
        .unwrap();
    assert_eq!(framing.frame("A", "t"), Some(&Frame::new(1).with_path(MessagePath::FIRST)));
    assert_eq!(framing.frame("B", "t"), Some(&Frame::new(1).with_path(second.clone())));

    let asked = server.state().asked.len();
    for schema in [json(), Schema::new(SchemaType::Avro, "\"string\"")] {
        let wrong = EventSchema::new("A", "t", schema).path(second.clone());
        let builder = Framing::builder(&registry).registration(Registration::Auto).event(wrong);
        assert_eq!(builder.build().await.unwrap_err().kind(), RegistryErrorKind::Config);
    }
    assert_eq!(server.state().asked.len(), asked, "nothing was registered");
}

#[tokio::test]
async fn the_latest_may_be_taken_if_it_is_of_the_type() {
    let server = Server::start().await;
    let registry = server.client();
    registry.register("t-value", &json()).await.unwrap();
    registry.register("t-value", &protobuf()).await.unwrap();
    let latest = |schema_type| {
        let event = EventSchema::new("A", "t", SchemaSource::Latest(schema_type));
        Framing::builder(&registry).event(event).build()
    };
    let framing = latest(SchemaType::Protobuf).await.unwrap();
    assert_eq!(framing.frame("A", "t"), Some(&Frame::new(2).with_path(MessagePath::FIRST)));
    let error = latest(SchemaType::Json).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Config);
    assert!(error.to_string().contains("of type PROTOBUF, expected JSON"), "{error}");
}

#[tokio::test]
async fn the_header_form_takes_the_guid() {
    let server = Server::start().await;
    let registry = server.client();
    let builder = Framing::builder(&registry)
        .form(FrameForm::Header)
        .registration(Registration::Auto)
        .event(EventSchema::of::<UserCreated>(json()));
    let framing = builder.clone().build().await.unwrap();
    assert_eq!(framing.frame("UserCreated", "users"), Some(&Frame::new(guid_of(1))));
    server.state().plain = true;
    let error = builder.build().await.unwrap_err();
    assert!(error.to_string().contains("no GUID"), "{error}");
}

#[tokio::test]
async fn event_of_two_topics_has_the_schema_of_each() {
    let server = Server::start().await;
    let registry = server.client();
    let event = |topic: &'static str, schema: &str, subject: &str| {
        EventSchema::new("A", topic, Schema::json(schema)).subject(subject)
    };
    let auto = || Framing::builder(&registry).registration(Registration::Auto);
    let framing = auto().event(event("t", "1", "one")).event(event("u", "2", "two"));
    let framing = framing.build().await.unwrap();
    assert_eq!(framing.frame("A", "t"), Some(&Frame::new(1)));
    assert_eq!(framing.frame("A", "u"), Some(&Frame::new(2)));

    let everywhere = auto().naming(SubjectNaming::RecordName).event(event("t", "1", "one"));
    let framing = everywhere.build().await.unwrap();
    assert_eq!(framing.frame("A", "elsewhere"), Some(&Frame::new(1)));
}

#[tokio::test]
async fn one_event_with_two_frames_is_an_error() {
    let server = Server::start().await;
    let registry = server.client();
    let event =
        |topic: &'static str, schema: &str| EventSchema::new("A", topic, Schema::json(schema));
    let auto = || Framing::builder(&registry).registration(Registration::Auto);
    let same_topic = auto().event(event("t", "1")).event(event("t", "2"));
    let record = auto().naming(SubjectNaming::RecordName);
    let any_topic = record.event(event("t", "1").record("A")).event(event("u", "2").record("A"));
    for (builder, topic) in [(same_topic, "\"t\""), (any_topic, "any topic")] {
        let error = builder.build().await.unwrap_err();
        assert_eq!(error.kind(), RegistryErrorKind::Config);
        assert!(
            error.to_string().contains("\"A\"") && error.to_string().contains(topic),
            "{error}"
        );
    }
    let twice = auto().event(event("t", "1")).event(event("t", "1")).build().await.unwrap();
    assert_eq!(twice.frame("A", "t"), Some(&Frame::new(1)), "the same frame twice is no matter");
}
