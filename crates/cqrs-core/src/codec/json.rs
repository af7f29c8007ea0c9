//! The JSON serializer and deserializer, in the wire forms of python-cqrs.

use std::borrow::Cow;
use std::cell::Cell;
use std::error::Error;
use std::io;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use serde_json::ser::Formatter;

use super::deserializer::Deserializer;
use super::encoded::Encoded;
use super::error::{DeserializeError, DeserializeErrorKind, SerializeError};
use super::payload::{FromJson, ToJson};
use super::{canonical, non_finite, unicode};
use crate::consume::Incoming;
use crate::event::{Notification, NotificationEvent, Serializer};
use crate::message::{Headers, content_type};

/// Writes the event alone, without an envelope, in python-cqrs's snake form. A number that JSON cannot
/// represent (NaN, infinity) is an error that names its field.
#[derive(Debug, Clone, Copy, Default)]
pub struct JsonSerializer;

impl<P: Notification + ToJson> Serializer<P> for JsonSerializer {
    fn serialize(&self, event: &NotificationEvent<P>) -> Result<Encoded, SerializeError> {
        let body = to_vec(event).map_err(|cause| SerializeError::new(&*event.event_name, cause))?;
        Ok(Encoded {
            body: Bytes::from(body),
            content_type: content_type::JSON,
            headers: Headers::new(),
        })
    }
}

pub(super) fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    let (mut body, has_null) = (Vec::with_capacity(256), Cell::new(false));
    let mut serializer = serde_json::Serializer::with_formatter(&mut body, NoticeNull(&has_null));
    value.serialize(&mut serializer)?;
    // serde_json writes a null in place of a number that is not finite.
    match has_null.get().then(|| non_finite::find(value)).flatten() {
        Some(found) => Err(found.into()),
        None => Ok(body),
    }
}

/// The compact form; records that a null was written.
struct NoticeNull<'n>(&'n Cell<bool>);

impl Formatter for NoticeNull<'_> {
    fn write_null<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.set(true);
        writer.write_all(b"null")
    }
}

/// Reads python-cqrs's snake and camel form. Nesting deeper than 128 is an error, not a stack overflow.
///
/// The text may be UTF-8, UTF-16 or UTF-32, with a byte order mark or without, as Python's `json.loads`
/// takes it.
#[derive(Debug, Clone, Copy, Default)]
pub struct JsonDeserializer;

impl<P: Notification + FromJson> Deserializer<P> for JsonDeserializer {
    fn deserialize(&self, message: &Incoming) -> Result<NotificationEvent<P>, DeserializeError> {
        match &message.body {
            Some(body) => self.from_bytes(body),
            None => self.from_bytes(&message.bytes()),
        }
    }

    fn event_name<'m>(&self, message: &'m Incoming) -> Option<Cow<'m, str>> {
        #[derive(Deserialize)]
        struct Name<'m> {
            #[serde(borrow, alias = "eventName")]
            event_name: Cow<'m, str>,
        }
        match unicode::to_utf8(message.body.as_deref()?).ok()? {
            Cow::Borrowed(body) => Some(serde_json::from_slice::<Name<'m>>(body).ok()?.event_name),
            Cow::Owned(body) => {
                let name = serde_json::from_slice::<Name<'_>>(&body).ok()?.event_name;
                Some(Cow::Owned(name.into_owned()))
            }
        }
    }
}

impl JsonDeserializer {
    /// Deserializes `body`, without a message around it.
    ///
    /// # Errors
    /// An error with its kind, the decoder's text, and the raw bytes.
    pub fn from_bytes<P: Notification + FromJson>(
        &self,
        body: &Bytes,
    ) -> Result<NotificationEvent<P>, DeserializeError> {
        read(body, canonical::read)
    }
}

/// Reads the text of `body`, with `fast` if that takes it.
pub(super) fn read<T: DeserializeOwned>(
    body: &Bytes,
    fast: impl FnOnce(&str) -> Option<T>,
) -> Result<T, DeserializeError> {
    if body.is_empty() {
        let kind = DeserializeErrorKind::Empty;
        return Err(DeserializeError::new(kind, "no bytes", body.clone()));
    }
    let text = unicode::to_utf8(body).map_err(|error| {
        DeserializeError::new(DeserializeErrorKind::Syntax, error, body.clone())
    })?;
    // One check of all the text is faster than one of each string in it. Bytes that are not UTF-8 may stand
    // in what is ignored.
    let read = match std::str::from_utf8(&text) {
        Ok(text) => match fast(text) {
            Some(read) => return Ok(read),
            None => serde_json::from_str(text),
        },
        Err(_) => serde_json::from_slice(&text),
    };
    read.map_err(|error| {
        let kind = match error.classify() {
            Category::Data => DeserializeErrorKind::Shape,
            Category::Io | Category::Syntax | Category::Eof => DeserializeErrorKind::Syntax,
        };
        DeserializeError::new(kind, without_values(&error.to_string()), body.clone())
    })
}

/// Removes the values that serde quotes: `invalid type: string "4111", expected u64 at line 1 column 9`
/// becomes `invalid type: string, expected u64 at line 1 column 9`.
fn without_values(words: &str) -> String {
    const QUOTING: [&str; 4] =
        ["invalid type: ", "invalid value: ", "unknown variant", "invalid length "];
    let quoting = QUOTING.iter().find_map(|start| Some((*start, words.find(start)?)));
    let Some((start, at)) = quoting else { return words.to_owned() };
    let rest = &words[at + start.len()..];
    // The last one: a value could hold the same text.
    let Some(expected) = rest.rfind(", expected ") else { return words.to_owned() };
    let of_what = match start.ends_with(": ") {
        true => rest.split([' ', ',']).next().unwrap_or_default(),
        false => "",
    };
    format!("{}{start}{of_what}{}", &words[..at], &rest[expected..])
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::event::Timestamp;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, cqrs_macros::Notification)]
    #[cqrs(crate = "crate", topic = "user_events")]
    struct UserCreated {
        #[serde(alias = "userId")]
        user_id: String,
        email: String,
    }

    fn event() -> NotificationEvent<UserCreated> {
        let payload = UserCreated { user_id: "1".into(), email: "a@b".into() };
        NotificationEvent::new(payload)
            .with_id(Uuid::from_u128(0x3fa8_5f64_5717_4562_b3fc_2c96_3f66_afa6))
            .with_timestamp("2024-01-02T03:04:05.678901Z".parse().unwrap())
    }

    const SNAKE: &str = r#"{"payload":{"user_id":"1","email":"a@b"},"event_id":"3fa85f64-5717-4562-b3fc-2c963f66afa6","event_timestamp":"2024-01-02T03:04:05.678901","event_name":"UserCreated","topic":"user_events"}"#;
    const CAMEL: &str = r#"{"eventName":"UserCreated","payload":{"userId":"1","email":"a@b"},"eventId":"3fa85f6457174562b3fc2c963f66afa6","eventTimestamp":"2024-01-02T03:04:05.678901","topic":"user_events"}"#;

    fn read(body: &'static str) -> Result<NotificationEvent<UserCreated>, DeserializeError> {
        JsonDeserializer.from_bytes(&Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn writes_the_snake_form_byte_for_byte_with_an_offset() {
        let encoded = JsonSerializer.serialize(&event()).unwrap();
        let expected = SNAKE.replace("678901\"", "678901+00:00\"");
        assert_eq!(encoded.body, expected.as_bytes());
        assert_eq!(encoded.content_type, "application/json");
        assert!(encoded.headers.is_empty(), "JSON needs none");
    }

    #[test]
    fn reads_both_forms_of_the_python_services() {
        assert_eq!(read(SNAKE).unwrap(), event());
        assert_eq!(read(CAMEL).unwrap(), event());
    }

    #[test]
    fn the_name_is_found_without_the_payload() {
        let name = |body: &'static str| {
            let message = Incoming::new("t", body);
            let name = Deserializer::<UserCreated>::event_name(&JsonDeserializer, &message);
            name.map(Cow::into_owned)
        };
        assert_eq!(name(SNAKE).as_deref(), Some("UserCreated"));
        assert_eq!(name(CAMEL).as_deref(), Some("UserCreated"));
        assert_eq!(name(r#"{"event_name":"A\u00e4","payload":7}"#).as_deref(), Some("Aä"));
        assert_eq!(name(r#"{"event_name":7}"#), None);
        assert_eq!(name("[1]"), None);
        assert_eq!(name(""), None);
    }

    #[test]
    fn missing_fields_get_defaults_unknown_are_ignored() {
        let body = r#"{"payload":{"user_id":"1","email":"a@b"},"event_name":"UserCreated","event_id":null,"x":1}"#;
        let before = Timestamp::now();
        let event = read(body).unwrap();
        assert_eq!(event.topic, "user_events");
        assert!(event.event_timestamp >= before);
        assert!(!event.event_id.is_nil());
    }

    #[test]
    fn errors_say_why_and_keep_the_bytes() {
        let kind = |body| {
            let error = read(body).unwrap_err();
            assert_eq!(error.bytes(), body.as_bytes());
            error.kind()
        };
        assert_eq!(kind(""), DeserializeErrorKind::Empty);
        assert_eq!(kind("{\"payload\":"), DeserializeErrorKind::Syntax);
        assert_eq!(kind("garbage"), DeserializeErrorKind::Syntax);
        assert_eq!(kind("null"), DeserializeErrorKind::Shape);
        assert_eq!(kind("[]"), DeserializeErrorKind::Shape);
        assert_eq!(kind(r#"{"event_name":"UserCreated"}"#), DeserializeErrorKind::Shape);
    }

    #[test]
    fn errors_quote_no_values() {
        for (user_id, expected) in [
            (r#"["4111"]"#, "invalid type: sequence, expected a string at line 1 column 22"),
            ("4111", "invalid type: integer, expected a string at line 1 column 26"),
        ] {
            let body = format!(r#"{{"payload":{{"user_id":{user_id},"email":"a@b"}}}}"#);
            let error = JsonDeserializer.from_bytes::<UserCreated>(&body.into()).unwrap_err();
            assert_eq!(error.message(), expected);
            assert!(!format!("{error} {error:?}").contains("4111"));
        }
        let masked =
            without_values(r#"unknown variant `4111, expected x`, expected `a` at line 1"#);
        assert_eq!(masked, "unknown variant, expected `a` at line 1");
        assert_eq!(without_values("missing field `email`"), "missing field `email`");
    }

    #[test]
    fn bytes_that_are_not_utf8_may_be_in_ignored_fields() {
        let body = |email: &[u8], ignored: &[u8]| {
            let parts: [&[u8]; 5] = [
                br#"{"event_name":"User\u0043reated","payload":{"user_id":"1","email":""#,
                email,
                br#""},"comment":""#,
                ignored,
                br#""}"#,
            ];
            JsonDeserializer.from_bytes::<UserCreated>(&parts.concat().into())
        };
        let event = body(b"a@b", b"\xff").unwrap();
        assert_eq!((&*event.event_name, &*event.payload.email), ("UserCreated", "a@b"));
        assert_eq!(body(b"\xff", b"").unwrap_err().kind(), DeserializeErrorKind::Syntax);
    }

    #[test]
    fn reads_every_unicode_encoding_with_and_without_mark() {
        fn utf16(text: &str, to_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
            text.encode_utf16().flat_map(to_bytes).collect()
        }
        fn utf32(text: &str, to_bytes: fn(u32) -> [u8; 4]) -> Vec<u8> {
            text.chars().flat_map(|char| to_bytes(u32::from(char))).collect()
        }
        let payload = UserCreated { user_id: "Zoë 🦀".into(), email: "a@b".into() };
        let expected = NotificationEvent::new(payload);
        let text = serde_json::to_string(&expected).unwrap();
        let marked = format!("\u{feff}{text}");
        for body in [
            text.clone().into_bytes(),
            marked.clone().into_bytes(),
            utf16(&text, u16::to_le_bytes),
            utf16(&marked, u16::to_le_bytes),
            utf16(&text, u16::to_be_bytes),
            utf16(&marked, u16::to_be_bytes),
            utf32(&text, u32::to_le_bytes),
            utf32(&marked, u32::to_le_bytes),
            utf32(&text, u32::to_be_bytes),
            utf32(&marked, u32::to_be_bytes),
        ] {
            let body = Bytes::from(body);
            let read = JsonDeserializer.from_bytes::<UserCreated>(&body);
            assert_eq!(read.as_ref().ok(), Some(&expected), "{read:?} of {:?}", &body[..8]);
            let message = Incoming::new("t", body);
            let name = Deserializer::<UserCreated>::event_name(&JsonDeserializer, &message);
            assert_eq!(name.as_deref(), Some("UserCreated"));
        }
    }

    #[test]
    fn broken_utf16_is_named_in_the_error() {
        let mut body = vec![0xff, 0xfe];
        body.extend("{\"payload\":".encode_utf16().flat_map(u16::to_le_bytes));
        body.push(b'"');
        let error = JsonDeserializer.from_bytes::<UserCreated>(&body.into()).unwrap_err();
        assert_eq!(error.kind(), DeserializeErrorKind::Syntax);
        assert!(error.message().contains("UTF-16"), "{error}");
    }

    #[test]
    fn non_finite_number_is_an_error_that_names_its_field() {
        #[derive(Clone, Serialize, cqrs_macros::Notification)]
        #[cqrs(crate = "crate")]
        struct Reading {
            label: Option<String>,
            values: Vec<Value>,
            by_room: std::collections::BTreeMap<String, (u8, f32)>,
            unit: Unit,
        }
        #[derive(Clone, Serialize)]
        struct Value {
            celsius: f64,
        }
        #[derive(Clone, Serialize)]
        enum Unit {
            Plain,
            Scaled(f64),
            Between { low: f64 },
            Pair(f64, f64),
        }
        let fine = Reading {
            label: None,
            values: vec![Value { celsius: 1.5 }, Value { celsius: f64::MAX }],
            by_room: [("cellar".to_owned(), (1, 0.5))].into(),
            unit: Unit::Plain,
        };
        let write = |change: fn(&mut Reading)| {
            let mut reading = fine.clone();
            change(&mut reading);
            JsonSerializer.serialize(&NotificationEvent::new(reading))
        };
        let body = write(|_| {}).unwrap().body;
        assert!(body.windows(12).any(|part| part == b"\"label\":null"), "a null is no error");
        for (change, place) in [
            (
                (|r| r.values[1].celsius = f64::NAN) as fn(&mut Reading),
                "payload.values[1].celsius is NaN",
            ),
            (|r| r.values[0].celsius = f64::INFINITY, "payload.values[0].celsius is inf"),
            (
                |r| r.by_room.extend([("x".into(), (1, f32::NEG_INFINITY))]),
                "payload.by_room.x[1] is -inf",
            ),
            (|r| r.unit = Unit::Scaled(f64::NAN), "payload.unit.Scaled is NaN"),
            (|r| r.unit = Unit::Between { low: f64::NAN }, "payload.unit.Between.low is NaN"),
            (|r| r.unit = Unit::Pair(1.0, f64::NAN), "payload.unit.Pair[1] is NaN"),
        ] {
            let error = write(change).map(|_| ()).unwrap_err();
            let cause = Error::source(&error).unwrap().to_string();
            assert!(cause.starts_with(place), "{cause}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let body = Bytes::from(format!("{{\"x\":{}", "[".repeat(100_000)));
        let error = JsonDeserializer.from_bytes::<UserCreated>(&body).unwrap_err();
        assert_eq!(error.kind(), DeserializeErrorKind::Syntax);
    }

    proptest::proptest! {
        #[test]
        fn written_event_is_read_back(user_id in ".*", email in ".*", id in proptest::num::u128::ANY) {
            let event = NotificationEvent::new(UserCreated { user_id, email }).with_id(Uuid::from_u128(id));
            let encoded = JsonSerializer.serialize(&event).unwrap();
            proptest::prop_assert_eq!(JsonDeserializer.from_bytes(&encoded.body).unwrap(), event);
        }

        #[test]
        fn arbitrary_bytes_never_panic(body in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let message = Incoming::new("t", body);
            let _ = Deserializer::<UserCreated>::deserialize(&JsonDeserializer, &message);
            let _ = Deserializer::<UserCreated>::event_name(&JsonDeserializer, &message);
        }
    }
}
