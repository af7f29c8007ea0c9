//! Tests of framing without a registry.

use std::time::Duration;

use cqrs_core::{MemoryBroker, Message, MessageBroker, MessageBrokerExt, PublishErrorKind};
use uuid::Uuid;

use super::*;
use crate::{Frame, MessagePath};

const GUID: Uuid = Uuid::from_u128(0x3fa8_5f64_5717_4562_b3fc_2c96_3f66_afa6);

fn message(topic: &str, name: &str) -> Message {
    Message::new(topic, "{}").with_name(name).with_key("k")
}

fn framing() -> Framing {
    Framing::new()
        .event("Created", Frame::new(7).with_path(MessagePath::FIRST))
        .event_to("Created", "audit", Frame::new(8))
        .event_to("Moved", "users", Frame::new(9))
        .event("Guided", Frame::new(GUID))
}

fn body(framing: &Framing, message: Message) -> Vec<u8> {
    framing.apply(message).unwrap().body.to_vec()
}

#[test]
fn the_frame_is_chosen_by_name_and_topic() {
    let framing = framing();
    assert_eq!(body(&framing, message("users", "Created")), b"\0\0\0\0\x07\0{}");
    assert_eq!(body(&framing, message("audit", "Created")), b"\0\0\0\0\x08{}");
    assert_eq!(body(&framing, message("users", "Moved")), b"\0\0\0\0\x09{}");
    let again = framing.event("Created", Frame::new(1));
    assert_eq!(body(&again, message("users", "Created")), b"\0\0\0\0\x01{}", "the last call holds");
}

#[test]
fn only_the_body_changes() {
    let bare = message("users", "Created");
    let mut framed = framing().apply(bare.clone()).unwrap();
    framed.body = bare.body.clone();
    assert_eq!(framed, bare);
}

#[test]
fn a_guid_goes_into_the_header_and_the_body_stays() {
    let framed = framing().apply(message("users", "Guided")).unwrap();
    assert_eq!(framed.body, "{}");
    let expected = [&[1], &GUID.as_bytes()[..]].concat();
    assert_eq!(framed.headers.get_bytes("__value_schema_id"), Some(&expected[..]));
    let again = framing().apply(framed.clone()).unwrap();
    assert_eq!(again, framed);
}

#[test]
fn unknown_event_error_says_what_to_do() {
    for (message, expected) in [
        (message("users", "Gone"), r#"no schema of "Gone" is known: add it to the framing"#),
        (message("audit", "Moved"), r#"known for this topic, only for ["users"]"#),
        (Message::new("users", "{}"), "the message has no event name"),
    ] {
        let error = framing().apply(message.clone()).unwrap_err();
        assert_eq!(error.kind(), PublishErrorKind::Invalid);
        assert!(error.detail().contains(expected), "{error}");
        assert_eq!(error.into_message(), message);
        let passed =
            framing().on_missing_schema(OnMissingSchema::Pass).apply(message.clone()).unwrap();
        assert_eq!(passed, message);
    }
}

#[test]
fn framed_message_is_not_framed_again() {
    let once = framing().apply(message("users", "Created")).unwrap();
    assert_eq!(framing().apply(once.clone()).unwrap(), once);
    let other = framing().event("Created", Frame::new(100));
    assert_eq!(other.apply(once).unwrap_err().kind(), PublishErrorKind::Invalid);
}

#[test]
fn a_message_never_has_frames_of_both_forms() {
    let guided = framing().apply(message("users", "Guided")).unwrap();
    let numbers = Framing::new().event("Guided", Frame::new(7));
    let mut moved = guided.clone();
    moved.headers.insert("kept", "too").unwrap();
    let moved = numbers.apply(moved).unwrap();
    assert_eq!(moved.body, &b"\0\0\0\0\x07{}"[..]);
    assert_eq!(moved.headers.get_bytes(Frame::HEADER), None, "readers would believe it first");
    assert_eq!(moved.headers.get("kept"), Some("too"));
    // A message returned by a publish error has the frame already, and keeps no header either.
    let mut both = moved.clone();
    both.headers.insert_bytes(Frame::HEADER, vec![1; 17]).unwrap();
    assert_eq!(numbers.apply(both).unwrap(), moved);

    let mut numbered = framing().apply(message("users", "Created")).unwrap();
    numbered.name = "Guided".into();
    let error = framing().apply(numbered.clone()).unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Invalid);
    assert!(error.detail().contains("the frame of another schema"), "{error}");
    assert_eq!(error.into_message(), numbered);

    let mut inline = message("users", "Created");
    inline.body = Frame::new(GUID).to_bytes().into();
    assert_eq!(framing().apply(inline).unwrap_err().kind(), PublishErrorKind::Invalid);
}

#[test]
fn a_frame_before_the_body_is_one_allocation() {
    let framing = framing();
    let message = message("users", "Created");
    let mut framed = None;
    let used = allocation_counter::measure(|| framed = Some(framing.apply(message)));
    assert_eq!(used.count_total, 1);
    drop(framed);
}

#[tokio::test]
async fn broker_frames_published_messages_only() {
    let broker = FramedBroker::new(MemoryBroker::new(), framing());
    assert_eq!(broker.state(), broker.inner().state());
    broker.publish(message("users", "Created")).await.unwrap();
    broker.try_publish(message("users", "Moved")).await.unwrap();
    let bodies: Vec<_> = broker.inner().messages("users").into_iter().map(|m| m.body).collect();
    assert_eq!(bodies, [&b"\0\0\0\0\x07\0{}"[..], b"\0\0\0\0\x09{}"]);
    let refused = broker.publish(message("users", "Gone")).await.unwrap_err();
    assert_eq!(refused.kind(), PublishErrorKind::Invalid);
    assert_eq!(broker.shutdown(Duration::from_secs(1)).await.undelivered, 0);
    let closed = broker.publish(message("users", "Created")).await.unwrap_err();
    assert_eq!(closed.kind(), PublishErrorKind::Closed);
}
