//! The serialized form of one event, returned by serializers.

use bytes::Bytes;

use crate::message::Headers;

/// The wire form of one event.
#[derive(Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The message's body.
    pub body: Bytes,
    /// Its media type.
    pub content_type: &'static str,
    /// Headers that this form needs beside the body.
    pub headers: Headers,
}

impl std::fmt::Debug for Encoded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoded")
            .field("body_bytes", &self.body.len())
            .field("content_type", &self.content_type)
            .field("headers", &self.headers)
            .finish()
    }
}
