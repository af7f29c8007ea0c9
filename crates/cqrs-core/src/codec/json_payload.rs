//! The JSON serializer and deserializer of the payload alone, for topics whose other services know no python-cqrs.

use std::borrow::Cow;

use bytes::Bytes;
use uuid::fmt::Hyphenated;

use super::deserializer::Deserializer;
use super::encoded::Encoded;
use super::error::{DeserializeError, SerializeError};
use super::json::{read, to_vec};
use super::payload::{FromJson, ToJson};
use crate::consume::Incoming;
use crate::event::{Notification, NotificationEvent, Serializer};
use crate::message::{Headers, content_type, header};

/// Writes the payload alone, for consumers that know no events: `{"user_id":7}`.
///
/// The event's name and id are in the headers `event_name` and `message_id`, as for Protobuf, and its time is that of
/// the message. A number that JSON cannot represent (NaN, infinity) is an error that names its field.
///
/// ```
/// # use cqrs_core as cqrs;
/// use cqrs::codec::JsonPayloadSerializer;
/// use cqrs::Notification as _;
/// # use cqrs_macros::Notification;
///
/// #[derive(serde::Serialize, Notification)]
/// # #[cqrs(crate = "cqrs_core")]
/// #[cqrs(topic = "users", serializer = JsonPayloadSerializer)]
/// struct UserCreated {
///     user_id: u64,
/// }
///
/// let message = cqrs::NotificationEvent::new(UserCreated { user_id: 7 }).to_message()?;
/// assert_eq!(message.body, r#"{"user_id":7}"#);
/// assert_eq!(message.headers.get("event_name"), Some("UserCreated"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct JsonPayloadSerializer;

impl<P: Notification + ToJson> Serializer<P> for JsonPayloadSerializer {
    fn serialize(&self, event: &NotificationEvent<P>) -> Result<Encoded, SerializeError> {
        let error = |cause| SerializeError::new(&*event.event_name, cause);
        let body = to_vec(&event.payload).map_err(error)?;
        let (mut headers, mut id) = (Headers::new(), [0; Hyphenated::LENGTH]);
        let id = event.event_id.hyphenated().encode_lower(&mut id);
        for (name, value) in [(header::EVENT_NAME, &*event.event_name), (header::MESSAGE_ID, id)] {
            headers.insert(name, value).map_err(|invalid| error(invalid.into()))?;
        }
        Ok(Encoded { body: Bytes::from(body), content_type: content_type::JSON, headers })
    }
}

/// Reads a body that is the payload alone: `{"user_id":7}`, as FastStream publishes a model, and as most services that
/// know no python-cqrs write their messages.
///
/// The event's id, name, time and topic are those of the frame: see [`Incoming::to_event`]. A message without a name is
/// an event of the payload's type. One without an id, or with one that is no UUID, gets a new one in each
/// attempt, so an inbox does not know it again. Text and errors are those of [`JsonDeserializer`](super::JsonDeserializer).
#[derive(Debug, Clone, Copy, Default)]
pub struct JsonPayloadDeserializer;

impl<P: Notification + FromJson> Deserializer<P> for JsonPayloadDeserializer {
    fn deserialize(&self, message: &Incoming) -> Result<NotificationEvent<P>, DeserializeError> {
        let payload = match &message.body {
            Some(body) => read(body, |_| None),
            None => read(&message.bytes(), |_| None),
        };
        Ok(message.to_event(payload?))
    }

    fn event_name<'m>(&self, message: &'m Incoming) -> Option<Cow<'m, str>> {
        message.event_name().map(Cow::Borrowed)
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use uuid::Uuid;

    use super::*;
    use crate::Event as _;
    use crate::codec::DeserializeErrorKind;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, cqrs_macros::Notification)]
    #[cqrs(crate = "crate", topic = "readings", serializer = JsonPayloadSerializer)]
    struct Reading {
        sensor: String,
        celsius: f64,
    }

    fn reading(celsius: f64) -> Reading {
        Reading { sensor: "a".into(), celsius }
    }

    fn deserialize(message: &Incoming) -> Result<NotificationEvent<Reading>, DeserializeError> {
        JsonPayloadDeserializer.deserialize(message)
    }

    #[test]
    fn written_event_is_read_again() {
        let event = NotificationEvent::new(reading(1.5)).with_name("Renamed").with_topic("others");
        let message = event.to_message().unwrap();
        assert_eq!(message.body, r#"{"sensor":"a","celsius":1.5}"#);
        assert_eq!(message.content_type.as_deref(), Some(content_type::JSON));
        let incoming = Incoming::from(&message);
        assert_eq!(deserialize(&incoming).unwrap(), event);
        let name = Deserializer::<Reading>::event_name(&JsonPayloadDeserializer, &incoming);
        assert_eq!(name.as_deref(), Some("Renamed"));
    }

    #[test]
    fn message_without_a_frame_is_a_new_event_of_its_topic() {
        let incoming = Incoming::new("raw", r#"{"celsius":2,"sensor":"a","unit":"C"}"#);
        let event = deserialize(&incoming).unwrap();
        assert_eq!((&event.payload, &*event.event_name), (&reading(2.0), Reading::NAME));
        assert_eq!(event.topic, "raw");
        assert!(!event.event_id.is_nil());
        let name = Deserializer::<Reading>::event_name(&JsonPayloadDeserializer, &incoming);
        assert_eq!(name, None);
    }

    #[test]
    fn id_that_is_no_uuid_is_not_the_events() {
        let known = Uuid::from_u128(7);
        let text = known.simple().to_string();
        for (header, own, is_known) in
            [("42", "43", false), ("42", &*text, true), (&*text, "42", true), (&*text, "", true)]
        {
            let mut incoming = Incoming::new("raw", r#"{"celsius":2,"sensor":"a"}"#);
            incoming.headers.insert(header::MESSAGE_ID, header).unwrap();
            incoming.id = Some(own.into());
            let id = deserialize(&incoming).unwrap().event_id;
            assert_eq!(id == known, is_known, "{header} {own}");
        }
    }

    #[test]
    fn empty_name_is_none() {
        let mut incoming = Incoming::new("raw", r#"{"celsius":2,"sensor":"a"}"#);
        incoming.name = Some("".into());
        assert_eq!(deserialize(&incoming).unwrap().event_name, Reading::NAME);
        incoming.headers.insert(header::EVENT_NAME, "").unwrap();
        assert_eq!(incoming.event_name(), None);
    }

    #[test]
    fn number_that_is_the_payload_is_named_in_the_error() {
        #[derive(Serialize, cqrs_macros::Notification)]
        #[cqrs(crate = "crate", topic = "readings", serializer = JsonPayloadSerializer)]
        struct Celsius(f64);
        let error = NotificationEvent::new(Celsius(f64::INFINITY)).to_message().unwrap_err();
        let text = crate::consume::support::error_chain(&error);
        assert!(text.contains("the value is inf"), "{text}");
    }

    #[test]
    fn errors_have_kind_and_bytes() {
        for (body, kind) in [
            ("", DeserializeErrorKind::Empty),
            (r#"{"sensor":"#, DeserializeErrorKind::Syntax),
            (r#"{"sensor":7,"celsius":1}"#, DeserializeErrorKind::Shape),
        ] {
            let error = deserialize(&Incoming::new("t", body)).unwrap_err();
            assert_eq!((error.kind(), &error.bytes()[..]), (kind, body.as_bytes()));
        }
        let tombstone = Incoming::empty("t".into());
        assert_eq!(deserialize(&tombstone).unwrap_err().kind(), DeserializeErrorKind::Empty);
        let error = NotificationEvent::new(reading(f64::NAN)).to_message().unwrap_err();
        let text = crate::consume::support::error_chain(&error);
        assert!(text.contains("Reading") && text.contains("celsius is NaN"), "{text}");
    }

    #[test]
    fn reads_utf16() {
        let text = r#"{"sensor":"a","celsius":1.5}"#;
        let body: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(deserialize(&Incoming::new("t", body)).unwrap().payload, reading(1.5));
    }
}
