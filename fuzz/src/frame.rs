//! Fuzzing of the schema frame.

use cqrs_schema_registry::{Frame, SchemaType};

/// Any bytes as a framed body, of both kinds.
pub fn frame(bytes: &[u8]) {
    for schema_type in [SchemaType::Protobuf, SchemaType::Json] {
        // The indexes of the path.
        match super::bounded(bytes, 16, || Frame::read(schema_type, bytes)) {
            Ok((frame, length)) => {
                assert!(length <= bytes.len());
                let written = frame.to_bytes();
                let (second, again) =
                    Frame::read(schema_type, &written).expect("what was written can be read");
                assert_eq!((&frame, written.len()), (&second, again));
            }
            Err(error) => {
                assert!(error.at() <= bytes.len());
                let _ = error.to_string();
            }
        }
    }
}
