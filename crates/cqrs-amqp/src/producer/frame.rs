//! Messages as AMQP frames: the check before sending and the properties; part of the producer.

use std::borrow::Cow;
use std::time::UNIX_EPOCH;

use cqrs_core::message::{content_type, header};
use cqrs_core::{Message, PublishErrorKind};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, ByteArray, FieldTable, LongString, ShortString};

use crate::config::AmqpConfig;

/// The format of messages on the wire: the settings that all messages share.
///
/// | message | AMQP |
/// |---|---|
/// | topic | routing key |
/// | id | `message_id`, hyphenated; and the header of that name, unless the body is JSON |
/// | name | `type`, when not empty; and the header `event_name`, unless the body is JSON |
/// | content type | `content_type` |
/// | timestamp | `timestamp`, whole seconds |
/// | header `correlation_id` | `correlation_id` (FastStream reads it there), and the header as well |
/// | headers | `headers`, as long strings; those that are not text as byte arrays |
/// | key | header `message_key`: a long string when it is UTF-8, else a byte array (`x`) |
/// | mandatory | `mandatory` |
#[derive(Debug, Clone)]
pub(crate) struct FrameFormat {
    exchange: ShortString,
    app_id: Option<ShortString>,
    delivery_mode: u8,
    max_message_size: usize,
}

/// One message for lapin, without its body.
pub(crate) struct Frame {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
}

/// AMQP 0-9-1, 4.2.5.3: a short string has one byte for its length.
const SHORT: usize = 255;

impl FrameFormat {
    pub(crate) fn new(config: &AmqpConfig) -> Self {
        Self {
            exchange: short(&config.exchange.name),
            app_id: config.app_id.as_deref().map(short),
            delivery_mode: if config.persistent { 2 } else { 1 },
            max_message_size: config.max_message_size,
        }
    }

    /// Rejects a message that AMQP cannot carry. The server would close the channel or the connection over it,
    /// with the other messages on it.
    pub(crate) fn check(
        &self,
        message: &Message,
    ) -> Result<(), (PublishErrorKind, Cow<'static, str>)> {
        let (size, limit) = (message.content_size(), self.max_message_size);
        if size > limit {
            let detail = format!("{size} bytes with key and headers, max_message_size is {limit}");
            return Err((PublishErrorKind::TooLarge, detail.into()));
        }
        let content_type = message.content_type.as_deref().unwrap_or_default();
        let correlation_id = message.headers.correlation_id().unwrap_or_default();
        for (what, text) in [
            ("topic (the routing key)", &*message.topic),
            ("event name (the type property)", &*message.name),
            ("content type", content_type),
            ("correlation id", correlation_id),
        ] {
            if text.len() > SHORT {
                let detail = format!("its {what} has {} bytes, AMQP allows {SHORT}", text.len());
                return Err((PublishErrorKind::Invalid, detail.into()));
            }
        }
        Ok(())
    }

    /// Bytes of the content header frame, which must fit into one frame of the connection.
    pub(crate) fn header_bytes(&self, message: &Message) -> usize {
        /// Frame envelope, class, weight, body size, property flags, and all properties of fixed size.
        const FIXED: usize = 8 + 2 + 2 + 8 + 2 + 4 + 1 + (1 + 36) + 8;
        const ENTRY: usize = 1 + 1 + 4;
        let mut id = Id::default();
        let identity = identity(message, &mut id).into_iter().flatten();
        let identity = identity.map(|(name, text)| ENTRY + name.len() + text.len()).sum::<usize>();
        let headers = message.headers.len() * ENTRY + message.headers.size() + identity;
        let key = message.key.as_ref().map_or(0, |key| ENTRY + header::KEY.len() + key.len());
        let text = |text: Option<&str>| text.map_or(0, |text| 1 + text.len());
        FIXED
            + headers
            + key
            + text(message.content_type.as_deref())
            + text(message.headers.correlation_id())
            + text(Some(&message.name))
            + text(self.app_id.as_ref().map(ShortString::as_str))
    }

    /// The frame of a message that passed [`check`](Self::check).
    pub(crate) fn frame(&self, message: &Message) -> Frame {
        let seconds = message.timestamp.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let mut id = Id::default();
        let id: &str = message.id.hyphenated().encode_lower(&mut id.0);
        let mut properties = BasicProperties::default()
            .with_delivery_mode(self.delivery_mode)
            .with_message_id(short(id))
            .with_timestamp(seconds);
        if let Some(content_type) = &message.content_type {
            properties = properties.with_content_type(short(content_type));
        }
        if !message.name.is_empty() {
            properties = properties.with_type(short(&message.name));
        }
        if let Some(id) = message.headers.correlation_id() {
            properties = properties.with_correlation_id(short(id));
        }
        if let Some(app_id) = &self.app_id {
            properties = properties.with_app_id(app_id.clone());
        }
        let table = table(message);
        if !table.inner().is_empty() {
            properties = properties.with_headers(table);
        }
        Frame { exchange: self.exchange.clone(), routing_key: short(&message.topic), properties }
    }
}

fn table(message: &Message) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in message.headers.iter() {
        table.insert(short(name), AMQPValue::LongString(LongString::from(value)));
    }
    for (name, value) in message.headers.iter_bytes() {
        table.insert(short(name), AMQPValue::ByteArray(ByteArray::from(&value[..])));
    }
    for (name, text) in identity(message, &mut Id::default()).into_iter().flatten() {
        table.insert(short(name), AMQPValue::LongString(LongString::from(text)));
    }
    if let Some(key) = &message.key {
        let value = match std::str::from_utf8(key) {
            Ok(text) => AMQPValue::LongString(LongString::from(text)),
            Err(_) => AMQPValue::ByteArray(ByteArray::from(&key[..])),
        };
        table.insert(short(header::KEY), value);
    }
    table
}

/// A buffer for an id's text.
struct Id([u8; uuid::fmt::Hyphenated::LENGTH]);

impl Default for Id {
    fn default() -> Self {
        Self([0; uuid::fmt::Hyphenated::LENGTH])
    }
}

/// The headers with the event's name and id that python-cqrs adds unless the body is JSON. A header of the
/// message with the same name has precedence.
fn identity<'m>(message: &'m Message, id: &'m mut Id) -> [Option<(&'static str, &'m str)>; 2] {
    let media_type = message.content_type.as_deref();
    if media_type.is_none_or(content_type::is_json) {
        return [None; 2];
    }
    let absent = |name: &&str| message.headers.get_bytes(name).is_none();
    let name = Some(header::EVENT_NAME).filter(absent).map(|name| (name, &*message.name));
    let id = message.id.hyphenated().encode_lower(&mut id.0);
    let id = Some(header::MESSAGE_ID).filter(absent).map(|name| (name, &*id));
    [name.filter(|(_, text)| !text.is_empty()), id]
}

/// Longer texts were rejected by the check.
fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn format() -> FrameFormat {
        FrameFormat::new(&AmqpConfig {
            max_message_size: 300,
            app_id: Some("shop".into()),
            ..AmqpConfig::default()
        })
    }

    #[test]
    fn message_parts_are_mapped_to_properties() {
        let mut message = Message::new("user_events", "{}")
            .with_name("UserCreated")
            .with_content_type("application/json")
            .with_timestamp(UNIX_EPOCH + Duration::from_millis(1_999))
            .with_key("42");
        message.headers.set_correlation_id("c-1");
        message.headers.insert("a", "ä").unwrap();
        let frame = format().frame(&message);
        let properties = frame.properties;
        assert_eq!(
            (frame.exchange.as_str(), frame.routing_key.as_str()),
            ("events", "user_events")
        );
        let text = |value: &Option<ShortString>| value.as_ref().unwrap().to_string();
        assert_eq!(text(properties.message_id()), message.id.to_string());
        assert_eq!(text(properties.kind()), "UserCreated");
        assert_eq!(text(properties.content_type()), "application/json");
        assert_eq!(text(properties.correlation_id()), "c-1");
        assert_eq!(text(properties.app_id()), "shop");
        assert_eq!((*properties.timestamp(), *properties.delivery_mode()), (Some(1), Some(2)));
        let headers = properties.headers().as_ref().unwrap().inner();
        let long = |text: &str| AMQPValue::LongString(text.into());
        assert_eq!(headers.len(), 3);
        assert_eq!(headers["a"], long("ä"));
        assert_eq!(headers["correlation_id"], long("c-1"));
        assert_eq!(headers["message_key"], long("42"));
    }

    #[test]
    fn body_that_is_not_json_adds_name_and_id_headers() {
        let message = Message::new("t", "").with_name("UserJoined");
        let headers = |message: &Message| format().frame(message).properties.headers().clone();
        let protobuf = message.clone().with_content_type("application/x-protobuf");
        let table = headers(&protobuf).unwrap();
        let long = |text: &str| AMQPValue::LongString(text.into());
        assert_eq!(table.inner().len(), 2);
        assert_eq!(table.inner()["event_name"], long("UserJoined"));
        assert_eq!(table.inner()["message_id"], long(&message.id.hyphenated().to_string()));
        let mut own = protobuf;
        own.headers.insert("event_name", "Mine").unwrap();
        assert_eq!(headers(&own).unwrap().inner()["event_name"], long("Mine"));
        assert_eq!(headers(&message), None);
        for json in ["application/json; charset=utf-8", "application/cloudevents+json"] {
            assert_eq!(headers(&message.clone().with_content_type(json)), None);
        }
    }

    #[test]
    fn minimal_message_has_no_headers() {
        let early = UNIX_EPOCH - Duration::from_secs(1);
        let frame = format().frame(&Message::new("t", "").with_timestamp(early));
        assert!(frame.properties.headers().is_none() && frame.properties.kind().is_none());
        assert_eq!(*frame.properties.timestamp(), Some(0));
    }

    #[test]
    fn key_that_is_not_utf8_is_a_byte_array() {
        let frame = format().frame(&Message::new("t", "").with_key(vec![0xff, 0]));
        let headers = frame.properties.headers().clone().unwrap();
        let bytes = ByteArray::from(vec![0xff, 0]);
        assert_eq!(headers.inner()["message_key"], AMQPValue::ByteArray(bytes));
    }

    #[test]
    fn message_that_amqp_cannot_carry_is_refused() {
        let kind = |message: Message| format().check(&message).unwrap_err().0;
        let long = "x".repeat(256);
        let body = "x".repeat(300);
        assert!(format().check(&Message::new("t", body.clone())).is_ok());
        assert_eq!(kind(Message::new("t", body).with_key("k")), PublishErrorKind::TooLarge);
        assert_eq!(kind(Message::new(&*long, "")), PublishErrorKind::Invalid);
        assert_eq!(kind(Message::new("t", "").with_name(&*long)), PublishErrorKind::Invalid);
        assert_eq!(
            kind(Message::new("t", "").with_content_type(&*long)),
            PublishErrorKind::Invalid
        );
        let mut message = Message::new("t", "");
        message.headers.set_correlation_id(&*long);
        assert_eq!(kind(message), PublishErrorKind::Invalid);
        assert!(format().check(&Message::new("x".repeat(255), "1234567890")).is_ok());
    }

    #[test]
    fn header_bytes_are_not_underestimated() {
        // A content type that is not JSON's, for all headers.
        let mut message = Message::new("t", "").with_name("N").with_key("k").with_content_type("c");
        message.headers.insert("name", "value").unwrap();
        message.headers.set_correlation_id("c");
        let frame = format().frame(&message);
        let mut buffer = [0; 1_024];
        let buffer = std::io::Cursor::new(&mut buffer[..]);
        let properties = frame.properties;
        let written =
            lapin::protocol::basic::gen_properties(&properties)(buffer.into()).unwrap().position;
        let envelope = 8 + 2 + 2 + 8;
        let bytes = u64::try_from(format().header_bytes(&message)).unwrap();
        assert!((written + envelope..=written + envelope + 8).contains(&bytes), "{written}");
    }
}
