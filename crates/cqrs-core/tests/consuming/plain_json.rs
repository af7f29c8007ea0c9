//! Tests of messages whose JSON is the payload alone.

use cqrs_core::codec::{JsonPayloadDeserializer, JsonPayloadSerializer};

use super::*;

const ADA: &str = r#"{"user_id":"ada","step":1}"#;

fn plain() -> Subscription {
    Subscription::to("users").group("mailer").json_payload::<UserCreated>()
}

async fn publish_named(broker: &MemoryBroker, name: &'static str, body: &'static str) {
    broker.publish(Message::new("users", body).with_name(name)).await.unwrap();
}

fn reasons(broker: &MemoryBroker) -> Vec<(bytes::Bytes, DeadLetterReason)> {
    dead_letters(broker)
        .into_iter()
        .map(|(message, letter)| (message.body, letter.reason))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn payload_of_its_name_or_without_one_is_handled() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    publish_raw(&broker, ADA).await;
    publish_named(&broker, "UserCreated", ADA).await;
    publish_named(&broker, "UserDeleted", ADA).await;
    publish_raw(&broker, r#"{"user_id":"ada"}"#).await;
    let running = run(&broker, plain(), noting(&seen, |_, _| Ok(())));
    until("all", || records(&seen).len() + dead_letters(&broker).len() == 4).await;
    drop(running.end().await);
    assert_eq!(records(&seen), ["ada:1#1", "ada:1#1"]);
    assert_eq!(
        reasons(&broker),
        [
            (ADA.into(), DeadLetterReason::UnknownType),
            (r#"{"user_id":"ada"}"#.into(), DeadLetterReason::Decode),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn payload_of_any_name_is_handled_if_asked_for() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    publish_named(&broker, "for another purpose", ADA).await;
    publish_raw(&broker, ADA).await;
    let any = Subscription::to("users").group("mailer");
    let any = any.decode_all::<UserCreated>(JsonPayloadDeserializer);
    let running = run(&broker, any, noting(&seen, |_, _| Ok(())));
    until("both", || records(&seen).len() == 2).await;
    drop(running.end().await);
}

#[tokio::test(start_paused = true)]
async fn several_payload_types_need_a_name_in_the_frame() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    publish_named(&broker, "UserDeleted", ADA).await;
    publish_named(&broker, "UserCreated", ADA).await;
    publish_raw(&broker, ADA).await;
    let both = plain().json_payload::<UserDeleted>();
    let running = run(&broker, both, noting_names(&seen));
    until("all", || records(&seen).len() + dead_letters(&broker).len() == 3).await;
    drop(running.end().await);
    assert_eq!(records(&seen), ["deleted ada", "created ada"]);
    assert_eq!(reasons(&broker), [(ADA.into(), DeadLetterReason::Decode)]);
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "users", serializer = JsonPayloadSerializer)]
struct UserRenamed {
    name: String,
}

/// In a retry, too, which decodes the message again.
#[tokio::test(start_paused = true)]
async fn published_payload_keeps_id_and_time() {
    let (broker, events) = (MemoryBroker::new(), Arc::new(Mutex::new(Vec::new())));
    let event = NotificationEvent::new(UserRenamed { name: "Ada".into() });
    broker.publish_event(event.clone()).await.unwrap();
    let handler = each({
        let events = Arc::clone(&events);
        move |event: NotificationEvent<UserRenamed>, received: Received| {
            events.lock().unwrap().push(event);
            async move {
                if received.attempt() == 1 { Err(HandlerError::retryable("once")) } else { Ok(()) }
            }
        }
    });
    let renamed = Subscription::to("users").group("mailer").json_payload::<UserRenamed>();
    let running = run(&broker, renamed, handler);
    until("both attempts", || events.lock().unwrap().len() == 2).await;
    drop(running.end().await);
    assert_eq!(*events.lock().unwrap(), [event.clone(), event]);
}
