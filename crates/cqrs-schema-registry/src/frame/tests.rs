//! Tests of the frame's bytes.

use proptest::prelude::*;

use super::*;

fn json(bytes: &[u8]) -> Result<(Frame, usize), FrameErrorKind> {
    Frame::read(SchemaType::Json, bytes).map_err(|error| error.kind())
}

fn protobuf(bytes: &[u8]) -> Result<(Frame, usize), FrameErrorKind> {
    Frame::read(SchemaType::Protobuf, bytes).map_err(|error| error.kind())
}

fn path(indexes: &[u32]) -> MessagePath {
    MessagePath::new(indexes).unwrap()
}

#[test]
fn a_json_frame_is_a_zero_and_the_id() {
    assert_eq!(Frame::new(0x0102_0304).to_bytes(), [0, 1, 2, 3, 4]);
    assert_eq!(json(&[0, 1, 2, 3, 4, b'{']), Ok((Frame::new(0x0102_0304), 5)));
    assert_eq!(json(&[0, 0xff, 0xff, 0xff, 0xff]), Ok((Frame::new(u32::MAX), 5)));
}

#[test]
fn both_forms_of_the_first_message_path_are_read() {
    let frame = Frame::new(7).with_path(MessagePath::FIRST);
    assert_eq!(frame.to_bytes(), [0, 0, 0, 0, 7, 0]);
    assert_eq!(Frame::new(7).with_path(path(&[0])).to_bytes(), [0, 0, 0, 0, 7, 0]);
    assert_eq!(protobuf(&[0, 0, 0, 0, 7, 0, 9]), Ok((frame.clone(), 6)));
    assert_eq!(protobuf(&[0, 0, 0, 0, 7, 2, 0, 9]), Ok((frame, 7)));
}

#[test]
fn other_messages_are_a_count_and_their_indexes() {
    let frame = Frame::new(7).with_path(path(&[1, 64]));
    assert_eq!(frame.to_bytes(), [0, 0, 0, 0, 7, 4, 2, 0x80, 0x01]);
    assert_eq!(protobuf(&frame.to_bytes()), Ok((frame, 9)));
}

#[test]
fn a_guid_stands_behind_magic_one() {
    let guid = Uuid::from_u128(0x3fa8_5f64_5717_4562_b3fc_2c96_3f66_afa6);
    let bytes = Frame::new(guid).with_path(path(&[3])).to_bytes();
    assert_eq!(bytes[0], 1);
    assert_eq!(&bytes[1..17], guid.as_bytes());
    assert_eq!(&bytes[17..], [2, 6]);
    assert_eq!(protobuf(&bytes).unwrap().0.id(), SchemaId::Guid(guid));
    assert_eq!(json(&bytes).unwrap(), (Frame::new(guid), 17));
}

#[test]
fn invalid_frame_is_an_error_with_its_kind() {
    assert_eq!(json(b""), Err(FrameErrorKind::Empty));
    assert_eq!(json(b"{}"), Err(FrameErrorKind::Unframed));
    assert_eq!(json(&[0, 0, 0, 7]), Err(FrameErrorKind::Truncated));
    assert_eq!(json(&[1; 16]), Err(FrameErrorKind::Truncated));
    assert_eq!(protobuf(&[0, 0, 0, 0, 7]), Err(FrameErrorKind::Truncated));
    assert_eq!(protobuf(&[0, 0, 0, 0, 7, 4, 0]), Err(FrameErrorKind::Truncated));
    assert_eq!(protobuf(&[0, 0, 0, 0, 7, 1, 0]), Err(FrameErrorKind::Negative));
    assert_eq!(protobuf(&[0, 0, 0, 0, 7, 2, 1]), Err(FrameErrorKind::Negative));
    assert_eq!(protobuf(&[0, 0, 0, 0, 7, 0x82, 0x01]), Err(FrameErrorKind::Path));
    let huge = [0, 0, 0, 0, 7, 0xfe, 0xff, 0xff, 0xff, 0x0f, 0];
    assert_eq!(protobuf(&huge), Err(FrameErrorKind::Path));
}

#[test]
fn a_path_has_indexes_that_every_client_can_read() {
    assert!(MessagePath::new([]).is_err());
    assert!(MessagePath::new([1 << 31]).is_err());
    assert!(MessagePath::new(vec![0; MessagePath::MAX_DEPTH]).is_ok());
    let error = MessagePath::new(vec![0; MessagePath::MAX_DEPTH + 1]).unwrap_err();
    assert_eq!(error.kind(), FrameErrorKind::Path);
    assert_eq!(path(&[0]), MessagePath::FIRST);
}

fn frames() -> impl Strategy<Value = Frame> {
    let id = prop_oneof![
        any::<u32>().prop_map(SchemaId::Number),
        any::<u128>().prop_map(|guid| SchemaId::Guid(Uuid::from_u128(guid))),
    ];
    let indexes = prop::collection::vec(0..=i32::MAX as u32, 1..=MessagePath::MAX_DEPTH);
    let path = prop::option::of(indexes.prop_map(|indexes| MessagePath::new(indexes).unwrap()));
    (id, path).prop_map(|(id, path)| Frame { id, path })
}

proptest! {
    #[test]
    fn written_is_read_back(
        frame in frames(),
        body in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        let schema_type = match frame.path() {
            Some(_) => SchemaType::Protobuf,
            None => SchemaType::Json,
        };
        let mut bytes = frame.to_bytes();
        bytes.extend_from_slice(&body);
        let (read, rest) = Frame::split(schema_type, &bytes.into()).unwrap();
        prop_assert_eq!(read, frame);
        prop_assert_eq!(rest, body);
    }

    #[test]
    fn a_cut_frame_is_an_error(frame in frames(), cut in any::<prop::sample::Index>()) {
        let bytes = frame.to_bytes();
        let schema_type = match frame.path() {
            Some(_) => SchemaType::Protobuf,
            None => SchemaType::Json,
        };
        prop_assert!(Frame::read(schema_type, &bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic_nor_overallocate(
        start in 0_u8..3,
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut bytes = vec![start];
        bytes.extend(rest);
        let used = allocation_counter::measure(|| {
            let _ = Frame::read(SchemaType::Protobuf, &bytes);
        });
        // A growing vector of at most one index per byte, 4 bytes each.
        let bound = 8 * (bytes.len().min(MessagePath::MAX_DEPTH) as u64 + 4);
        prop_assert!(used.bytes_max <= bound, "{} of {bound}", used.bytes_max);
        let used = allocation_counter::measure(|| {
            let _ = Frame::read(SchemaType::Json, &bytes);
        });
        prop_assert_eq!(used.count_total, 0);
    }
}
