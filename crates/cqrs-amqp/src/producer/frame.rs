//! Messages as AMQP frames: the check before sending, and the bytes; part of the producer.

use std::borrow::Cow;
use std::time::UNIX_EPOCH;

use cqrs_core::message::{content_type, header};
use cqrs_core::{Message, PublishErrorKind};

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
    exchange: Box<str>,
    app_id: Option<Box<str>>,
    delivery_mode: u8,
    max_message_size: usize,
}

/// AMQP 0-9-1, 4.2.5.3: a short string has one byte for its length.
const SHORT: usize = 255;

impl FrameFormat {
    pub(crate) fn new(config: &AmqpConfig) -> Self {
        Self {
            exchange: config.exchange.name.as_str().into(),
            app_id: config.app_id.as_deref().map(Into::into),
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

    /// Appends the frames of a message that passed [`check`](Self::check), for a channel that takes frames of `frame_max`
    /// bytes. Returns the bytes of its content header frame, which must fit into one frame of the connection.
    pub(crate) fn write(
        &self,
        message: &Message,
        channel: u16,
        frame_max: usize,
        out: &mut Vec<u8>,
    ) -> usize {
        let method = begin_frame(out, METHOD, channel);
        out.extend_from_slice(&BASIC_PUBLISH);
        short(out, &self.exchange);
        short(out, &message.topic);
        out.push(u8::from(message.mandatory));
        end_frame(out, method);
        let header = begin_frame(out, HEADER, channel);
        self.write_header(message, out);
        let header_bytes = end_frame(out, header);
        for part in message.body.chunks(frame_max.saturating_sub(ENVELOPE).max(1)) {
            let body = begin_frame(out, BODY, channel);
            out.extend_from_slice(part);
            end_frame(out, body);
        }
        header_bytes
    }

    /// The payload of the content header frame. The properties are in the order of their flags.
    fn write_header(&self, message: &Message, out: &mut Vec<u8>) {
        let mut buffer = Id::default();
        let id: &str = message.id.hyphenated().encode_lower(&mut buffer.0);
        out.extend_from_slice(&CLASS_AND_WEIGHT);
        out.extend_from_slice(&(message.body.len() as u64).to_be_bytes());
        let at = out.len();
        let mut flags = DELIVERY_MODE | MESSAGE_ID | TIMESTAMP;
        out.extend_from_slice(&[0; 2]);
        if let Some(content_type) = &message.content_type {
            flags |= CONTENT_TYPE;
            short(out, content_type);
        }
        let table = out.len();
        out.extend_from_slice(&[0; 4]);
        write_table(message, id, out);
        match out.len() - table - 4 {
            0 => out.truncate(table),
            size => {
                flags |= HEADERS;
                out[table..table + 4].copy_from_slice(&length(size));
            }
        }
        out.push(self.delivery_mode);
        if let Some(id) = message.headers.correlation_id() {
            flags |= CORRELATION_ID;
            short(out, id);
        }
        short(out, id);
        let seconds = message.timestamp.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        out.extend_from_slice(&seconds.to_be_bytes());
        if !message.name.is_empty() {
            flags |= TYPE;
            short(out, &message.name);
        }
        if let Some(app_id) = &self.app_id {
            flags |= APP_ID;
            short(out, app_id);
        }
        out[at..at + 2].copy_from_slice(&flags.to_be_bytes());
    }
}

// AMQP 0-9-1, 4.2.3: the types of frames and the octet at their end.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xCE;
/// Bytes of a frame before its payload (type, channel, size) and around it.
const HEAD: usize = 7;
const ENVELOPE: usize = HEAD + 1;
/// Class 60, method 40, and a reserved field.
const BASIC_PUBLISH: [u8; 6] = [0, 60, 0, 40, 0, 0];
const CLASS_AND_WEIGHT: [u8; 4] = [0, 60, 0, 0];

// The flags of properties.
const CONTENT_TYPE: u16 = 1 << 15;
const HEADERS: u16 = 1 << 13;
const DELIVERY_MODE: u16 = 1 << 12;
const CORRELATION_ID: u16 = 1 << 10;
const MESSAGE_ID: u16 = 1 << 7;
const TIMESTAMP: u16 = 1 << 6;
const TYPE: u16 = 1 << 5;
const APP_ID: u16 = 1 << 3;

/// Begins a frame and returns its place.
fn begin_frame(out: &mut Vec<u8>, kind: u8, channel: u16) -> usize {
    let [c1, c0] = channel.to_be_bytes();
    let at = out.len();
    out.extend_from_slice(&[kind, c1, c0, 0, 0, 0, 0]);
    at
}

/// Ends the frame that began at `at` and returns its bytes.
fn end_frame(out: &mut Vec<u8>, at: usize) -> usize {
    let size = length(out.len() - at - HEAD);
    out[at + HEAD - size.len()..at + HEAD].copy_from_slice(&size);
    out.push(FRAME_END);
    out.len() - at
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
}

/// Appends a short string. Longer texts were rejected by the check.
fn short(out: &mut Vec<u8>, text: &str) {
    let (length, text) = match u8::try_from(text.len()) {
        Ok(length) => (length, text),
        Err(_) => (0, ""),
    };
    out.push(length);
    out.extend_from_slice(text.as_bytes());
}

/// Appends the entries of the header table. `id` is the message's id as text.
fn write_table(message: &Message, id: &str, out: &mut Vec<u8>) {
    let mut entry = |name: &str, kind: u8, value: &[u8]| {
        short(out, name);
        out.push(kind);
        out.extend_from_slice(&length(value.len()));
        out.extend_from_slice(value);
    };
    // The key replaces a header of its name.
    let kept = |name: &str| message.key.is_none() || name != header::KEY;
    for (name, value) in message.headers.iter().filter(|(name, _)| kept(name)) {
        entry(name, LONG_STRING, value.as_bytes());
    }
    for (name, value) in message.headers.iter_bytes().filter(|(name, _)| kept(name)) {
        entry(name, BYTE_ARRAY, value);
    }
    for (name, text) in identity(message, id).into_iter().flatten() {
        entry(name, LONG_STRING, text.as_bytes());
    }
    if let Some(key) = &message.key {
        let kind = match std::str::from_utf8(key) {
            Ok(_) => LONG_STRING,
            Err(_) => BYTE_ARRAY,
        };
        entry(header::KEY, kind, key);
    }
}

// The types of values in a table.
const LONG_STRING: u8 = b'S';
const BYTE_ARRAY: u8 = b'x';

/// A buffer for an id's text.
struct Id([u8; uuid::fmt::Hyphenated::LENGTH]);

impl Default for Id {
    fn default() -> Self {
        Self([0; uuid::fmt::Hyphenated::LENGTH])
    }
}

/// The headers with the event's name and id that python-cqrs adds unless the body is JSON. A header of the
/// message with the same name has precedence.
fn identity<'m>(message: &'m Message, id: &'m str) -> [Option<(&'static str, &'m str)>; 2] {
    let media_type = message.content_type.as_deref();
    if media_type.is_none_or(content_type::is_json) {
        return [None; 2];
    }
    let absent = |name: &&str| message.headers.get_bytes(name).is_none();
    let name = Some(header::EVENT_NAME).filter(absent).map(|name| (name, &*message.name));
    let id = Some(header::MESSAGE_ID).filter(absent).map(|name| (name, id));
    [name.filter(|(_, text)| !text.is_empty()), id]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use amq_protocol::frame::{AMQPFrame, parse_frame};
    use amq_protocol::protocol::{AMQPClass, BasicProperties, basic};
    use lapin::types::{AMQPValue, ByteArray, ShortString};
    use proptest::prelude::*;

    use super::*;

    fn format() -> FrameFormat {
        FrameFormat::new(&AmqpConfig {
            max_message_size: 300,
            app_id: Some("shop".into()),
            ..AmqpConfig::default()
        })
    }

    /// A message as lapin reads its frames.
    struct Read {
        publish: basic::Publish,
        properties: BasicProperties,
        body: Vec<u8>,
        body_frames: usize,
    }

    /// Writes a message on channel 7 and reads it with lapin's parser.
    fn written(format: &FrameFormat, message: &Message, frame_max: usize) -> Read {
        let mut bytes = vec![0xAB; 3];
        let header_bytes = format.write(message, 7, frame_max, &mut bytes);
        let mut rest = &bytes[3..];
        let mut next = || {
            let before = rest.len();
            let (left, frame) = parse_frame(rest).expect("a frame");
            rest = left;
            (frame, before - rest.len())
        };
        let (AMQPFrame::Method(7, AMQPClass::Basic(basic::AMQPMethod::Publish(publish))), _) =
            next()
        else {
            panic!("no basic.publish")
        };
        let (AMQPFrame::Header(7, header), size) = next() else { panic!("no content header") };
        assert_eq!((header.class_id, size), (60, header_bytes));
        let (mut body, mut body_frames) = (Vec::new(), 0);
        while body.len() < message.body.len() {
            let (AMQPFrame::Body(7, part), size) = next() else { panic!("no body") };
            assert!(size <= frame_max);
            body.extend(part);
            body_frames += 1;
        }
        assert_eq!(header.body_size, body.len() as u64);
        assert!(rest.is_empty());
        Read { publish, properties: header.properties, body, body_frames }
    }

    fn properties(message: &Message) -> BasicProperties {
        written(&format(), message, 4_096).properties
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
        let Read { publish, properties, body, .. } = written(&format(), &message, 4_096);
        assert_eq!(
            (publish.exchange.as_str(), publish.routing_key.as_str()),
            ("events", "user_events")
        );
        assert_eq!((publish.mandatory, publish.immediate, &body[..]), (true, false, &b"{}"[..]));
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
        let headers = |message: &Message| properties(message).headers().clone();
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
        let message = Message::new("t", "").with_timestamp(early).with_mandatory(false);
        let Read { publish, properties, body_frames, .. } = written(&format(), &message, 4_096);
        assert!(properties.headers().is_none() && properties.kind().is_none());
        assert_eq!(*properties.timestamp(), Some(0));
        assert_eq!((publish.mandatory, body_frames), (false, 0));
    }

    #[test]
    fn key_that_is_not_utf8_is_a_byte_array() {
        let properties = properties(&Message::new("t", "").with_key(vec![0xff, 0]));
        let headers = properties.headers().clone().unwrap();
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
    fn key_replaces_a_header_of_its_name() {
        let mut message = Message::new("t", "").with_key("k");
        message.headers.insert(header::KEY, "other").unwrap();
        let headers = properties(&message).headers().clone().unwrap();
        assert_eq!(headers.inner().len(), 1);
        assert_eq!(headers.inner()["message_key"], AMQPValue::LongString("k".into()));
    }

    proptest! {
        #[test]
        fn lapin_reads_any_message(
            body in proptest::collection::vec(any::<u8>(), 0..9_000),
            texts in proptest::collection::vec("[a-zé]{0,60}", 4),
            headers in proptest::collection::btree_map("[a-zé]{1,20}", "[a-zé]{0,300}", 0..5),
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let [topic, name, kind, key] = &texts[..] else { unreachable!() };
            let mut message = Message::new(topic.as_str(), body.clone())
                .with_name(name.as_str())
                .with_content_type(kind.as_str())
                .with_key(key.clone());
            for (name, value) in &headers {
                message.headers.insert(name.as_str(), value.as_str()).unwrap();
            }
            message.headers.insert_bytes("bytes", bytes.clone()).unwrap();
            let config = AmqpConfig { max_message_size: 1 << 20, ..AmqpConfig::default() };
            let read = written(&FrameFormat::new(&config), &message, 4_096);
            prop_assert_eq!(read.publish.routing_key.as_str(), topic.as_str());
            prop_assert_eq!(&read.body, &body);
            prop_assert_eq!(read.body_frames, body.len().div_ceil(4_088));
            let table = read.properties.headers().clone().unwrap();
            for (name, value) in &headers {
                let value = AMQPValue::LongString(value.as_str().into());
                prop_assert_eq!(&table.inner()[name.as_str()], &value);
            }
            let read = match &table.inner()["bytes"] {
                AMQPValue::ByteArray(read) => read.as_slice().to_vec(),
                AMQPValue::LongString(read) => read.as_bytes().to_vec(),
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(read, bytes);
        }
    }
}
