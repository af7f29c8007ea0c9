//! Tests of the frame filter against lapin's own parser.

use amq_protocol::frame::{AMQPFrame, gen_frame, parse_frame};
use amq_protocol::protocol::{AMQPClass, BasicProperties, basic, connection};
use futures_util::{AsyncReadExt, FutureExt};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use proptest::prelude::*;

use super::fields::MAX_DEPTH;
use super::filter::{BODY, HEAD, HEADER, METHOD, frame_of};
use super::stream::Filtered;
use crate::headers::{UNREADABLE, UNREADABLE_PROPERTIES};

/// Bytes through the filter, received in pieces of `piece` bytes.
fn filtered(bytes: &[u8], piece: usize, frame_max: u32) -> Vec<u8> {
    let mut socket = Filtered::new(Pieces { bytes, piece }, Some(frame_max));
    let mut out = Vec::new();
    let mut part = [0; 7_001];
    let reading = async {
        loop {
            match socket.read(&mut part).await.unwrap() {
                0 => return,
                read => out.extend_from_slice(&part[..read]),
            }
        }
    };
    reading.now_or_never().unwrap();
    out
}

struct Pieces<'a> {
    bytes: &'a [u8],
    piece: usize,
}

impl futures_util::AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
        out: &mut [u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        let count = self.piece.min(out.len()).min(self.bytes.len());
        let (read, rest) = self.bytes.split_at(count);
        out[..count].copy_from_slice(read);
        self.bytes = rest;
        std::task::Poll::Ready(Ok(count))
    }
}

/// All frames in `bytes`, as lapin reads them.
fn parsed(mut bytes: &[u8]) -> Vec<AMQPFrame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (rest, frame) = parse_frame(bytes).expect("lapin reads it");
        frames.push(frame);
        bytes = rest;
    }
    frames
}

fn written(frame: &AMQPFrame) -> Vec<u8> {
    let mut room = vec![0; 300_000];
    let end = gen_frame(frame)(std::io::Cursor::new(&mut room[..]).into()).unwrap().position;
    room.truncate(usize::try_from(end).unwrap());
    room
}

fn deliver(routing_key: &str) -> AMQPFrame {
    let deliver = basic::Deliver {
        consumer_tag: "ctag".into(),
        delivery_tag: 7,
        redelivered: true,
        exchange: "e".into(),
        routing_key: routing_key.into(),
    };
    AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver)))
}

fn header(properties: BasicProperties) -> AMQPFrame {
    let header = amq_protocol::frame::AMQPContentHeader { class_id: 60, body_size: 4, properties };
    AMQPFrame::Header(1, header)
}

/// A message's frames with a content header of these flags and properties.
fn message(flags: u16, properties: &[u8]) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4];
    payload.extend(flags.to_be_bytes());
    payload.extend_from_slice(properties);
    let mut bytes = written(&deliver("key"));
    bytes.extend(frame_of(HEADER, 1, &payload));
    bytes.extend(frame_of(BODY, 1, b"body"));
    bytes
}

/// The properties that lapin reads of a message that the filter replaced.
fn properties_of(bytes: &[u8]) -> BasicProperties {
    let frames = parsed(bytes);
    let [AMQPFrame::Method(1, _), AMQPFrame::Header(1, header), AMQPFrame::Body(1, body)] =
        &frames[..]
    else {
        panic!("{frames:?}")
    };
    assert_eq!((header.body_size, &body[..]), (4, &b"body"[..]));
    header.properties.clone()
}

fn text(properties: &BasicProperties, name: &str) -> String {
    match properties.headers().as_ref().and_then(|table| table.inner().get(name)) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => panic!("{name}: {other:?}"),
    }
}

fn bytes_of(properties: &BasicProperties, name: &str) -> Vec<u8> {
    match properties.headers().as_ref().and_then(|table| table.inner().get(name)) {
        Some(AMQPValue::ByteArray(bytes)) => bytes.as_slice().to_vec(),
        other => panic!("{name}: {other:?}"),
    }
}

fn nested(depth: usize) -> AMQPValue {
    (0..depth)
        .fold(AMQPValue::Void, |inner, _| AMQPValue::FieldArray(FieldArray::from(vec![inner])))
}

fn with_header(name: &str, value: AMQPValue) -> BasicProperties {
    let mut table = FieldTable::default();
    table.insert("first".into(), AMQPValue::LongLongInt(1));
    table.insert(name.into(), value);
    BasicProperties::default().with_headers(table).with_type("UserCreated".into())
}

#[test]
fn property_that_is_not_utf8_is_moved_to_a_header() {
    // content_type, correlation_id, message_id
    let flags = 0x8000 | 0x0400 | 0x0080;
    let properties = b"\x04json\x02\xff\xfe\x02id";
    let passed = filtered(&message(flags, properties), 1_000, 131_072);
    let read = properties_of(&passed);
    assert_eq!(read.content_type().as_ref().unwrap().as_str(), "json");
    assert_eq!(read.message_id().as_ref().unwrap().as_str(), "id");
    assert_eq!(*read.correlation_id(), None);
    assert_eq!(text(&read, UNREADABLE), "its property correlation_id is not UTF-8");
    let original = [&flags.to_be_bytes()[..], properties].concat();
    assert_eq!(bytes_of(&read, UNREADABLE_PROPERTIES), original);
}

#[test]
fn readable_headers_stay_beside_an_unreadable_one() {
    // Two entries: one with a Latin-1 name, one without fault; then a type.
    let table = b"\x04caf\xe9t\x01\x01nI\x00\x00\x00\x07";
    let mut properties = 14_u32.to_be_bytes().to_vec();
    properties.extend_from_slice(table);
    properties.extend_from_slice(b"\x01T");
    let read = properties_of(&filtered(&message(0x2020, &properties), 1_000, 131_072));
    assert_eq!(text(&read, UNREADABLE), "a header has a name that is not UTF-8");
    assert_eq!(read.headers().as_ref().unwrap().inner()["n"], AMQPValue::LongInt(7));
    assert_eq!(read.kind().as_ref().unwrap().as_str(), "T");
}

#[test]
fn deep_nesting_is_replaced_and_less_passes() {
    let at = |depth| message_of(&header(with_header("z", nested(depth))));
    let fine = at(MAX_DEPTH);
    assert_eq!(filtered(&fine, 1_000, 131_072), fine);
    let read = properties_of(&filtered(&at(MAX_DEPTH + 1), 1_000, 131_072));
    assert_eq!(text(&read, UNREADABLE), "a header is nested more than 64 deep");
    assert_eq!(read.headers().as_ref().unwrap().inner()["first"], AMQPValue::LongLongInt(1));
    // Raw bytes: writing such a value with lapin would overflow the stack.
    let mut value = vec![b'V'];
    for _ in 0..20_000 {
        let size = u32::try_from(value.len()).unwrap().to_be_bytes();
        value.splice(..0, [b'A', size[0], size[1], size[2], size[3]]);
    }
    let size = u32::try_from(value.len() + 2).unwrap().to_be_bytes();
    let properties = [&size[..], b"\x01d", &value].concat();
    let read = properties_of(&filtered(&message(0x2000, &properties), 1_000, 131_072));
    assert_eq!(bytes_of(&read, UNREADABLE_PROPERTIES).len(), properties.len() + 2);
}

fn message_of(header: &AMQPFrame) -> Vec<u8> {
    let body = AMQPFrame::Body(1, b"body".to_vec());
    [written(&deliver("key")), written(header), written(&body)].concat()
}

#[test]
fn header_frame_over_frame_max_is_shrunk() {
    let large =
        |bytes: usize| header(with_header("x", AMQPValue::LongString("x".repeat(bytes).into())));
    for frame_max in [4_096, 8_192, 131_072] {
        let frame = message_of(&large(frame_max));
        let limit = u32::try_from(frame_max).unwrap();
        let passed = filtered(&frame, 5_000, limit);
        let read = properties_of(&passed);
        assert!(text(&read, UNREADABLE).contains("its properties and headers take a frame of"));
        assert_eq!(read.kind().as_ref().unwrap().as_str(), "UserCreated");
        assert!(written(&header(read)).len() <= frame_max, "{frame_max}");
        // The server's own limit counts as well.
        let mut tuned = frame_of(METHOD, 0, &tune(limit));
        let tune = tuned.len();
        tuned.extend(&frame);
        assert_eq!(filtered(&tuned, 5_000, 0)[tune..], passed);
        let fine = message_of(&large(frame_max - 200));
        assert_eq!(filtered(&fine, 5_000, limit), fine);
    }
}

fn tune(frame_max: u32) -> Vec<u8> {
    let mut payload = vec![0, 10, 0, 30, 7, 255];
    payload.extend(frame_max.to_be_bytes());
    payload.extend([0, 60]);
    payload
}

#[test]
fn routing_key_that_is_not_utf8_marks_its_message() {
    let mut bytes = message(0x8000, b"\x04json");
    let at = bytes.windows(3).position(|window| window == b"key").unwrap();
    bytes[at + 1] = 0xe9;
    let other = message(0x8000, b"\x04json");
    bytes.extend(&other);
    let passed = filtered(&bytes, 1_000, 131_072);
    let (marked, rest) = passed.split_at(passed.len() - other.len());
    assert_eq!(rest, other);
    let read = properties_of(marked);
    assert_eq!(text(&read, UNREADABLE), "its routing_key is not UTF-8");
    assert_eq!(bytes_of(&read, "cqrs-unreadable-routing-key"), b"k\xe9y");
    let AMQPFrame::Method(_, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver))) =
        &parsed(marked)[0]
    else {
        panic!("no delivery")
    };
    assert_eq!(deliver.routing_key.as_str(), "k\u{fffd}y");
    assert_eq!((deliver.delivery_tag, deliver.redelivered), (7, true));
}

#[test]
fn reply_text_cut_within_a_character_is_readable() {
    // A server that cuts its text at 255 bytes sends this.
    let cut = [&b"NOT_FOUN"[..], &"é".repeat(130).as_bytes()[..247]].concat();
    let mut payload = vec![0, 20, 0, 40, 1, 148, 255];
    payload.extend(&cut);
    payload.extend([0, 60, 0, 40]);
    let bytes = frame_of(METHOD, 3, &payload);
    assert!(parse_frame(&bytes[..]).is_err());
    let frames = parsed(&filtered(&bytes, 10, 131_072));
    let shown = format!("{:?}", frames[0]);
    assert!(shown.contains("404") && shown.contains("NOT_FOUNé"), "{shown}");
}

#[test]
fn nothing_is_read_after_the_last_frame() {
    let close_ok = AMQPClass::Connection(connection::AMQPMethod::CloseOk(connection::CloseOk {}));
    let close_ok = written(&AMQPFrame::Method(0, close_ok));
    for piece in [1, close_ok.len()] {
        let mut socket = Filtered::new(Pieces { bytes: &close_ok, piece }, None);
        let mut part = [0; 100];
        let mut read = || socket.read(&mut part).now_or_never().map(Result::unwrap);
        assert_eq!(read(), Some(close_ok.len()));
        assert_eq!(read(), None, "the end of the socket");
    }
}

#[test]
fn bytes_that_are_no_frames_pass() {
    for bytes in [
        &b"AMQP\x00\x00\x09\x01"[..],
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\x02\x00\x01\x00\x00",
        b"\x02\x00\x01\xff\xff\xff\xff and more",
        b"\x02\x00\x01\x00\x00\x00\x01_not the end",
    ] {
        for piece in [1, 3, 100] {
            assert_eq!(filtered(bytes, piece, 131_072), bytes);
        }
    }
}

fn value() -> impl Strategy<Value = AMQPValue> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<u8>().prop_map(AMQPValue::ShortShortUInt),
        any::<i16>().prop_map(AMQPValue::ShortInt),
        any::<u16>().prop_map(AMQPValue::ShortUInt),
        any::<i32>().prop_map(AMQPValue::LongInt),
        any::<u32>().prop_map(AMQPValue::LongUInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        (-1e9_f64..1e9).prop_map(AMQPValue::Double),
        (-1e9_f32..1e9).prop_map(AMQPValue::Float),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        proptest::collection::vec(any::<u8>(), 0..40)
            .prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        proptest::collection::vec(any::<u8>(), 0..40)
            .prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
        Just(AMQPValue::Void),
    ];
    leaf.prop_recursive(6, 40, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5)
                .prop_map(|values| AMQPValue::FieldArray(FieldArray::from(values))),
            table(inner).prop_map(AMQPValue::FieldTable),
        ]
    })
}

fn table(value: impl Strategy<Value = AMQPValue>) -> impl Strategy<Value = FieldTable> {
    proptest::collection::btree_map("[a-zé]{0,20}", value, 0..5).prop_map(|entries| {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert(name.as_str().into(), value);
        }
        table
    })
}

prop_compose! {
    fn any_properties()(
        headers in proptest::option::of(table(value())),
        kind in proptest::option::of("[a-zé]{0,60}"),
        id in proptest::option::of("[a-z]{0,60}"),
        at in proptest::option::of(any::<u64>()),
        priority in proptest::option::of(any::<u8>()),
    ) -> BasicProperties {
        let mut properties = BasicProperties::default();
        if let Some(headers) = headers { properties = properties.with_headers(headers); }
        if let Some(kind) = kind { properties = properties.with_type(kind.as_str().into()); }
        if let Some(id) = id { properties = properties.with_correlation_id(id.as_str().into()); }
        if let Some(at) = at { properties = properties.with_timestamp(at); }
        if let Some(priority) = priority { properties = properties.with_priority(priority); }
        properties
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn well_formed_frames_pass_unchanged(
        messages in proptest::collection::vec((any_properties(), 0_usize..9_000), 1..5),
        piece in 1_usize..3_000,
    ) {
        let mut bytes = Vec::new();
        for (properties, body) in messages {
            bytes.extend(written(&deliver("key")));
            bytes.extend(written(&header(properties)));
            bytes.extend(frame_of(BODY, 1, &vec![0xCE; body]));
            bytes.extend(written(&AMQPFrame::Heartbeat));
        }
        prop_assert_eq!(filtered(&bytes, piece, 131_072), bytes);
    }

    #[test]
    fn damaged_properties_are_always_readable(
        properties in any_properties(),
        damages in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        piece in 1_usize..300,
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let frame = written(&header(properties));
        let mut payload = frame[HEAD..frame.len() - 1].to_vec();
        for (at, byte) in damages {
            let at = 12 + at.index(payload.len() - 12);
            payload[at] = byte;
        }
        if let Some(cut) = cut {
            payload.truncate(12 + cut.index(payload.len() - 11));
        }
        let mut bytes = written(&deliver("key"));
        bytes.extend(frame_of(HEADER, 1, &payload));
        bytes.extend(frame_of(BODY, 1, b"body"));
        let passed = filtered(&bytes, piece, 131_072);
        let damaged = frame_of(HEADER, 1, &payload);
        match parse_frame(&damaged[..]) {
            Ok(_) => prop_assert_eq!(passed, bytes),
            Err(_) => {
                let read = properties_of(&passed);
                prop_assert!(!text(&read, UNREADABLE).is_empty());
                prop_assert_eq!(bytes_of(&read, UNREADABLE_PROPERTIES), &payload[12..]);
            }
        }
    }

    #[test]
    fn any_bytes_pass_whatever_the_pieces(
        bytes in proptest::collection::vec(prop_oneof![Just(0_u8), 1..4_u8, Just(0xCE), any::<u8>()], 0..400),
        pieces in (1_usize..50, 1_usize..50),
    ) {
        let once = filtered(&bytes, pieces.0, 8_192);
        prop_assert_eq!(&once, &filtered(&bytes, pieces.1, 8_192));
    }
}
