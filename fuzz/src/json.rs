//! Fuzzing of the JSON codec.

use bytes::Bytes;
use cqrs_core::NotificationEvent;
use cqrs_core::codec::{
    DeserializeErrorKind as Kind, Deserializer, JsonDeserializer, JsonSerializer, Serializer,
};
use cqrs_core::consume::Incoming;
use cqrs_macros::Notification;
use serde::{Deserialize, Serialize};

/// One of each kind of field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(crate = "::cqrs_core", topic = "t")]
#[serde(default)]
struct Payload {
    #[serde(alias = "userName")]
    user_name: String,
    number: i64,
    maybe: Option<bool>,
    list: Vec<Payload>,
    tree: serde_json::Value,
}

impl Default for Payload {
    fn default() -> Self {
        let user_name = String::new();
        Self { user_name, number: 0, maybe: None, list: Vec::new(), tree: serde_json::Value::Null }
    }
}

/// A list's element takes two bytes of input (`1,`) and up to a hundred as a value, twice as many while
/// the list grows.
const PER_BYTE: u64 = 256;

/// Any bytes as a JSON event.
pub fn json(bytes: &[u8]) {
    let message = Incoming::new("t", Bytes::copy_from_slice(bytes));
    let read =
        |message: &Incoming| Deserializer::<Payload>::deserialize(&JsonDeserializer, message);
    let name = bounded_name(&message);
    match super::bounded(bytes, PER_BYTE, || read(&message)) {
        Ok(event) => {
            let found = name.expect("an event that can be read has a name that can be found");
            assert_eq!(found, event.event_name);
            again(&event, read);
        }
        Err(error) => {
            assert_eq!(error.kind() == Kind::Empty, bytes.is_empty());
            assert_eq!(error.bytes(), bytes);
            let _ = (error.to_string(), format!("{error:?}"));
        }
    }
}

fn bounded_name(message: &Incoming) -> Option<String> {
    let body = message.bytes();
    super::bounded(&body, PER_BYTE, || {
        Deserializer::<Payload>::event_name(&JsonDeserializer, message).map(Into::into)
    })
}

fn again<E: std::fmt::Debug>(
    event: &NotificationEvent<Payload>,
    read: impl Fn(&Incoming) -> Result<NotificationEvent<Payload>, E>,
) {
    let written = JsonSerializer.serialize(event).expect("what was read can be written");
    let second = read(&Incoming::new("t", written.body)).expect("what was written can be read");
    let frame = |event: &NotificationEvent<Payload>| {
        let NotificationEvent { event_id, event_timestamp, event_name, topic, .. } = event.clone();
        (event_id, event_timestamp, event_name, topic)
    };
    assert_eq!(frame(event), frame(&second));
    let texts = |event: &NotificationEvent<Payload>| {
        let Payload { user_name, number, maybe, list, .. } = event.payload.clone();
        (user_name, number, maybe, list.len())
    };
    assert_eq!(texts(event), texts(&second), "floats aside");
}
