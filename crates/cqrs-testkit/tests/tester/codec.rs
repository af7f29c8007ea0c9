//! The tester with events in a format of their own.

use std::borrow::Cow;
use std::time::Duration;

use cqrs_core::codec::{
    DeserializeError, DeserializeErrorKind, Deserializer, Encoded, JsonDeserializer,
    JsonPayloadDeserializer, JsonPayloadSerializer, JsonSerializer, SerializeError, Serializer,
};
use cqrs_core::consume::Incoming;
use cqrs_core::{
    EventHandler, EventMediator, HandlerError, HandlerResultExt, Message, NotificationEvent,
    Received, Scope, Service, Subscription, each,
};
use cqrs_macros::Notification;
use cqrs_testkit::ServiceTester;
use serde::{Deserialize, Serialize};

/// A format of its own: JSON behind a mark, as a frame of a schema registry is.
#[derive(Debug, Clone, Copy, Default)]
struct Marked;

const MARK: &[u8] = b"\0mark";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "users", serializer = Marked)]
struct UserRenamed {
    name: String,
}

impl Serializer<UserRenamed> for Marked {
    fn serialize(&self, event: &NotificationEvent<UserRenamed>) -> Result<Encoded, SerializeError> {
        let json = JsonSerializer.serialize(event)?;
        Ok(Encoded { body: [MARK, &json.body].concat().into(), ..json })
    }
}

impl Deserializer<UserRenamed> for Marked {
    fn deserialize(
        &self,
        message: &Incoming,
    ) -> Result<NotificationEvent<UserRenamed>, DeserializeError> {
        let body = message.bytes();
        match body.strip_prefix(MARK) {
            Some(json) => JsonDeserializer.from_bytes(&json.to_vec().into()),
            None => Err(DeserializeError::new(DeserializeErrorKind::Syntax, "no mark", body)),
        }
    }

    fn event_name<'m>(&self, _: &'m Incoming) -> Option<Cow<'m, str>> {
        None
    }
}

#[tokio::test(start_paused = true)]
async fn events_are_read_by_their_own_codec() {
    struct Rename;
    impl EventHandler<UserRenamed> for Rename {
        async fn handle(&self, event: &UserRenamed, scope: &mut Scope) -> Result<(), HandlerError> {
            if event.name.is_empty() {
                return Err("no name").permanent();
            }
            scope.emit(UserRenamed { name: event.name.to_uppercase() });
            Ok(())
        }
    }
    let renamed = |name: &str| UserRenamed { name: name.to_owned() };
    let tester = ServiceTester::new().timeout(Duration::from_secs(1));
    let events = EventMediator::builder()
        .event::<UserRenamed, _>(Rename)
        .topic::<UserRenamed>("renamed")
        .broker(tester.broker())
        .build()
        .unwrap();
    let users = Subscription::to("users").group("g").decode::<UserRenamed>(Marked);
    let service = Service::builder(tester.broker()).subscribe(users, events).build().unwrap();
    let _running = tester.start(service).await;
    tester.publish(renamed("ada")).await.unwrap();
    tester.publish(renamed("")).await.unwrap();

    let read = tester.decode::<UserRenamed>(Marked);
    assert_eq!(read.handled(1).await.unwrap(), [renamed("ada")]);
    assert_eq!(read.published(), [renamed("ADA")]);
    assert!(read.retried(0).await.unwrap().is_empty());
    let dead = tester.dead_letters(1).await.unwrap();
    assert_eq!(dead[0].decode(Marked).unwrap(), renamed(""));
    assert!(dead[0].event::<UserRenamed>().is_err(), "it is no JSON");
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "users", serializer = JsonPayloadSerializer)]
struct UserMoved {
    city: String,
}

/// Its sender names no event.
#[tokio::test(start_paused = true)]
async fn plain_json_of_another_service_is_an_event() {
    let tester = ServiceTester::new().timeout(Duration::from_secs(1));
    let users = Subscription::to("users").group("g").json_payload::<UserMoved>();
    let handler = each(|_: NotificationEvent<UserMoved>, _: Received| async { Ok(()) });
    let service = Service::builder(tester.broker()).subscribe(users, handler).build().unwrap();
    let _running = tester.start(service).await;
    let moved = |city: &str| UserMoved { city: city.to_owned() };
    tester.publish_message(Message::new("users", r#"{"city":"Paris"}"#)).await.unwrap();
    tester.publish(moved("Rome")).await.unwrap();
    let events = tester.decode::<UserMoved>(JsonPayloadDeserializer);
    assert_eq!(events.handled(2).await.unwrap(), [moved("Paris"), moved("Rome")]);
}
